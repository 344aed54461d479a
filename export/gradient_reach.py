"""Find which elements of a tensor the class scores have a gradient with respect to.

This is decided from the structure of the graph and not from numbers: behind a vision transformer's
last attention only the class token is read, so the other tokens' gradient is zero whatever the
image. Sets of elements are boolean arrays of the tensor's rank for a batch of two images; an axis
along which they do not vary has length 1. Where an operator has no rule, all elements count.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from .place_flow import describe
from .place_operation import Operation, Sides
from .place_rules import RULES
from .places import Places
from .shapes import Shapes

Reach = NDArray[np.bool_]

_MOVEMENT = {
    "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Slice", "Split", "Concat", "Gather",
    "GatherND", "Pad", "Expand", "Tile",
}  # fmt: skip
_SELECTING = {"Slice", "Gather", "GatherND", "Split", "Concat"}
# A small change of the input changes nothing.
_CONSTANT = {
    "Shape", "Size", "ArgMax", "ArgMin", "Equal", "Greater", "GreaterOrEqual", "Less",
    "LessOrEqual", "Not", "And", "Or", "Xor", "Round", "Floor", "Ceil", "Sign", "IsNaN", "IsInf",
}  # fmt: skip
_ALONG_ONE = {"Softmax", "LogSoftmax", "LpNormalization"}
_ALONG_REST = {"LayerNormalization", "RMSNormalization"}


def find_reach(nodes: Sequence[ir.Node], logits: ir.Value, shapes: Shapes) -> dict[ir.Value, Reach]:
    """Find the elements of each tensor on which the scores depend; tensors without any are absent.

    Args:
        nodes: on the paths from the image to the logits, in order.
        logits: where they end.
        shapes: of all tensors.
    """
    reach: dict[ir.Value, Reach] = {logits: np.ones((1,) * len(shapes.dims[logits]), bool)}
    for node in reversed(nodes):
        outputs = [reach.get(value) for value in node.outputs]
        if all(output is None for output in outputs) or node.op_type in _CONSTANT:
            continue
        operation = describe(node, {}, shapes)
        if operation is None:
            inputs: list[Reach | None] = [
                np.ones((1,) * len(shapes.dims.get(value, ())), bool) if value is not None else None
                for value in node.inputs
            ]
        else:
            inputs = _inputs_of(operation, outputs)
        for value, needed in zip(node.inputs, inputs, strict=True):
            if value is None or needed is None or not needed.any():
                continue
            before = reach.get(value)
            reach[value] = needed if before is None else _join(before, needed)
    return reach


def _join(one: Reach, other: Reach) -> Reach:
    if one.all():
        return one
    return _compact(one | other)


def _compact(reach: Reach) -> Reach:
    return np.ones((1,) * reach.ndim, bool) if reach.all() else reach


def _inputs_of(op: Operation, outputs: Sequence[Reach | None]) -> list[Reach | None]:
    kind = op.node.op_type
    whole = [np.ones((1,) * len(before), bool) for before in op.before]
    if kind in _MOVEMENT:
        return _moved(op, outputs)
    first = outputs[0]
    if first is None or first.size == 1:
        return list(whole)
    if kind in _ALONG_ONE | _ALONG_REST:
        axis = op.axis(-1)
        axes = (axis,) if kind in _ALONG_ONE else tuple(range(axis, first.ndim))
        return [_any(first, axes), *whole[1:]]
    if kind in ("MatMul", "Gemm", "Einsum"):
        return _product_inputs(op, first)
    if kind == "Attention":
        if len(op.before[0]) == len(op.after[0]):
            return [_any(first, -1), *whole[1:]]
        return list(whole)
    if kind == "BatchNormalization" or (
        kind in RULES and RULES[kind] is RULES["Add"]
    ):  # element by element
        return [_unbroadcast(first, len(before), before) for before in op.before]
    if kind.startswith("Reduce"):
        return [_unreduced(op, first), *whole[1:]]
    return list(whole)


def _any(reach: Reach, axes: int | tuple[int, ...]) -> Reach:
    result: Reach = np.any(reach, axes, keepdims=True)
    return result


def _unbroadcast(reach: Reach, rank: int, before: Sides) -> Reach:
    lead = tuple(range(reach.ndim - rank))
    inner: Reach = np.any(reach, lead) if lead else reach
    axes = tuple(i for i, side in enumerate(before) if side == 1 and inner.shape[i] > 1)
    return _any(inner, axes) if axes else inner


def _unreduced(op: Operation, reach: Reach) -> Reach:
    rank = len(op.before[0])
    if reach.ndim == rank:
        return reach
    axes = op.integers("axes") or op.constants(1) or list(range(rank))
    return np.expand_dims(reach, tuple(sorted({axis % rank for axis in axes})))


def _product_inputs(op: Operation, reach: Reach) -> list[Reach | None]:
    """Of an operand of a product, all elements that are summed into a needed result count."""
    whole: list[Reach | None] = [np.ones((1,) * len(before), bool) for before in op.before]
    if op.node.op_type == "MatMul" and len(op.before[0]) == len(op.before[1]) == reach.ndim:
        rows, columns = _any(reach, -1), _any(reach, -2)
        return [
            _unbroadcast(rows, reach.ndim, (*op.before[0][:-1], 2)),
            _unbroadcast(columns, reach.ndim, (*op.before[1][:-2], 2, op.before[1][-1])),
        ]
    if op.node.op_type == "MatMul" and len(op.before[1]) == 2 and reach.ndim == len(op.before[0]):
        return [_any(reach, -1), whole[1]]
    if op.node.op_type == "Gemm" and not op.integer("transA", 0):
        return [_any(reach, -1), *whole[1:]]
    return whole


def _moved(op: Operation, outputs: Sequence[Reach | None]) -> list[Reach | None]:
    """Move the needed elements back: their numbers are moved as the data is."""
    is_whole = all(output is None or (output.size == 1 and output.all()) for output in outputs)
    if is_whole and op.node.op_type not in _SELECTING:
        return [np.ones((1,) * len(before), bool) for before in op.before]
    sides = _relevant(op, outputs)
    data = range(len(op.before)) if op.node.op_type == "Concat" else range(1)
    numbers, start = [], 0
    for index in data:
        count = int(np.prod(sides[index]))
        numbers.append(np.arange(start, start + count, dtype=np.int64).reshape(sides[index]))
        start += count
    places: list[Places] = [
        (numbers[index],) if index in data else () for index in range(len(op.before))
    ]
    moved = RULES[op.node.op_type](Operation(op.node, places, op.before, op.after, op.numbers))
    needed = np.zeros(start, bool)
    for output, result in zip(outputs, moved, strict=True):
        if output is None or not result:
            continue
        labels, marks = np.broadcast_arrays(result[0], output)
        chosen = labels[marks]
        needed[chosen[chosen >= 0]] = True
    inputs: list[Reach | None] = [None] * len(op.before)
    for index, ids in zip(data, numbers, strict=True):
        part = needed[ids]
        inputs[index] = _compact(part) if part.any() else None
    return inputs


def _relevant(op: Operation, outputs: Sequence[Reach | None]) -> list[Sides]:
    """Choose the axes to write out: all but the last where nothing varies along it."""
    kinds = ("Slice", "Gather", "Split", "Concat", "Pad")
    last = all(output is None or output.shape[-1] == 1 for output in outputs)
    axis = op.axis(0) if op.node.op_type in ("Gather", "Split", "Concat") else None
    results = []
    for before in op.before:
        keeps = op.node.op_type in kinds and last and len(before) == len(op.after[0]) > 1
        keeps = keeps and before[-1:] == op.after[0][-1:] and axis != len(before) - 1
        results.append((*before[:-1], 1) if keeps else before)
    return results
