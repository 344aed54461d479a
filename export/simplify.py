"""Take what only describes shapes or known decisions out of a graph."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from ..runtime.errors import ExportError
from .dims import Size, product
from .onnx_reading import QUANTISATION
from .propagation import propagate
from .shapes import Shapes

_BROADCASTING = {"Add", "Sub", "Mul", "Div", "Max", "Min"}


def resolve_conditions(graph: ir.Graph, image: ir.Value, shapes: Sequence[tuple[int, ...]]) -> None:
    """Replace each If whose condition is known by the branch that is taken."""
    while True:
        node = next((each for each in graph if each.op_type in ("If", "Loop", "Scan")), None)
        if node is None:
            return
        if node.op_type != "If":
            raise ExportError(
                f"the node '{node.name}' ({node.op_type}) is a loop inside the graph, which cannot "
                "be differentiated: export the model with loops unrolled"
            )
        conditions = {_known_condition(graph, node, {image: shape}) for shape in shapes}
        if len(conditions) > 1:
            raise ExportError(
                f"the node '{node.name}' (If) depends on the image's size, so one graph cannot "
                "explain images of any size: leave out --dynamic-size"
            )
        (condition,) = conditions
        branch = node.attributes["then_branch" if condition else "else_branch"].as_graph()
        _splice(graph, node, branch)


def _known_condition(
    graph: ir.Graph, node: ir.Node, inputs: dict[ir.Value, tuple[int, ...]]
) -> bool:
    known = propagate(graph, inputs, until=node)
    value = known.constants.get(node.inputs[0]) if node.inputs[0] is not None else None
    if value is None:
        raise ExportError(
            f"the node '{node.name}' (If) depends on the image's contents: such networks cannot be "
            "explained by one graph"
        )
    return bool(value)


def _splice(graph: ir.Graph, node: ir.Node, branch: ir.Graph) -> None:
    inner = list(branch)
    results = list(branch.outputs)
    for value in list(branch.initializers.values()):
        branch.initializers.pop(str(value.name))
        value.name = f"{node.name}/{value.name}"
        graph.register_initializer(value)
    for each in inner:
        branch.remove(each)
        each.name = f"{node.name}/{each.name}"
        graph.insert_before(node, each)
    for old, new in zip(node.outputs, results, strict=True):
        old.replace_all_uses_with(new, replace_graph_outputs=True)
    graph.remove(node, safe=True)


def set_shape_input(graph: ir.Graph, node: ir.Node, shape: Sequence[int]) -> None:
    """Let a reshape read a constant shape."""
    name = f"{node.name}/shape"
    tensor = ir.tensor(np.array(shape, np.int64), name=name)
    value = ir.Value(
        name=name,
        shape=ir.Shape([len(shape)]),
        type=ir.TensorType(ir.DataType.INT64),
        const_value=tensor,
    )
    graph.initializers.pop(name, None)
    graph.register_initializer(value)
    node.replace_input_with(1, value)


def drop_strided_views(graph: ir.Graph, shapes: Shapes) -> None:
    """Replace a Gather of all elements in order, PyTorch's ``as_strided``, by a reshape."""
    for node in list(graph):
        if node.op_type != "Gather" or node.inputs[0] is None or node.inputs[1] is None:
            continue
        indices = shapes.varying.get(node.inputs[1])
        flat = node.inputs[0].producer()
        if indices is None or flat is None or flat.op_type != "Reshape":
            continue
        shape = shapes.dims[node.outputs[0]]
        one_axis = len(shapes.dims[node.inputs[0]]) == 1
        in_order = (
            all(np.array_equal(each.ravel(), np.arange(each.size)) for each in indices)
            and product(shape) == shapes.dims[node.inputs[0]][0]
        )
        if not (one_axis and in_order):
            continue
        view = ir.Node(
            "", "Reshape", [flat.inputs[0], node.inputs[1]], name=node.name, num_outputs=1
        )
        view.outputs[0].name = f"{node.outputs[0].name}/view"
        graph.insert_before(node, view)
        shapes.dims[view.outputs[0]] = shape
        shapes.dtypes[view.outputs[0]] = shapes.dtypes[node.outputs[0]]
        node.outputs[0].replace_all_uses_with(view.outputs[0], replace_graph_outputs=True)
        graph.remove(node, safe=True)


def drop_expansions(graph: ir.Graph, shapes: Shapes) -> None:
    """Remove each Expand whose readers broadcast anyway, as PyTorch writes for normalisations."""
    for node in list(graph):
        output = node.outputs[0]
        source = node.inputs[0] if node.inputs else None
        if node.op_type != "Expand" or source is None or output.is_graph_output():
            continue
        if len(shapes.dims.get(source, ())) != len(shapes.dims.get(output, (0,))):
            continue
        readers = [use.node for use in output.uses()]
        if all(
            reader.op_type in _BROADCASTING
            and any(
                value is not output and shapes.dims.get(value) == shapes.dims[output]  # type: ignore[arg-type]
                for value in reader.inputs
            )
            for reader in readers
        ):
            output.replace_all_uses_with(source)
            graph.remove(node, safe=True)


def fold_constants(graph: ir.Graph, shapes: Shapes) -> None:
    """Replace shape arithmetic by constants, also in reshapes."""
    for node in list(graph):
        output = node.outputs[0]
        if node.op_type == "Reshape" and node.inputs[0] is not None:
            shape = shapes.dims.get(output)
            before = shapes.dims.get(node.inputs[0])
            if shape is not None and before is not None:
                numbers = [side if isinstance(side, int) else 0 for side in shape]
                moved = [
                    i
                    for i, side in enumerate(shape)
                    if isinstance(side, Size) and not (i < len(before) and before[i] == side)
                ]
                if len(moved) <= 1 and 0 not in [s for s in shape if isinstance(s, int)]:
                    for i in moved:
                        numbers[i] = -1
                    node.attributes.pop("allowzero", None)
                    set_shape_input(graph, node, numbers)
                    shapes.constants[node.inputs[1]] = np.array(numbers, np.int64)  # type: ignore[index]
                    shapes.dims[node.inputs[1]] = (len(numbers),)  # type: ignore[index]
                    shapes.dtypes[node.inputs[1]] = ir.DataType.INT64  # type: ignore[index]
            continue
        if any(value in shapes.constants for value in node.outputs) and all(
            value in shapes.constants for value in node.outputs if value.uses()
        ):
            if any(value.is_graph_output() for value in node.outputs):
                continue
            if node.op_type in QUANTISATION:  # engines need it to compute in integers
                continue
            for value in node.outputs:
                if value.uses():
                    _replace_by_constant(graph, value, shapes)
            graph.remove(node, safe=True)


def _replace_by_constant(graph: ir.Graph, value: ir.Value, shapes: Shapes) -> None:
    array = np.array(shapes.constants[value], order="C")  # a scalar stays one
    name = f"{value.name}/folded"
    constant = ir.Value(
        name=name,
        shape=ir.Shape(array.shape),
        type=ir.TensorType(shapes.dtypes[value]),
        const_value=ir.tensor(array, name=name),
    )
    graph.register_initializer(constant)
    value.replace_all_uses_with(constant)
    shapes.constants[constant] = shapes.constants[value]
    shapes.dims[constant] = shapes.dims[value]
    shapes.dtypes[constant] = shapes.dtypes[value]
