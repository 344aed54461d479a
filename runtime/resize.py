"""A window of a picture's resize, with Pillow's very pixels and without its time.

Pillow resizes whole pictures, in fixed-point arithmetic, one sum a pixel. Here only the window is
made, as products of small matrices, and from the same integers: weights of 22 bits, rounded to 8
bits after each of the two passes. Split into halves of 11 bits each weight and each sum is an
integer below 2^24, which float32 holds exactly, in whatever order it is added up.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .images import Picture
from .threads import one_blas_thread

_BITS, _HALF = 22, 11
_MOST_TAPS = 64  # 64 x 1024 x 255 is just below 2^24
_AT_ONCE = 2**22  # samples held as float32: 16 MiB
_ROWS = 16  # of one product: few, for the matrices are all but empty away from their diagonal


def _triangle(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.maximum(0.0, 1.0 - np.abs(x))


def _cubic(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Keys' with a = -0.5, as Pillow has it."""
    a, x = -0.5, np.abs(x)
    near = ((a + 2.0) * x - (a + 3.0)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return np.where(x < 1.0, near, np.where(x < 2.0, far, 0.0))


# Interpolation to filter and how far it reaches. Lanczos is not among them: its sines differ in
# their last bit from one library to the next.
_FILTERS: dict[str, tuple[Callable[[NDArray[np.float64]], NDArray[np.float64]], float]] = {
    "bilinear": (_triangle, 1.0),
    "bicubic": (_cubic, 2.0),
}


def can_resize(picture: tuple[int, int], resized: tuple[int, int], interpolation: str) -> bool:
    """Whether ``resized_window`` gives Pillow's pixels.

    Pillow goes along the rows first; tall pictures the other way, from version 13 on, which rounds
    otherwise. So only pictures at least as wide as high, that keep about their proportions.

    Args:
        picture, resized: (height, width).
        interpolation: as in ``Preprocess``.
    """
    if interpolation not in _FILTERS:
        return False
    height, width = (full / new for full, new in zip(picture, resized, strict=True))
    reach = _FILTERS[interpolation][1]
    fits = 2 * reach * max(height, width) + 2 <= _MOST_TAPS
    return fits and picture[0] <= picture[1] and height <= 1.1 * width


def resized_window(
    picture: Picture,
    resized: tuple[int, int],
    rows: slice,
    columns: slice,
    interpolation: str,
) -> Picture:
    """What ``Image.resize`` makes of a picture, between some of its rows and columns.

    Args:
        picture: uint8 [h, w, 3], for which ``can_resize`` holds.
        resized: (height, width) of the whole resized picture.
        rows, columns: of the resized picture, with start and stop.
        interpolation: ``bilinear`` or ``bicubic``.

    Returns:
        uint8 [rows, columns, 3].
    """
    import cv2

    across = _axis(picture.shape[1], resized[1], columns.start, columns.stop, interpolation)
    down = _axis(picture.shape[0], resized[0], rows.start, rows.stop, interpolation)
    needed = picture[down.first : down.last, across.first : across.last]
    with one_blas_thread():
        # The axis that is summed over comes first.
        squeezed = _summed(cv2.transpose(needed), across)
        return _summed(cv2.transpose(squeezed), down)


@dataclass(frozen=True, eq=False)
class _Axis:
    """One pass: from the samples first .. last of an axis to ``count`` new ones.

    Attributes:
        blocks: for each few of the new samples which of the old they are summed from, counted from
            ``first``, and the weights, upper halves above lower halves, float32 [2 r, n].
    """

    first: int
    last: int
    count: int
    blocks: tuple[tuple[slice, NDArray[np.float32]], ...]


@lru_cache(maxsize=64)
def _axis(full: int, new: int, start: int, stop: int, interpolation: str) -> _Axis:
    shape, reach = _FILTERS[interpolation]
    scale = full / new
    wide = max(scale, 1.0)  # a filter for fewer pixels is wider, which is the antialias
    weights = []
    for place in range(start, stop):
        centre = (place + 0.5) * scale
        low = max(0, int(centre - reach * wide + 0.5))
        high = min(full, int(centre + reach * wide + 0.5))
        places = np.arange(low, high, dtype=np.float64)
        found = shape((places - centre + 0.5) * (1.0 / wide))
        # One after the other, as Pillow adds them up.
        found = found / np.add.accumulate(found)[-1] * (1 << _BITS)
        weights.append((low, np.trunc(found + np.copysign(0.5, found)).astype(np.int64)))
    first = min(low for low, _ in weights)
    last = max(low + len(found) for low, found in weights)
    blocks = []
    for begin in range(0, len(weights), _ROWS):
        block = weights[begin : begin + _ROWS]
        low = min(at for at, _ in block)
        high = max(at + len(found) for at, found in block)
        halves = np.zeros((2, len(block), high - low), np.float32)
        for row, (at, found) in enumerate(block):
            upper = (found + (1 << (_HALF - 1))) >> _HALF
            part = slice(at - low, at - low + len(found))
            halves[0, row, part], halves[1, row, part] = upper, found - (upper << _HALF)
        blocks.append((slice(low - first, high - first), halves.reshape(-1, high - low)))
    return _Axis(first, last, len(weights), tuple(blocks))


def _summed(samples: NDArray[Any], axis: _Axis) -> Picture:
    """One pass along the first axis: uint8 [n, m, 3] to [count, m, 3]."""
    flat = samples.reshape(len(samples), -1)
    found = np.empty((axis.count, flat.shape[1]), np.uint8)
    step = max(64, _AT_ONCE // len(flat))
    for start in range(0, flat.shape[1], step):
        _sum_into(found[:, start : start + step], flat[:, start : start + step], axis)
    return found.reshape(axis.count, *samples.shape[1:])


def _sum_into(found: Picture, flat: NDArray[Any], axis: _Axis) -> None:
    values = _scratch("values", flat.shape, np.float32)
    np.copyto(values, flat)
    done = 0
    for part, halves in axis.blocks:
        sums = _scratch("sums", (len(halves), flat.shape[1]), np.float32)
        whole = _scratch("whole", sums.shape, np.int32)
        np.matmul(halves, values[part], out=sums)
        np.copyto(whole, sums, casting="unsafe")
        total, lower = whole[: len(whole) // 2], whole[len(whole) // 2 :]
        total <<= _HALF
        total += lower
        total += 1 << (_BITS - 1)
        total >>= _BITS
        np.clip(total, 0, 255, out=total)
        np.copyto(found[done : done + len(total)], total, casting="unsafe")
        done += len(total)


_kept = threading.local()


def _scratch(name: str, shape: tuple[int, ...], kind: type) -> NDArray[Any]:
    """An array of each thread's own: fresh memory costs more than the sums do."""
    size = shape[0] * shape[1]
    room = getattr(_kept, name, None)
    if room is None or room.size < size:
        room = np.empty(size, kind)
        setattr(_kept, name, room)
    return np.asarray(room[:size].reshape(shape))
