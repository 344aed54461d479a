"""One rule for each operator: which places the elements of its result belong to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from .place_windows import Reading, covers_image, read_resized, read_transposed, read_windows
from .places import (
    IMAGES,
    NONE,
    SCRAMBLED,
    UNKNOWN,
    Labels,
    Places,
    compact,
    contract,
    decode,
    encode,
    merge,
    move,
    reshape,
    spread,
    unknown,
    whole_grid,
)

Sides = tuple[int, ...]


@dataclass(frozen=True)
class Operation:
    """A node whose results are labelled.

    Attributes:
        node: the node.
        places: of each input; empty for constants.
        before: the shape of each input, for two images.
        after: the shape of each output.
        numbers: the value of each input that is a small constant, else None.
    """

    node: ir.Node
    places: list[Places]
    before: list[Sides]
    after: list[Sides]
    numbers: list[NDArray[Any] | None]

    def integer(self, name: str, default: int) -> int:
        """Read an attribute that is a whole number."""
        attribute = self.node.attributes.get(name)
        return default if attribute is None else attribute.as_int()

    def axis(self, default: int) -> int:
        """Read the attribute ``axis``, counted from the front."""
        return self.integer("axis", default) % max(1, len(self.before[0]))

    def integers(self, name: str) -> list[int] | None:
        """Read an attribute that holds whole numbers; None if left out."""
        attribute = self.node.attributes.get(name)
        return None if attribute is None else [int(number) for number in attribute.as_ints()]

    def constants(self, index: int) -> list[int] | None:
        """Read a constant input that holds whole numbers; None if left out or not constant."""
        numbers = self.numbers[index] if index < len(self.numbers) else None
        return None if numbers is None else [int(number) for number in np.ravel(numbers)]

    def has(self, index: int) -> bool:
        """Tell whether an optional input is given."""
        return index < len(self.node.inputs) and self.node.inputs[index] is not None


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
    belong to the place of the query.
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
    return merge(aligned, len(result))


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


def _window(op: Operation) -> list[Places]:
    """Label the result of a convolution, pooling or resizing over the last two axes."""
    before, after = op.before[0], op.after[0]
    results = [_windowed(op, op.places[0], before, after)]
    return results + [unknown(len(each)) for each in op.after[1:]]


def _windowed(op: Operation, places: Places, before: Sides, after: Sides) -> Places:
    if len(before) != 4 or len(after) != 4:
        same = op.node.op_type not in ("Conv", "ConvTranspose") and before == after
        return places if same else _windowed_line(op, places, before, after)
    if after[2:] == (1, 1) and before[2:] != (1, 1):
        return contract(places, [1, 2, 3])
    mixes = op.node.op_type in ("Conv", "ConvTranspose")
    if before[2:] == after[2:] and _is_pointwise(op):
        return contract(places, [1]) if mixes else places
    if not places:
        return ()
    if len(places) > 1 or (places[0] < NONE).any():
        return unknown(4, min(UNKNOWN, *(int(labels.min()) for labels in places)))
    labels = places[0]
    if mixes:
        summed = contract(places, [1])
        known = (labels >= 0).any(1, keepdims=True)
        if not summed or ((summed[0] < 0) & known).any():
            return unknown(4, SCRAMBLED)  # what is read at one position is of several places
        labels = summed[0]
    orientation = _orientation(labels)
    if orientation in ("YX", "XY") and after[0] == IMAGES:
        axes = (2, 3) if orientation == "YX" else (3, 2)
        readings = [_read(op, axis, before[axis], after[axis]) for axis in axes]
        if covers_image(spread(labels, before, (2, 3)), readings, axes):
            rows, columns = (after[axis] for axis in axes)
            return (whole_grid("BCYX" if axes == (2, 3) else "BCXY", rows, columns),)
    if before[2:] == after[2:] and orientation is not None:
        return (labels,)
    blocks = _blocks(labels, after) if orientation == "mixed" else None
    return (blocks,) if blocks is not None else unknown(4, SCRAMBLED)


def _read(op: Operation, axis: int, before: int, after: int) -> Reading:
    """Describe what an operator reads along one of the last two axes."""
    kind, index = op.node.op_type, axis - 2
    if kind not in ("Conv", "ConvTranspose", "MaxPool", "AveragePool", "LpPool"):
        return read_resized(before, after)
    sides = op.integers("kernel_shape") or list(op.before[1][2:])
    strides, dilations = op.integers("strides") or [1, 1], op.integers("dilations") or [1, 1]
    pads = op.integers("pads") or [0] * 4
    attribute = op.node.attributes.get("auto_pad")
    automatic = attribute is not None and attribute.as_string().startswith("SAME")
    kernel, stride, dilation = sides[index], strides[index], dilations[index]
    if kind == "ConvTranspose":
        return read_transposed(after, kernel, stride, dilation, pads[index])
    return read_windows(before, after, kernel, stride, dilation, None if automatic else pads[index])


def _windowed_line(op: Operation, places: Places, before: Sides, after: Sides) -> Places:
    """Label the result over one axis or over three."""
    if len(before) == len(after) and before[2:] == after[2:] and _is_pointwise(op):
        return contract(places, [1])
    if max(after[2:], default=1) == 1:
        return contract(places, list(range(1, len(before))))
    return unknown(len(after), SCRAMBLED)


def _is_pointwise(op: Operation) -> bool:
    """Tell whether an operator reads one position for each of its results."""
    if op.node.op_type == "Resize":
        return True  # of the same size
    weight = op.before[1] if op.node.op_type in ("Conv", "ConvTranspose") else None
    kernel = op.integers("kernel_shape") or (list(weight[2:]) if weight is not None else [])
    return all(side == 1 for side in kernel)


def _orientation(labels: Labels) -> str | None:
    """Find which of the last two axes are rows and columns of the image.

    Returns:
        ``YX`` or ``XY`` where rows and columns follow each other as in the image; ``mixed`` where
        each axis holds rows or columns in another order (windows, flips); None elsewhere.
    """
    if labels.shape[1] > 1:
        return None
    known = labels >= 0
    _, _, _, y, x = decode(labels)
    for name, rows, columns in (("YX", 2, 3), ("XY", 3, 2)):
        along_rows = _along(y, known, rows)
        along_columns = _along(x, known, columns)
        if along_rows is None or along_columns is None:
            continue
        in_order = all(
            (np.diff(line, axis=axis) >= 0).all() and labels.shape[0] in (1, IMAGES)
            for line, axis in ((along_rows, rows), (along_columns, columns))
        )
        return name if in_order else "mixed"
    return None


def _blocks(labels: Labels, after: Sides) -> Labels | None:
    """Label what a convolution makes of several blocks of each image.

    A block is the whole image for each head of attention, or one of equal parts of it.

    Args:
        labels: [R, 1, h, w] for R blocks.
        after: the result's shape, with R' x C x h' x w'.

    Returns:
        [R, 1, h', w']; None if a block holds several images, or its places are not in order.
    """
    height, width, image, y, x = decode(labels)
    if (labels < 0).any() or height.min() != height.max() or width.min() != width.max():
        return None
    first = image.min((2, 3), keepdims=True)
    rows = _block_along(y, int(height.max()), 2, after[2])
    columns = _block_along(x, int(width.max()), 3, after[3])
    if (image != first).any() or rows is None or columns is None:
        return None
    return compact(encode(np.int64(rows[1]), np.int64(columns[1]), first, rows[0], columns[0]))


def _block_along(part: Labels, side: int, axis: int, after: int) -> tuple[Labels, int] | None:
    """Compute a coordinate in the result of each block, and the grid's length there."""
    line = _along(part, np.ones(part.shape, bool), axis)
    length = part.shape[axis]
    if line is None or side % length:
        return None
    start = line.take([0], axis)
    steps = np.arange(max(length, after)).reshape((1,) * axis + (-1,) + (1,) * (3 - axis))
    if (start % length).any() or (line != start + steps.take(range(length), axis)).any():
        return None
    return start // length * after + steps.take(range(after), axis), side // length * after


