"""Represent which place of the image each element of a tensor belongs to, exactly.

A label is an integer for each element: cell (y, x) of a grid of h x w cells that covers image n of
two, or one of the negative numbers below. Data movement (reshapes, transposes, windows, cyclic
shifts, concatenated class tokens) moves labels as it moves elements, so an arrangement of tokens is
proved and not guessed from shapes. An array of labels has its tensor's rank; an axis along which
labels do not vary has length 1.

An element may hold two places, as attention scores do: that of the query and that of the key. So a
tensor has a tuple of such arrays, which is empty where it depends on no place in particular.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from ..runtime.errors import ExportError

Labels = NDArray[np.int64]
Places = tuple[Labels, ...]

# Of no place: class tokens, constants, what was summed over many places.
NONE = -1
# It is not known which.
UNKNOWN = -2
# Known to be no arrangement over which a convolution makes sense.
SCRAMBLED = -3
IMAGES = 2
_BITS = 14
_LARGEST = 2**_BITS - 1
_MASK = _LARGEST
_MOST = 2


def unknown(rank: int, label: int = UNKNOWN) -> Places:
    """Label all elements of a tensor with one of the negative numbers."""
    return (np.full((1,) * rank, label, np.int64),)


@lru_cache(maxsize=256)
def whole_grid(axes: str, height: int, width: int) -> Labels:
    """Label a feature map whose axes are B, Y, X and C, in any order, in the order of the image.

    Raises:
        ExportError: more than 16383 rows or columns.
    """
    if max(height, width) > _LARGEST:
        raise ExportError(
            f"a feature map of {height} x {width} has more than {_LARGEST} rows or columns, beyond "
            "which places are not followed: choose a smaller --image-size"
        )
    n, y, x = np.ogrid[:IMAGES, :height, :width]
    labels = encode(np.int64(height), np.int64(width), n, y, x)
    labels = labels.transpose(["BYX".index(axis) for axis in axes if axis != "C"])
    if "C" in axes:
        labels = np.expand_dims(labels, axes.index("C"))
    labels = np.ascontiguousarray(labels)
    labels.setflags(write=False)
    return labels


def encode(height: Labels, width: Labels, image: Labels, y: Labels, x: Labels) -> Labels:
    """Pack a grid, an image and a cell into one number."""
    packed = (height << _BITS) | width
    packed = (packed << 1) | image
    return (((packed << _BITS) | y) << _BITS) | x


def decode(labels: Labels) -> tuple[Labels, Labels, Labels, Labels, Labels]:
    """Unpack (height, width, image, y, x) of labels of places."""
    x = labels & _MASK
    y = (labels >> _BITS) & _MASK
    image = (labels >> (2 * _BITS)) & 1
    width = (labels >> (2 * _BITS + 1)) & _MASK
    return labels >> (3 * _BITS + 1), width, image, y, x


def compact(labels: Labels) -> Labels:
    """Give axes along which labels do not vary length 1."""
    for axis, side in enumerate(labels.shape):
        if side > 1:
            first = labels.take([0], axis)
            if np.array_equal(labels, np.broadcast_to(first, labels.shape)):
                labels = first
    return labels


def spread(labels: Labels, dims: Sequence[int], axes: Sequence[int]) -> Labels:
    """Give axes of compact labels their full length."""
    shape = [dims[i] if i in axes else side for i, side in enumerate(labels.shape)]
    return np.broadcast_to(labels, shape)


def move(places: Places, function: Callable[[Labels], Labels]) -> Places:
    """Apply data movement to labels."""
    return tuple(compact(function(labels)) for labels in places)


def reshape(labels: Labels, before: Sequence[int], after: Sequence[int]) -> Labels:
    """Reshape labels as their tensor is; only axes that are split or joined are written out."""
    shape: list[int] = []
    source = list(labels.shape)
    i = j = 0
    while i < len(before) or j < len(after):
        start, stop = i, j
        left = right = 1
        while True:
            if left == right and i > start and j > stop:
                break
            if left <= right and i < len(before):
                left *= before[i]
                i += 1
            elif j < len(after):
                right *= after[j]
                j += 1
            else:
                break
        varies = any(labels.shape[axis] > 1 for axis in range(start, i))
        for axis in range(start, i):
            source[axis] = before[axis] if varies else 1
        shape.extend(after[stop:j] if varies else [1] * (j - stop))
    return compact(np.broadcast_to(labels, source).reshape(shape))


def contract(places: Places, axes: Sequence[int]) -> Places:
    """Sum over axes, which stay with length 1.

    Of elements of one place, the sum is of that place; of the places of one cell of a coarser grid,
    that cell's (patch merging, pooling); of others, of none.
    """
    results = []
    for labels in places:
        varying = tuple(axis for axis in axes if labels.shape[axis] > 1)
        summed = _contract_labels(labels, varying) if varying else labels
        if summed.size != 1 or summed.flat[0] != NONE:
            results.append(summed)
    return tuple(results)


def _contract_labels(labels: Labels, axes: tuple[int, ...]) -> Labels:
    worst = labels.min(axes, keepdims=True)
    known = labels >= 0
    low = np.where(known, labels, np.iinfo(np.int64).max).min(axes, keepdims=True)
    high = np.where(known, labels, NONE).max(axes, keepdims=True)
    result = np.where(low == high, high, NONE)
    mixed = (low != high) & (high >= 0)
    if mixed.any():
        cells = _coarser(labels, known, mixed, axes)
        if cells is not None:
            result = np.where(mixed, cells, result)
    return compact(np.where(worst < NONE, worst, result))


def _coarser(
    labels: Labels, known: NDArray[np.bool_], mixed: NDArray[np.bool_], axes: tuple[int, ...]
) -> Labels | None:
    """Find the cells of a coarser grid that hold the summed places; None if there is no such."""
    parts = decode(labels)
    far = np.int64(2**40)
    low = [np.where(known, part, far).min(axes, keepdims=True) for part in parts]
    high = [np.where(known, part, -1).max(axes, keepdims=True) for part in parts]
    if any((low[i] != high[i])[mixed].any() for i in range(3)):
        return None
    height, width = low[0][mixed], low[1][mixed]
    if height.min() != height.max() or width.min() != width.max():
        return None
    h, w = int(height[0]), int(width[0])
    rows, columns = (int((high[i] - low[i])[mixed].max()) + 1 for i in (3, 4))
    if (rows, columns) == (h, w) or h % rows or w % columns:
        return None
    inside = (low[3] // rows == high[3] // rows) & (low[4] // columns == high[4] // columns)
    if not inside[mixed].all():
        return None
    return encode(
        np.int64(h // rows),
        np.int64(w // columns),
        np.where(mixed, low[2], 0),
        np.where(mixed, low[3] // rows, 0),
        np.where(mixed, low[4] // columns, 0),
    )


def merge(operands: Sequence[Places], rank: int) -> Places:
    """Label the result of operands that broadcast against each other, element by element.

    Elements that hold more than two places, as sums of shifted copies do, are of none.
    """
    merged: list[Labels] = []
    for places in sorted(operands, key=len, reverse=True):
        for labels in places:
            labels = labels.reshape((1,) * (rank - labels.ndim) + labels.shape)
            for index, other in enumerate(merged):
                both = _merge_pair(other, labels)
                if both is not None:
                    merged[index] = both
                    break
            else:
                merged.append(labels)
    if len(merged) > _MOST:
        return unknown(rank) if any((labels < NONE).any() for labels in merged) else ()
    return tuple(merged)


def _merge_pair(one: Labels, other: Labels) -> Labels | None:
    """Merge labels element by element; None where an element would hold two different places."""
    if one is other or (one.shape == other.shape and np.array_equal(one, other)):
        return one
    a, b = np.broadcast_arrays(one, other)
    result = np.where(a == NONE, b, a)
    bad = (a < NONE) | (b < NONE)
    result = np.where(bad, np.minimum(a, b), result)
    differ = (a != b) & (a >= 0) & (b >= 0)
    if differ.any():
        finer = _finer(a[differ], b[differ])
        if finer is None:
            return None
        result[differ] = finer
    return compact(result)


def _finer(a: Labels, b: Labels) -> Labels | None:
    """Choose of cells that hold one another the smaller ones; None if any do not."""
    (ha, wa, na, ya, xa), (hb, wb, nb, yb, xb) = decode(a), decode(b)
    if (na != nb).any():
        return None
    a_finer = _holds(ha, hb, ya, yb) & _holds(wa, wb, xa, xb)
    b_finer = _holds(hb, ha, yb, ya) & _holds(wb, wa, xb, xa)
    if not (a_finer | b_finer).all():
        return None
    return np.where(a_finer, a, b)


def _holds(fine: Labels, coarse: Labels, inner: Labels, outer: Labels) -> NDArray[np.bool_]:
    fits: NDArray[np.bool_] = (fine % coarse == 0) & (inner * coarse // fine == outer)
    return fits
