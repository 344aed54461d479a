"""Tell whether a convolution, pooling or resizing leaves a grid of places as it lies in the image.

The result is labelled as a grid of its own, that covers the image. That is right where each of its
elements reads about what it is said to show: inside the network the image may have been cropped,
padded, mirrored or reordered before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .places import Labels, decode

Line = NDArray[np.float64]


@dataclass(frozen=True)
class Reading:
    """Which positions of a line an operator reads for each of its results.

    Attributes:
        centres: float64 [results], in positions, which may lie outside the line.
        slack: by how many positions a result's place may lie off its centre: half a kernel, as
            convolutions without padding are off at the borders, and one step.
    """

    centres: Line
    slack: float


def read_windows(
    count: int, results: int, kernel: int, stride: int, dilation: int, before: int | None
) -> Reading:
    """Describe a convolution or pooling along one axis.

    Args:
        count: of positions.
        results: how many there are.
        kernel, stride, dilation: of the operator.
        before: the padding in front; None for half of what is needed.
    """
    half = (kernel - 1) * dilation / 2
    if before is None:
        before = max((results - 1) * stride + (kernel - 1) * dilation + 1 - count, 0) // 2
    centres = np.asarray(np.arange(results) * stride - before + half, np.float64)
    return Reading(centres, half + stride)


def read_transposed(results: int, kernel: int, stride: int, dilation: int, before: int) -> Reading:
    """Describe a transposed convolution along one axis, as ``read_windows``."""
    half = (kernel - 1) * dilation / 2
    centres = np.asarray((np.arange(results) + before - half) / stride, np.float64)
    return Reading(centres, half / stride + 1)


def read_resized(count: int, results: int) -> Reading:
    """Describe resizing along one axis, as ``read_windows``."""
    step = count / results
    centres = np.asarray((np.arange(results) + 0.5) * step - 0.5, np.float64)
    return Reading(centres, max(step, 1.0))


def covers_image(labels: Labels, readings: Sequence[Reading], axes: tuple[int, int]) -> bool:
    """Tell whether results lie in the image as an even grid over all of it does.

    Args:
        labels: of what is read, whose rows and columns follow each other.
        readings: along ``axes``.
        axes: those of rows and of columns.
    """
    known = labels >= 0
    height, width, _, y, x = decode(labels)
    for coordinate, sides, reading, axis in zip(
        (y, x), (height, width), readings, axes, strict=True
    ):
        others = tuple(other for other in range(labels.ndim) if other != axis)
        place = np.where(known, (coordinate + 0.5) / np.maximum(sides, 1), 0)
        shares = known.sum(others)
        index = np.flatnonzero(shares)
        if not len(index):
            return False
        line = place.sum(others)[index] / shares[index]
        results = len(reading.centres)
        claimed = (np.arange(results) + 0.5) / results
        read = _interpolate(index, line, reading.centres)
        # One position of the line in shares of the image.
        step = np.ptp(line) / np.ptp(index) if len(index) > 1 else 1.0 / labels.shape[axis]
        if (np.abs(read - claimed) > reading.slack * max(step, 1.0 / labels.shape[axis])).any():
            return False
    return True


def _interpolate(index: NDArray[np.int64], line: Line, at: Line) -> Line:
    """Interpolate linearly, and continue in a straight line on both sides."""
    result = np.interp(at, index, line)
    if len(index) > 1:
        slope = np.ptp(line) / np.ptp(index)
        result += slope * (np.minimum(at - index[0], 0) + np.maximum(at - index[-1], 0))
    return result