def _along(part: Labels, known: NDArray[np.bool_], axis: int) -> Labels | None:
    """Return a coordinate as a function of one axis; None if it varies along the other one.

    Unlabelled borders, of padding, take the nearest value.
    """
    other = 5 - axis
    low = np.where(known, part, 2**20).min(other, keepdims=True)
    high = np.where(known, part, -1).max(other, keepdims=True)
    empty = high < 0
    if (low != high)[~empty].any():
        return None
    line: Labels = high
    for index in range(1, line.shape[axis]):
        here = np.take(line, [index], axis)
        previous = np.take(line, [index - 1], axis)
        key = (slice(None),) * axis + (slice(index, index + 1),)
        line[key] = np.where(here < 0, previous, here)
    return line


def _depth_to_space(op: Operation) -> list[Places]:
    return [_windowed(op, contract(op.places[0], [1]), op.before[0], op.after[0])]


def _fold(op: Operation) -> list[Places]:
    """Label what Col2Im adds up: [N, C k k, L] for L blocks, in rows, to [N, C, H, W]."""
    after, block = op.after[0], op.constants(2)
    labels = contract(op.places[0], [1])
    if block is None or len(after) != 4 or after[0] != IMAGES or len(labels) != 1:
        return [unknown(len(after))]
    strides, dilations = op.integers("strides") or [1, 1], op.integers("dilations") or [1, 1]
    pads = op.integers("pads") or [0] * 4
    counts = [
        (after[i + 2] + pads[i] + pads[i + 2] - dilations[i] * (block[i] - 1) - 1) // strides[i] + 1
        for i in (0, 1)
    ]
    before = (after[0], 1, *counts)
    grid = reshape(labels[0], (op.before[0][0], 1, op.before[0][2]), before)
    readings = [
        read_transposed(after[i + 2], block[i], strides[i], dilations[i], pads[i]) for i in (0, 1)
    ]
    if _orientation(grid) == "YX" and covers_image(spread(grid, before, (2, 3)), readings, (2, 3)):
        return [(whole_grid("BCYX", after[2], after[3]),)]
    return [unknown(len(after), SCRAMBLED)]


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
_WINDOWS = ("Conv", "ConvTranspose", "MaxPool", "AveragePool", "LpPool", "Resize")

RULES: dict[str, Rule] = {
    **dict.fromkeys(_ELEMENT_WISE, _element_wise),
    **dict.fromkeys(_KEEPING, _first),
    **dict.fromkeys(("Reshape", "Flatten", "Squeeze", "Unsqueeze"), _reshape),
    **dict.fromkeys(_REDUCTIONS, _reduce),
    **dict.fromkeys(("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool"), _global_pool),
    **dict.fromkeys(_WINDOWS, _window),
    **dict.fromkeys(("DepthToSpace", "SpaceToDepth"), _depth_to_space),
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
    "Col2Im": _fold,
}
