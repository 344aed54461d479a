"""Read an ONNX classifier of any origin and normalise its graph, so that the export can rely on it.

A plain model has one graph without functions or subgraphs, opset 18 or later, initializers that are
not inputs, one image input with a free batch, and constants in place of shape arithmetic. Its float
operations are neither changed nor fused.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from string import ascii_lowercase

import numpy as np
import onnx
import onnx_ir as ir
import onnx_ir.passes.common as passes

from ..runtime.errors import ExportError, ModelFileError, reason_of
from ..runtime.input_format import Layout
from .dims import Dim, Size, dim_text, product
from .input_geometry import read_geometry
from .input_sizes import InputSizes, find_input_sizes
from .shapes import Shapes, find_shapes, propagate

LEAST_OPSET = 18
_LEAST_QUANTISED_OPSET = 19  # the oldest whose quantisation ONNX's reference evaluator knows
_QUANTISATION = {"QuantizeLinear", "DequantizeLinear"}
_DOMAINS = {"", "ai.onnx"}
_INTEGER_OPERATORS = {"QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger"}
_BROADCASTING = {"Add", "Sub", "Mul", "Div", "Max", "Min"}
_IMAGE_TYPES = {ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.UINT8}
_LARGEST_FILE = 2**31 - 2**20


@dataclass(frozen=True)
class PlainModel:
    """A classifier in plain form.

    Attributes:
        model: its graph and opset; changed in place by those who add to it.
        image: the graph input that takes images.
        size: (H, W) of the images; the usual one where it is free.
        channels: C of the images.
        layout: ``NCHW`` or ``NHWC``.
        shapes: of every tensor.
        metadata: of the file, as its exporter wrote it.
        changes: to the file's interface, for the user to read.
        sizes: the heights and widths that it takes; None where these are fixed.
    """

    model: ir.Model
    image: ir.Value
    size: tuple[int, int]
    channels: int
    layout: Layout
    shapes: Shapes
    metadata: dict[str, str]
    changes: tuple[str, ...]
    sizes: InputSizes | None = None

    @property
    def input_dims(self) -> tuple[Dim, Dim]:
        """Height and width of the images."""
        return self.size if self.sizes is None else self.sizes.dims

    @property
    def graph(self) -> ir.Graph:
        """The model's one graph."""
        return self.model.graph


def read_onnx_file(path: str | os.PathLike[str]) -> ir.Model:
    """Load an ONNX file with its weights, and refuse files that cannot be explained.

    Raises:
        ModelFileError: the file is missing, damaged, or no ONNX model.
        ExportError: it holds operators of vendors, integer arithmetic, or more than 2 GiB.
    """
    name = Path(path)
    try:
        if name.stat().st_size == 0:
            raise ModelFileError(f"{name} is empty")
        proto = onnx.load(os.fspath(name))
        if not proto.graph.node:
            raise ModelFileError(f"{name} is not an ONNX model: its graph has no operators")
        if not all(isinstance(each, str) for each in _names(proto.graph)):
            raise ModelFileError(f"{name} is damaged: it has names that are not text")
    except OSError as error:
        raise ModelFileError(f"cannot read {name}: {error.strerror or error}") from error
    except ModelFileError:
        raise
    except Exception as error:
        raise ModelFileError(f"{name} is not a readable ONNX file: {reason_of(error)}") from error
    try:
        model = ir.from_proto(_upgrade(proto))
        _check_content(model)
        return model
    except ExportError:
        raise
    except Exception as error:
        raise ModelFileError(f"{name} is not a valid ONNX model: {reason_of(error)}") from error


def _names(graph: onnx.GraphProto) -> Iterator[str | bytes]:
    """List all names of a graph; protobuf returns those that are not UTF-8 as bytes."""
    yield graph.name
    for each in (*graph.input, *graph.output, *graph.initializer, *graph.value_info):
        yield each.name
    for node in graph.node:
        yield from (node.name, node.op_type, node.domain, *node.input, *node.output)
        yield from (attribute.name for attribute in node.attribute)


def _check_content(model: ir.Model) -> None:
    """Serialise every node and read every weight once, which raises where they are damaged."""
    for node in model.graph.all_nodes():
        ir.serde.serialize_node(node)
    for value in model.graph.initializers.values():
        if value.const_value is not None:
            value.const_value.numpy()


