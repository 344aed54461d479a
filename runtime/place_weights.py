"""Name the input of a segmentation network's graph that weighs its places, and an example of it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

REGION = "region"  # the graph's input
LEAST_WEIGHT = 1e-6  # of a whole region, below which its mean is 0


def example_region(size: tuple[int, int]) -> NDArray[np.float32]:
    """Make the region that a file's reference answers are of: a disc, more than its surroundings.

    Args:
        size: (h, w).

    Returns:
        Weights, float32 [h, w].
    """
    height, width = size
    y, x = np.meshgrid(np.arange(height) / height, np.arange(width) / width, indexing="ij")
    disc = (x - 0.45) ** 2 + (y - 0.55) ** 2 < 0.1
    return np.where(disc, 1.0, 0.125).astype(np.float32)
