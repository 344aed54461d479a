"""Rules for operators that read windows of a feature map: which places their results belong to."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .place_operation import Operation, Sides
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
    reshape,
    spread,
    unknown,
    whole_grid,
)

# A deformable convolution belongs to the positions for which its offsets were computed, wherever it
# reads, as attention belongs to its queries.
_CONVOLUTIONS = ("Conv", "ConvTranspose", "DeformConv")


def label_windows(op: Operation) -> list[Places]:
    """Label the result of a convolution, pooling or resizing over the last two axes."""
    before, after = op.before[0], op.after[0]
    results = [_windowed(op, op.places[0], before, after)]
    return results + [unknown(len(each)) for each in op.after[1:]]


def _windowed(op: Operation, places: Places, before: Sides, after: Sides) -> Places:
    if len(before) != 4 or len(after) != 4:
        same = op.node.op_type not in _CONVOLUTIONS and before == after
        return places if same else _windowed_line(op, places, before, after)
    if after[2:] == (1, 1) and before[2:] != (1, 1):
        return contract(places, [1, 2, 3])
    mixes = op.node.op_type in _CONVOLUTIONS
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
    if kind not in (*_CONVOLUTIONS, "MaxPool", "AveragePool", "LpPool"):
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
    weight = op.before[1] if op.node.op_type in _CONVOLUTIONS else None
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


def label_depth_to_space(op: Operation) -> list[Places]:
    """Label a rearrangement of channels to positions, or back, as resizing is."""
    return [_windowed(op, contract(op.places[0], [1]), op.before[0], op.after[0])]


def label_added_blocks(op: Operation) -> list[Places]:
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
