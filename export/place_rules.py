"""One rule for each operator: which places the elements of its result belong to."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from .place_convolution import label_added_blocks, label_depth_to_space, label_windows
from .place_operation import Operation
from .places import (
    NONE,
    Labels,
    Places,
    compact,
    contract,
    merge,
    move,
    reshape,
    spread,
    unknown,
)

Rule = Callable[[Operation], list[Places]]


def follow(operation: Operation) -> list[Places]:
    """Label the results of a node."""
    rule = RULES.get(operation.node.op_type)
    if operation.node.domain not in ("", "ai.onnx") or rule is None:
        return [unknown(len(after)) for after in operation.after]
    return rule(operation)


def _element_wise(op: Operation) -> list[Places]:
    merged = merge(op.places, len(op.after[0]))
    return [merged for _ in op.after]


def _first(op: Operation) -> list[Places]:
    """Keep the labels of the data, as normalisation does: an element stays what it is."""
    return [op.places[0] if len(after) == len(op.before[0]) else () for after in op.after]


def _reshape(op: Operation) -> list[Places]:
    return [tuple(reshape(each, op.before[0], op.after[0]) for each in op.places[0])]


def _transpose(op: Operation) -> list[Places]:
    order = op.integers("perm") or list(range(len(op.before[0])))[::-1]
    return [move(op.places[0], lambda labels: labels.transpose(order))]


def _slice(op: Operation) -> list[Places]:
    starts, ends = op.constants(1), op.constants(2)
    if starts is None or ends is None or (op.has(4) and op.constants(4) is None):
        return [unknown(len(op.after[0]))]
    axes = op.constants(3) or list(range(len(starts)))
    steps = op.constants(4) or [1] * len(starts)
    rank = len(op.before[0])
    cuts = {axis % rank: slice(_bound(a, s, 0), _bound(b, s, 1), s)
            for axis, a, b, s in zip(axes, starts, ends, steps, strict=True)}  # fmt: skip

    def cut(labels: Labels) -> Labels:
        keys = tuple(
            cuts.get(i, slice(None)) if side > 1 else slice(None)
            for i, side in enumerate(labels.shape)
        )
        return labels[keys]

    return [move(op.places[0], cut)]


def _bound(number: int, step: int, end: int) -> int | None:
    """Translate a bound of Slice to Python's, where beyond the front means no bound."""
    return None if step < 0 and end and number < -(2**31) + 1 else number


def _split(op: Operation) -> list[Places]:
    axis, start, results = op.axis(0), 0, []
    for after in op.after:
        part = slice(start, start + after[axis])
        start += after[axis]
        results.append(
            move(
                op.places[0],
                lambda labels, part=part: (  # type: ignore[misc]
                    labels[(slice(None),) * axis + (part,)] if labels.shape[axis] > 1 else labels
                ),
            )
        )
    return results


def _concat(op: Operation) -> list[Places]:
    axis, after = op.axis(0), op.after[0]
    slots = max(len(places) for places in op.places)
    results = []
    for slot in range(slots):
        parts = [
            places[slot] if slot < len(places) else np.full((1,) * len(after), NONE, np.int64)
            for places in op.places
        ]
        shape = np.broadcast_shapes(
            *([1 if i == axis else side for i, side in enumerate(part.shape)] for part in parts)
        )
        full = [
            np.broadcast_to(part, [*shape[:axis], before[axis], *shape[axis + 1 :]])
            for part, before in zip(parts, op.before, strict=True)
        ]
        results.append(compact(np.concatenate(full, axis)))
    return [tuple(results)]


def _gather(op: Operation) -> list[Places]:
    axis = op.axis(0)
    if op.places[1]:  # the indices depend on the image
        return [unknown(len(op.after[0]))]
    index = op.numbers[1]
    if index is None:
        return [unknown(len(op.after[0]))]
    rank = index.ndim

    def take(labels: Labels) -> Labels:
        if labels.shape[axis] > 1:
            return np.take(labels, index, axis)
        return reshape_axis(labels, axis, rank)

    return [move(op.places[0], take)]


def _gather_nd(op: Operation) -> list[Places]:
    """Label what an index tensor picks along the first axes, as indexing in PyTorch is written."""
    index = op.numbers[1]
    if op.places[1] or index is None or op.integer("batch_dims", 0):
        return [unknown(len(op.after[0]))]
    picked = tuple(np.moveaxis(index, -1, 0))
    return [
        move(op.places[0], lambda labels: spread(labels, op.before[0], range(len(picked)))[picked])
    ]


