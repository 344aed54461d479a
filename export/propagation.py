"""Infer shapes and small constants of a graph's tensors for inputs of known shapes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from ..runtime.errors import ExportError

# Larger tensors are weights: their values decide nothing about shapes.
_LARGEST_CONSTANT = 1 << 16


# ONNX infers no shape for it; the result has that of the first input.
_KEEPING_SHAPE = {"GroupNormalization"}


_POOLS = {"AveragePool", "LpPool", "MaxPool"}


_RANDOM = {"RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Multinomial"}


@dataclass(frozen=True)
class Propagation:
    """Shapes and constants for one batch size."""

    shapes: dict[ir.Value, tuple[int, ...]]
    dtypes: dict[ir.Value, ir.DataType]
    constants: dict[ir.Value, NDArray[Any]]


def propagate(
    graph: ir.Graph, inputs: Mapping[ir.Value, Sequence[int]], until: ir.Node | None = None
) -> Propagation:
    """Infer the shapes of all tensors for inputs of known shapes, in one pass.

    Args:
        graph: without subgraphs, before ``until``.
        inputs: the shapes of the graph's inputs.
        until: where to stop; None: at the end.

    Raises:
        ExportError: an operator is unknown or does not accept its inputs.
    """
    known = Propagation({}, {}, {})
    for value, shape in inputs.items():
        known.shapes[value] = tuple(shape)
        if value.dtype is not None:
            known.dtypes[value] = value.dtype
    for value in graph.initializers.values():
        tensor = value.const_value
        assert tensor is not None
        known.shapes[value] = tuple(int(side) for side in tensor.shape.numpy())
        known.dtypes[value] = tensor.dtype
        if tensor.size <= _LARGEST_CONSTANT:
            known.constants[value] = tensor.numpy()
    for node in graph:
        if node is until:
            break
        _propagate_node(node, known, graph.opset_imports)
    return known


def _propagate_node(node: ir.Node, known: Propagation, opsets: Mapping[str, int]) -> None:
    given = [value for value in node.inputs if value is not None]
    if node.op_type == "Shape" and node.domain == "" and given[0] in known.shapes:
        attributes = {name: attr.as_int() for name, attr in node.attributes.items()}
        shape = known.shapes[given[0]]
        part = shape[attributes.get("start", 0) : attributes.get("end")]
        _set_constant(node.outputs[0], np.array(part, np.int64), known)
        return
    if node.op_type == "Size" and node.domain == "" and given[0] in known.shapes:
        count = np.prod(known.shapes[given[0]], dtype=np.int64)
        _set_constant(node.outputs[0], np.asarray(count), known)
        return
    proto = ir.serde.serialize_node(node)
    if (
        node.op_type not in _RANDOM
        and all(value in known.constants for value in given)
        and (given or node.op_type == "Constant")
        and _result_is_small(node, known)
    ):
        values = {str(value.name): known.constants[value] for value in given}
        results = _evaluate(proto, values, opsets, node)
        for value, array in zip(node.outputs, results, strict=False):
            _set_constant(value, array, known)
        return
    for value, kind in zip(node.outputs, _infer_types(node, proto, known, opsets), strict=True):
        if kind is None:
            continue
        tensor = kind.tensor_type
        known.dtypes[value] = ir.DataType(tensor.elem_type)
        sides = [side.dim_value if side.HasField("dim_value") else -1 for side in tensor.shape.dim]
        if tensor.HasField("shape") and min(sides, default=0) >= 0:
            known.shapes[value] = tuple(sides)


def _result_is_small(node: ir.Node, known: Propagation) -> bool:
    if node.op_type in ("ConstantOfShape", "Expand", "Tile", "Range"):
        last = node.inputs[-1] if node.op_type != "ConstantOfShape" else node.inputs[0]
        assert last is not None
        if node.op_type == "Range":
            start, limit, delta = (known.constants[v].item() for v in node.inputs if v is not None)
            return bool(abs((limit - start) / delta) <= _LARGEST_CONSTANT)
        return bool(np.prod(known.constants[last], dtype=np.float64) <= _LARGEST_CONSTANT)
    if node.op_type == "Constant":
        attr = node.attributes.get("value")
        return attr is None or attr.as_tensor().size <= _LARGEST_CONSTANT
    return True


def _set_constant(value: ir.Value, array: Any, known: Propagation) -> None:
    array = np.asarray(array)
    known.shapes[value] = array.shape
    if array.dtype.kind in "fiub":
        known.dtypes[value] = ir.DataType.from_numpy(array.dtype)
    if array.size <= _LARGEST_CONSTANT:
        known.constants[value] = array


def _find_later_opset(node: ir.Node, version: int) -> str:
    """Say from which later opset on ONNX has an operator, if it has it at all."""
    for later in range(version + 1, onnx.defs.onnx_opset_version() + 1):
        if onnx.defs.has(node.op_type, later, node.domain):
            return f", but of {later}: a PyTorch model is translated to it with --opset {later}"
    return ""


def _infer_types(
    node: ir.Node, proto: onnx.NodeProto, known: Propagation, opsets: Mapping[str, int]
) -> list[onnx.TypeProto | None]:
    """Infer the types of a node's outputs by ONNX's rule for its operator."""
    version = opsets.get(node.domain, 1)
    try:
        schema = onnx.defs.get_schema(node.op_type, version, node.domain)
    except Exception as error:
        raise ExportError(
            f"the operator {node.domain or 'ai.onnx'}::{node.op_type} (node '{node.name}') is not "
            f"part of ONNX opset {version}{_find_later_opset(node, version)}"
        ) from error
    types, data = {}, {}
    for value in node.inputs:
        if value is None:
            continue
        dtype = known.dtypes.get(value)
        if dtype is None:
            return [None] * len(node.outputs)
        types[str(value.name)] = onnx.helper.make_tensor_type_proto(
            int(dtype), known.shapes.get(value)
        )
        if value in known.constants:
            data[str(value.name)] = onnx.numpy_helper.from_array(known.constants[value])
    if node.op_type in _KEEPING_SHAPE:
        return [types[str(node.inputs[0].name)]]  # type: ignore[union-attr]
    imports = [onnx.helper.make_opsetid(domain, number) for domain, number in opsets.items()]
    try:
        result = onnx.shape_inference.infer_node_outputs(
            schema, proto, types, data, opset_imports=imports
        )
    except Exception as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise ExportError(
            f"the node '{node.name}' ({node.op_type}) does not accept its inputs "
            f"{[known.shapes.get(v) for v in node.inputs if v is not None]}: {lines[-1].strip()}"
        ) from error
    rounding = node.attributes.get("ceil_mode")
    if node.op_type in _POOLS and rounding is not None and rounding.as_int():
        _remove_windows_in_padding(node, known, result)
    return [result.get(str(value.name)) for value in node.outputs]


def _remove_windows_in_padding(
    node: ir.Node, known: Propagation, result: Mapping[str, onnx.TypeProto]
) -> None:
    """Correct the shape of a pooling layer that rounds up, in place.

    Engines leave out a last window that would begin in the far padding; before opset 22 ONNX's rule
    counts it.
    """
    source, output = node.inputs[0], result.get(str(node.outputs[0].name))
    if source is None or output is None or source not in known.shapes:
        return
    rank = len(known.shapes[source]) - 2
    strides = node.attributes.get_ints("strides", [1] * rank)
    before = node.attributes.get_ints("pads", [0] * 2 * rank)[:rank]
    places = known.shapes[source][2:]
    for side, place, stride, padding in zip(
        output.tensor_type.shape.dim[2:], places, strides, before, strict=True
    ):
        if (side.dim_value - 1) * stride >= place + padding:
            side.dim_value -= 1


def _evaluate(
    proto: onnx.NodeProto,
    values: Mapping[str, NDArray[Any]],
    opsets: Mapping[str, int],
    node: ir.Node,
) -> list[Any]:
    from onnx.reference import ReferenceEvaluator

    quick = _evaluate_quickly(node, values)
    if quick is not None:
        return [quick]
    inputs = [
        onnx.helper.make_tensor_value_info(
            name, onnx.helper.np_dtype_to_tensor_dtype(array.dtype), array.shape
        )
        for name, array in values.items()
    ]
    outputs = [onnx.ValueInfoProto(name=name) for name in proto.output if name]
    graph = onnx.helper.make_graph([proto], "constant", inputs, outputs)
    imports = [onnx.helper.make_opsetid(domain, number) for domain, number in opsets.items()]
    try:
        model = onnx.helper.make_model(graph, opset_imports=imports)
        return list(ReferenceEvaluator(model).run(None, dict(values)))
    except Exception as error:
        raise ExportError(
            f"the node '{node.name}' ({node.op_type}) cannot be evaluated: {error}"
        ) from error


def _evaluate_quickly(node: ir.Node, values: Mapping[str, NDArray[Any]]) -> NDArray[Any] | None:
    """Evaluate the operators most common in shape arithmetic with NumPy; None for others."""
    arrays = [values[str(value.name)] for value in node.inputs if value is not None]
    if node.op_type == "Constant" and "value" in node.attributes:
        return node.attributes["value"].as_tensor().numpy()
    if node.op_type == "Identity":
        return arrays[0]
    if node.op_type == "Concat":
        return np.concatenate(arrays, axis=node.attributes["axis"].as_int())
    if node.op_type == "Unsqueeze" and len(arrays) == 2:
        return np.expand_dims(arrays[0], tuple(int(axis) for axis in arrays[1].ravel()))
    if node.op_type == "Gather":
        axis = node.attributes["axis"].as_int() if "axis" in node.attributes else 0
        return np.asarray(np.take(arrays[0], arrays[1], axis=axis))
    return None