def _upgrade(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Convert a model to opset 18 or later; to 19 or later where it is quantised."""
    if proto.ByteSize() > _LARGEST_FILE:
        raise ExportError(
            f"the model has {proto.ByteSize() / 2**30:.1f} GiB of weights; an ONNX file holds 2 GiB"
        )
    version = next((each.version for each in proto.opset_import if each.domain in _DOMAINS), 0)
    is_quantised = any(node.op_type in _QUANTISATION for node in proto.graph.node)
    least = _LEAST_QUANTISED_OPSET if is_quantised else LEAST_OPSET
    if version >= least:
        return proto
    if version < 7:
        raise ExportError(f"ONNX opset {version} is older than what can be converted (7)")
    # The converter expects old files to declare initializers as inputs.
    try:
        if proto.ir_version < 4:
            _declare_initializers(proto)
        return onnx.version_converter.convert_version(proto, least)
    except Exception as error:
        raise ExportError(
            f"ONNX's version converter cannot bring the file from opset {version} to "
            f"{least}: {reason_of(error)}. Exporting it again with opset 13 or later may help"
        ) from error


def _declare_initializers(proto: onnx.ModelProto) -> None:
    declared = {each.name for each in proto.graph.input}
    for tensor in proto.graph.initializer:
        if tensor.name not in declared:
            kind = onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            proto.graph.input.append(kind)


def to_plain(
    model: ir.Model,
    image_size: tuple[int, int] | None = None,
    layout: str | None = None,
    metadata: dict[str, str] | None = None,
    dynamic_size: tuple[int, int] | None = None,
    channels: int | None = None,
) -> PlainModel:
    """Normalise a model to plain form, in place.

    Args:
        model: from ``read_onnx_file`` or PyTorch's exporter.
        image_size: (H, W), for files whose height and width are free.
        layout: of the image input, ``NCHW`` or ``NHWC``; by default as the graph reads it.
        metadata: of the file.
        dynamic_size: the least and largest height or width, to keep these free.
        channels: of the image input, for files that leave them free.

    Raises:
        ExportError: it cannot be explained, because of operators outside ONNX, several inputs,
            control flow, or shapes that depend on the data.
    """
    changes: list[str] = []
    passes.InlinePass()(model)
    passes.RemoveInitializersFromInputsPass()(model)
    passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    graph = model.graph
    _normalise_domains(model)
    _check_operators(graph)
    _name_nodes(graph)
    image = _image_input(graph)
    channels, size, layout, batch = read_geometry(image, image_size, layout, channels)
    inner = (channels, *size) if layout == "NCHW" else (*size, channels)
    free = _free_sizes(image, size, batch, dynamic_size)
    _resolve_conditions(
        graph,
        image,
        [
            (batch or 2, *((channels, *each) if layout == "NCHW" else (*each, channels)))
            for each in free
        ],
    )
    passes.RemoveUnusedNodesPass()(model)
    sizes: InputSizes | None = None
    dims: tuple[Dim, ...] = inner
    if dynamic_size is not None:
        sizes = find_input_sizes(graph, image, channels, layout, size, dynamic_size)
        dims = (channels, *sizes.dims) if layout == "NCHW" else (*sizes.dims, channels)
    if batch is not None:
        _free_batch(graph, image, batch, inner)
        changes.append(f"its batch size was fixed at {batch}; now it is free")
    image.shape = ir.Shape(["N", *map(dim_text, dims)])
    if sizes is None:
        shapes = find_shapes(graph, {image: dims})
    else:
        shapes = replace(
            find_shapes(graph, {image: dims}, sizes.probes), one=sizes.one, largest=sizes.largest
        )
    _drop_strided_views(graph, shapes)
    _drop_expansions(graph, shapes)
    _fold_constants(graph, shapes)
    passes.RemoveUnusedNodesPass()(model)
    for value in graph.outputs:
        if value in shapes.dims:
            value.shape = ir.Shape([dim_text(side) for side in shapes.dims[value]])
    return PlainModel(
        model,
        image,
        size,
        channels,
        "NHWC" if layout == "NHWC" else "NCHW",
        shapes,
        dict(metadata or {}),
        tuple(changes),
        sizes,
    )


def _free_sizes(
    image: ir.Value,
    usual: tuple[int, int],
    batch: int | None,
    limits: tuple[int, int] | None,
) -> list[tuple[int, int]]:
    """List the sizes at which a graph's conditions must agree.

    Raises:
        ExportError: the file fixes its batch or its size, though any size was asked for.
    """
    if limits is None:
        return [usual]
    assert image.shape is not None
    fixed = [side for side in list(image.shape)[1:] if isinstance(side, int) and side > 0]
    if batch is not None or len(fixed) > 1:
        raise ExportError(
            f"the input '{image.name}' {image.shape} fixes its {'batch' if batch else 'size'}: "
            "--dynamic-size needs a file whose batch, height and width are all free"
        )
    return [usual, (limits[0], limits[0]), (limits[1], limits[1])]


def _normalise_domains(model: ir.Model) -> None:
    for node in model.graph.all_nodes():
        if node.domain == "ai.onnx":
            node.domain = ""
        if node.op_type == "Einsum" and "equation" in node.attributes:
            equation = rename_einsum_indices(node.attributes["equation"].as_string())
            node.attributes["equation"] = ir.AttrString("equation", equation)
    imports = model.graph.opset_imports
    if "ai.onnx" in imports:
        imports[""] = imports.pop("ai.onnx")


def rename_einsum_indices(equation: str) -> str:
    """Rename the indices of an Einsum equation to a, b, c .., as TensorRT requires.

    An equation of more than 26 indices stays as it is.
    """
    indices = dict.fromkeys(letter for letter in equation if letter.isalpha())
    if len(indices) > len(ascii_lowercase):
        return equation
    renamed = dict(zip(indices, ascii_lowercase, strict=False))
    return "".join(renamed.get(letter, letter) for letter in equation)


def _check_operators(graph: ir.Graph) -> None:
    for node in graph.all_nodes():
        if node.domain not in _DOMAINS:
            raise ExportError(
                f"the node '{node.name}' is {node.domain}::{node.op_type}, an operator of a "
                "vendor, not of ONNX. Such files come from an optimiser that works for one engine: "
                "explain the file as it was before that step"
            )
        if node.op_type in _INTEGER_OPERATORS:
            raise ExportError(
                f"the node '{node.name}' ({node.op_type}) computes in integers, which have no "
                "gradient. Quantise in the QDQ format instead, or explain the float file and "
                "quantise it with: whycam calibrate int8"
            )


def _name_nodes(graph: ir.Graph) -> None:
    """Give every node and value a unique name that does not begin with ``whycam/``."""
    taken: set[str] = set()
    for index, node in enumerate(graph):
        name = node.name or f"{node.op_type}_{index}"
        while name in taken or name.startswith("whycam/"):
            name = f"n/{name}"
        node.name = name
        taken.add(name)
        for output in node.outputs:
            if output.name and output.name.startswith("whycam/") and not output.is_graph_output():
                output.name = f"n/{output.name}"
    for value in list(graph.initializers.values()):
        if value.name and value.name.startswith("whycam/"):
            value.name = f"n/{value.name}"


def _image_input(graph: ir.Graph) -> ir.Value:
    used = [value for value in graph.inputs if value.uses()]
    if len(used) == 1 and used[0].shape is not None and len(used[0].shape) == 4:
        value = used[0]
        if value.dtype not in _IMAGE_TYPES:
            raise ExportError(
                f"the input '{value.name}' has elements of type {value.dtype}; images are float32, "
                "float16 or uint8"
            )
        return value
    listed = ", ".join(f"'{value.name}' {value.shape}" for value in used) or "none"
    raise ExportError(
        "an image classifier has one input of four axes (batch, channels, height, width); this one "
        f"has: {listed}"
    )


def _resolve_conditions(
    graph: ir.Graph, image: ir.Value, shapes: Sequence[tuple[int, ...]]
) -> None:
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


def _free_batch(graph: ir.Graph, image: ir.Value, batch: int, inner: tuple[int, ...]) -> None:
    """Let a file with a fixed batch take any, by removing the batch from its reshapes."""
    known = propagate(graph, {image: (batch, *inner)})
    depends = {image}
    for node in graph:
        if any(value in depends for value in node.inputs):
            depends.update(node.outputs)
        if node.op_type != "Reshape" or node.inputs[0] not in depends:
            continue
        shape = known.shapes.get(node.outputs[0])
        if shape is None or node.inputs[1] not in known.constants:
            continue
        _set_shape_input(graph, node, [-1, *shape[1:]])


def _set_shape_input(graph: ir.Graph, node: ir.Node, shape: Sequence[int]) -> None:
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


def _drop_strided_views(graph: ir.Graph, shapes: Shapes) -> None:
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


def _drop_expansions(graph: ir.Graph, shapes: Shapes) -> None:
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


def _fold_constants(graph: ir.Graph, shapes: Shapes) -> None:
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
                    _set_shape_input(graph, node, numbers)
                    shapes.constants[node.inputs[1]] = np.array(numbers, np.int64)  # type: ignore[index]
                    shapes.dims[node.inputs[1]] = (len(numbers),)  # type: ignore[index]
                    shapes.dtypes[node.inputs[1]] = ir.DataType.INT64  # type: ignore[index]
            continue
        if any(value in shapes.constants for value in node.outputs) and all(
            value in shapes.constants for value in node.outputs if value.uses()
        ):
            if any(value.is_graph_output() for value in node.outputs):
                continue
            if node.op_type in _QUANTISATION:  # engines need it to compute in integers
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