def reshape_axis(labels: Labels, axis: int, rank: int) -> Labels:
    """Replace an axis of length 1 by ``rank`` such axes."""
    return labels.reshape((*labels.shape[:axis], *(1,) * rank, *labels.shape[axis + 1 :]))


def _pad(op: Operation) -> list[Places]:
    pads = op.constants(1)
    rank = len(op.before[0])
    axes = op.constants(3) or list(range(rank))
    if pads is None:
        return [unknown(rank)]
    sides = [(0, 0)] * rank
    for axis, low, high in zip(axes, pads[: len(axes)], pads[len(axes) :], strict=True):
        sides[axis % rank] = (low, high)
    padded = [axis for axis, side in enumerate(sides) if side != (0, 0)]
    if any(min(side) < 0 for side in sides):
        return [unknown(rank)]

    def pad(labels: Labels) -> Labels:
        full = spread(labels, op.before[0], padded)
        return np.pad(full, sides, constant_values=NONE)

    return [move(op.places[0], pad)]


def _expand(op: Operation) -> list[Places]:
    rank = len(op.after[0])
    return [tuple(each.reshape((1,) * (rank - each.ndim) + each.shape) for each in op.places[0])]


def _tile(op: Operation) -> list[Places]:
    pairs = zip(op.before[0], op.after[0], strict=True)
    repeats = [after // before if before else 1 for before, after in pairs]

    def tile(labels: Labels) -> Labels:
        return np.tile(
            labels, [r if side > 1 else 1 for r, side in zip(repeats, labels.shape, strict=True)]
        )

    return [move(op.places[0], tile)]


def _reduce(op: Operation) -> list[Places]:
    rank = len(op.before[0])
    axes = op.integers("axes") or op.constants(1)
    if op.node.op_type.startswith("Arg"):
        axes = [op.axis(0)]
    if not axes:
        axes = [] if op.integer("noop_with_empty_axes", 0) else list(range(rank))
    gone = sorted({axis % rank for axis in axes})
    summed = contract(op.places[0], gone)
    if not op.integer("keepdims", 1):
        summed = tuple(each.squeeze(tuple(gone)) for each in summed)
    return [summed]


def _global_pool(op: Operation) -> list[Places]:
    return [contract(op.places[0], list(range(2, len(op.before[0]))))]


def product(operands: Sequence[tuple[Places, Sequence[str]]], result: Sequence[str]) -> Places:
    """Label a sum of products (Einstein's notation), each operand with the names of its axes.

    A result keeps a place that does not vary over what is summed: so attention scores times values
    belong to the place of the query. Attention reads keys and values from everywhere, so theirs
    need not be known.
    """
    aligned: list[Places] = []
    for places, names in operands:
        summed = contract(places, [i for i, name in enumerate(names) if name not in result])
        kept = [name for name in names if name in result]
        order = [kept.index(name) for name in result if name in kept]
        arranged = []
        for labels in summed:
            inner = labels.squeeze(tuple(i for i, name in enumerate(names) if name not in result))
            inner = inner.transpose(order)
            for place, name in enumerate(result):
                if name not in kept:
                    inner = np.expand_dims(inner, place)
            arranged.append(inner)
        aligned.append(tuple(arranged))
    known = [places for places in aligned if places and all((p >= NONE).all() for p in places)]
    is_attention = len(operands) == 2 and all(aligned) and len(known) == 1
    return merge(known if is_attention else aligned, len(result))


def _matmul(op: Operation) -> list[Places]:
    a, b = (len(each) for each in op.before[:2])
    lead = [f"l{i}" for i in range(max(a, b) - 2)]
    first = [*lead[len(lead) - (a - 2) :], "row", "sum"] if a > 1 else ["sum"]
    second = [*lead[len(lead) - (b - 2) :], "sum", "column"] if b > 1 else ["sum"]
    result = [*lead, *(["row"] if a > 1 else []), *(["column"] if b > 1 else [])]
    if a <= 2:
        first = first[-a:]
    if b <= 2:
        second = second[-b:]
    return [product([(op.places[0], first), (op.places[1], second)], result)]


def _gemm(op: Operation) -> list[Places]:
    first = ["sum", "row"] if op.integer("transA", 0) else ["row", "sum"]
    second = ["column", "sum"] if op.integer("transB", 0) else ["sum", "column"]
    result = product([(op.places[0], first), (op.places[1], second)], ["row", "column"])
    return [merge([result, *op.places[2:3]], 2)]


def _einsum(op: Operation) -> list[Places]:
    equation = op.node.attributes["equation"].as_string().replace(" ", "")
    if "." in equation:
        return [unknown(len(op.after[0]))]
    left, _, right = equation.partition("->")
    terms = left.split(",")
    if "->" not in equation or any(len(set(term)) < len(term) for term in terms):
        return [unknown(len(op.after[0]))]
    return [product(list(zip(op.places, terms, strict=True)), right)]


def _attention(op: Operation) -> list[Places]:
    """Label a result of attention with the places of its queries."""
    query = op.places[0]
    if len(op.before[0]) == 3:
        return [contract(query, [2]), *(unknown(len(after)) for after in op.after[1:])]
    return [contract(query, [3]), *(unknown(len(after)) for after in op.after[1:])]


def _recurrent(op: Operation) -> list[Places]:
    """Label a recurrent layer's sequence with the places of its steps; its states have none.

    X is [steps, images, features], Y [steps, directions, images, units].
    """
    if op.integer("layout", 0) or op.has(4):
        return [unknown(len(after)) for after in op.after]
    steps = move(contract(op.places[0], [2]), lambda labels: np.expand_dims(labels, 1))
    states = contract(steps, [0])
    return [steps, *(tuple(state[0] for state in states) for _ in op.after[1:])]


_ELEMENT_WISE = (
    "Abs", "Add", "And", "BitShift", "Cast", "CastLike", "Ceil", "Celu", "Clip", "Cos", "Cosh",
    "Div", "Dropout", "Elu", "Equal", "Erf", "Exp", "Floor", "Gelu", "Greater", "GreaterOrEqual",
    "HardSigmoid", "HardSwish", "Identity", "IsInf", "IsNaN", "LeakyRelu", "Less", "LessOrEqual",
    "Log", "Max", "Mean", "Min", "Mish", "Mod", "Mul", "Neg", "Not", "Or", "PRelu", "Pow",
    "Reciprocal", "Relu", "Round", "Selu", "Shrink", "Sigmoid", "Sign", "Sin", "Sinh", "Softplus",
    "Softsign", "Sqrt", "Sub", "Sum", "Swish", "Tan", "Tanh", "ThresholdedRelu", "Where", "Xor",
)  # fmt: skip
_KEEPING = (
    "BatchNormalization", "InstanceNormalization", "GroupNormalization", "LayerNormalization",
    "RMSNormalization", "LRN", "LpNormalization", "MeanVarianceNormalization", "Softmax",
    "LogSoftmax", "Hardmax", "CumSum", "QuantizeLinear", "DequantizeLinear", "Trilu",
)  # fmt: skip
_REDUCTIONS = (
    "ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL1", "ReduceL2", "ReduceLogSum",
    "ReduceLogSumExp", "ReduceProd", "ReduceSumSquare", "ArgMax", "ArgMin",
)  # fmt: skip
_WINDOWS = (
    "Conv", "ConvTranspose", "DeformConv", "MaxPool", "AveragePool", "LpPool", "Resize",
)  # fmt: skip

RULES: dict[str, Rule] = {
    **dict.fromkeys(_ELEMENT_WISE, _element_wise),
    **dict.fromkeys(_KEEPING, _first),
    **dict.fromkeys(("Reshape", "Flatten", "Squeeze", "Unsqueeze"), _reshape),
    **dict.fromkeys(_REDUCTIONS, _reduce),
    **dict.fromkeys(("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool"), _global_pool),
    **dict.fromkeys(_WINDOWS, label_windows),
    **dict.fromkeys(("DepthToSpace", "SpaceToDepth"), label_depth_to_space),
    "Transpose": _transpose,
    "Slice": _slice,
    "Split": _split,
    "Concat": _concat,
    "Gather": _gather,
    "GatherND": _gather_nd,
    "Pad": _pad,
    "Expand": _expand,
    "Tile": _tile,
    "MatMul": _matmul,
    "Gemm": _gemm,
    "Einsum": _einsum,
    "Attention": _attention,
    "Col2Im": label_added_blocks,
    **dict.fromkeys(("LSTM", "GRU", "RNN"), _recurrent),
}
