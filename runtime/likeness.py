"""How alike two maps or masks of one picture are."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def pearson(a: NDArray[Any], b: NDArray[Any]) -> float:
    """Correlation of two maps' pixels, [-1, 1].

    Two maps that are both constant agree (1); one alone does not (0).
    """
    x, y = (values.astype(np.float64).ravel() - values.mean(dtype=np.float64) for values in (a, b))
    norms = np.linalg.norm(x), np.linalg.norm(y)
    if min(norms) == 0:
        return float(max(norms) == 0)
    return float(x @ y / (norms[0] * norms[1]))


def overlap(a: NDArray[Any], b: NDArray[Any]) -> float:
    """Intersection over union of the pixels that are not zero, [0, 1]; 1 where there are none."""
    union = np.count_nonzero((a != 0) | (b != 0))
    return np.count_nonzero((a != 0) & (b != 0)) / union if union else 1.0
