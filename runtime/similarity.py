"""Measure how similar arrays, maps and masks are."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

_TINY = 1e-30


def largest_difference(values: NDArray[Any], expected: NDArray[Any]) -> float:
    """Compute the largest absolute difference of two arrays of one shape."""
    return float(np.abs(np.asarray(values, np.float64) - expected).max())


def relative_difference(values: NDArray[Any], expected: NDArray[Any]) -> float:
    """Compute the largest absolute difference as a share of the largest expected value.

    If all expected values are zero, the absolute difference.
    """
    scale = float(np.abs(expected).max())
    difference = largest_difference(values, expected)
    return difference / scale if scale > 0 else difference


def norm_difference(values: NDArray[Any], expected: NDArray[Any]) -> float:
    """Compute the norm of the difference as a share of the expected norm."""
    a, b = (np.asarray(one, np.float64).ravel() for one in (values, expected))
    return float(np.linalg.norm(a - b) / max(float(np.linalg.norm(b)), _TINY))


def pearson(a: NDArray[Any], b: NDArray[Any]) -> float:
    """Compute the correlation of two maps' pixels, [-1, 1].

    Two maps that are both constant agree (1); one alone does not (0).
    """
    x, y = (values.astype(np.float64).ravel() - values.mean(dtype=np.float64) for values in (a, b))
    norms = np.linalg.norm(x), np.linalg.norm(y)
    if min(norms) == 0:
        return float(max(norms) == 0)
    return float(x @ y / (norms[0] * norms[1]))


def overlap(a: NDArray[Any], b: NDArray[Any]) -> float:
    """Compute the intersection over union of the nonzero pixels, [0, 1]; 1 if there are none."""
    union = np.count_nonzero((a != 0) | (b != 0))
    return np.count_nonzero((a != 0) & (b != 0)) / union if union else 1.0


def top_overlap(a: NDArray[np.float32], b: NDArray[np.float32], share: float = 0.2) -> float:
    """Compute the intersection over union of the largest share of two maps' pixels, [0, 1]."""
    tops = []
    for values in (a, b):
        count = int(values.size * share)
        cut = np.partition(values.ravel(), -count)[-count]
        tops.append(((values >= cut) & (values > 0)).astype(np.uint8))
    return overlap(*tops)
