"""Copy a part of a graph with another input, or run it as a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ..runtime.engines import cpu_session
from ..runtime.errors import EngineError, ExportError
from ..runtime.manifest import FilePrecision
from .dims import BATCH, Size, divide
from .gradient.reverse import find_path
from .shapes import Shapes
from .tensors import Tensor


def copy_between(
    nodes: Sequence[ir.Node],
    start: ir.Value,
    end: ir.Value,
    replacement: Tensor,
    shapes: Shapes,
    prefix: str,
) -> Tensor:
    """Record the part of a graph from one tensor to another once more, with another input.

    Weights are shared. The copy of a node is called ``<prefix>/<the node's name>``.

    Args:
        nodes: the forward graph, in order.
        start: the tensor that is replaced; every path to ``end`` passes it or leads from weights.
        end: the tensor to compute.
        replacement: stands for ``start``, with any batch.
        shapes: of the graph.
        prefix: of the new names.

    Returns:
        The copy of ``end``.

    Raises:
        ExportError: the part reads another tensor that depends on the image.
    """
    if start is end:
        return replacement
    recorder = replacement.recorder
    path, _ = find_path([start], end, nodes, through_shapes=True)
    # A copy has as many rows for each row of the replacement as the original for each image.
    rows = next(side for side in replacement.shape if isinstance(side, Size) and side.counts_images)
    mapping: dict[ir.Value, ir.Value] = {start: replacement.value}
    for node in path:
        inputs = []
        for value in node.inputs:
            dims = () if value is None else shapes.dims.get(value, ())
            if value in shapes.varying and value not in mapping:
                raise ExportError(
                    f"the node '{node.name}' ({node.op_type}) takes its shape from the image's, so "
                    "it cannot be run on another number of rows"
                )
            if (
                value is not None
                and value not in mapping
                and any(isinstance(s, Size) and s.counts_images for s in dims)
            ):
                raise ExportError(
                    f"the node '{node.name}' reads '{value.name}', which depends on the image but "
                    f"not through '{start.name}'"
                )
            inputs.append(value if value is None else mapping.get(value, value))
        outputs = []
        for value in node.outputs:
            copy = ir.Value(name=f"{prefix}/{value.name}", type=value.type)
            mapping[value] = copy
            outputs.append(copy)
        recorder.graph.append(
            ir.Node(
                node.domain,
                node.op_type,
                inputs,
                list(node.attributes.values()),
                outputs=outputs,
                name=f"{prefix}/{node.name}",
            )
        )
    dims = tuple(
        divide(side, BATCH) * rows if isinstance(side, Size) and side.counts_images else side
        for side in shapes.dims[end]
    )
    return Tensor(recorder, mapping[end], dims, shapes.dtypes[end])


def submodel(
    graph: ir.Graph, inputs: Sequence[ir.Value], outputs: Sequence[ir.Value], shapes: Shapes | None
) -> ir.Model:
    """Extract the part of a graph that computes some tensors from others, as a model.

    Args:
        graph: it is not changed.
        inputs: where to cut; names are kept.
        outputs: the tensors to compute.
        shapes: of the graph, for the inputs' types; None for the types in the graph.
    """
    given = set(inputs)
    needed: list[ir.Node] = []
    reached = set(outputs)
    for node in reversed(list(graph)):
        if any(value in reached and value not in given for value in node.outputs):
            needed.append(node)
            reached.update(value for value in node.inputs if value is not None)
    mapping: dict[ir.Value, ir.Value] = {}
    for value in inputs:
        kind, shape = value.type, value.shape
        if shapes is not None and value in shapes.dims:
            kind = ir.TensorType(shapes.dtypes[value])
            shape = ir.Shape([s if isinstance(s, int) else None for s in shapes.dims[value]])
        mapping[value] = ir.Value(name=value.name, type=kind, shape=shape)
    initializers = []
    for value in reached:
        if value.const_value is not None and value not in mapping and value.is_initializer():
            mapping[value] = ir.Value(
                name=value.name, type=value.type, shape=value.shape, const_value=value.const_value
            )
            initializers.append(mapping[value])
    nodes = []
    for node in reversed(needed):
        copies = [ir.Value(name=v.name, type=v.type) for v in node.outputs]
        others = [v for v in node.inputs if v is not None and v not in mapping]
        if others:
            raise ExportError(
                f"the node '{node.name}' ({node.op_type}) reads '{others[0].name}' as well, so "
                f"what follows '{inputs[0].name}' does not depend on it alone"
            )
        nodes.append(
            ir.Node(
                node.domain,
                node.op_type,
                [None if v is None else mapping[v] for v in node.inputs],
                list(node.attributes.values()),
                outputs=copies,
                name=node.name,
            )
        )
        mapping.update(zip(node.outputs, copies, strict=True))
    part = ir.Graph(
        [mapping[value] for value in inputs],
        [mapping[value] for value in outputs],
        nodes=nodes,
        initializers=initializers,
        opset_imports=dict(graph.opset_imports),
        name="part",
    )
    return ir.Model(part, ir_version=10)


def open_model_session(model: ir.Model, precision: FilePrecision, is_fused: bool = True) -> Any:
    """Open an inference session of ONNX Runtime on the CPU for a model in memory."""
    return open_session(ir.to_proto(model).SerializeToString(), precision, is_fused)


def open_session(source: str | bytes, precision: FilePrecision, is_fused: bool = True) -> Any:
    """Open an inference session of ONNX Runtime on the CPU.

    Args:
        source: a file's path or its content.
        precision: that the network computes in.
        is_fused: whether the engine may fuse operators, as it does by default.

    Raises:
        ExportError: it cannot run the graph.
    """
    try:
        return cpu_session.open_session(source, precision, "all" if is_fused else "none")
    except EngineError as error:
        raise ExportError(str(error)) from error


def run(
    graph: ir.Graph,
    feeds: Mapping[ir.Value, NDArray[Any]],
    outputs: Sequence[ir.Value],
    shapes: Shapes,
) -> list[NDArray[Any]]:
    """Compute tensors of a graph from others, in ONNX Runtime."""
    part = submodel(graph, list(feeds), outputs, shapes)
    session = open_model_session(part, shapes.precision)
    named = {str(value.name): np.ascontiguousarray(array) for value, array in feeds.items()}
    return list(session.run(None, named))
