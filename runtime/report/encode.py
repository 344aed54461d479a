"""Encode images and maps small enough that a report can hold a thousand of them."""

from __future__ import annotations

import base64
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from ..cam import resize
from ..errors import OutputError
from ..images import RGBImage

# Longer side of an image in a report, in pixels, and how good its WebP is, of 100.
LONGER_SIDE = 448
_QUALITY = 74
# Networks' strides, the coarsest first; and the longer side of a grid, at most.
_STRIDES = (32, 16, 14, 8, 4, 2, 1)
LARGEST = 64
# A grid is fine enough if no pixel of the map is further off, of 1.
_TOLERANCE = 0.01


def encode_thumbnail(image: RGBImage) -> str:
    """Encode an image as WebP in base64, scaled down to 448 pixels along its longer side.

    Args:
        image: uint8 [h, w, 3], RGB.

    Raises:
        OutputError: OpenCV was built without WebP.
    """
    import cv2

    height, width = image.shape[:2]
    scale = LONGER_SIDE / max(height, width)
    if scale < 1:
        size = max(1, round(width * scale)), max(1, round(height * scale))
        image = np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA))
    done, data = cv2.imencode(".webp", image[..., ::-1], [cv2.IMWRITE_WEBP_QUALITY, _QUALITY])
    if not done:
        raise OutputError("OpenCV cannot write WebP, which a report's images are: reinstall it")
    return base64.b64encode(data.tobytes()).decode()


@dataclass(frozen=True, eq=False)
class Grid:
    """A map at the resolution that the network computed it in, in 8 bits.

    Attributes:
        levels: uint8 [r, c].
        low, high: the values of the levels 0 and 255. They may lie a little outside [0, 1], where
            the map's pixels beside a peak are what was scaled to 1.
        is_reduced: whether the map is finer than the grid shows.
    """

    levels: NDArray[np.uint8]
    low: float
    high: float
    is_reduced: bool = False

    def encode(self) -> str:
        """Encode the levels, row by row, in base64."""
        return base64.b64encode(self.levels.tobytes()).decode()


def reduce_map(values: NDArray[np.float32]) -> Grid:
    """Find the coarsest grid of which a map is the bilinear enlargement, to within 0.01.

    A map of the network's last layer is enlarged from 7 x 7 values or so: these are recovered,
    instead of the 50 thousand pixels being stored.

    Args:
        values: the map, float32 [H, W] in [0, 1].

    Returns:
        The grid; where none of at most 64 x 64 is fine enough, the finest one, ``is_reduced``.
    """
    height, width = values.shape
    for stride in _STRIDES:
        rows, columns = -(-height // stride), -(-width // stride)
        if max(rows, columns) > LARGEST:
            shrink = LARGEST / max(rows, columns)
            rows, columns = max(1, round(rows * shrink)), max(1, round(columns * shrink))
        found = _inverse(height, rows) @ values @ _inverse(width, columns).T
        grid = _quantise(found)
        if np.abs(enlarge(grid, (height, width)) - values).max() <= _TOLERANCE:
            return grid
    return replace(grid, is_reduced=True)


def _quantise(values: NDArray[np.float32]) -> Grid:
    low, high = float(values.min()), float(values.max())
    span = high - low if high > low else 1.0
    return Grid(np.rint((values - low) * (255 / span)).astype(np.uint8), low, low + span)


def enlarge(grid: Grid, size: tuple[int, int]) -> NDArray[np.float32]:
    """Enlarge a grid as the report's page does: bilinear, half-pixel centres, edges repeated.

    Args:
        grid: from ``reduce_map``.
        size: (height, width) of the map.

    Returns:
        float32 [H, W] in [0, 1].
    """
    values = grid.levels.astype(np.float32) * ((grid.high - grid.low) / 255) + grid.low
    return np.asarray(np.clip(resize(values, size), 0, 1))


@lru_cache(maxsize=64)
def _inverse(full: int, few: int) -> NDArray[np.float32]:
    """Compute the least-squares inverse [few, full] of an enlargement along one axis."""
    enlargement = resize(np.eye(few, dtype=np.float64), (full, few))
    return np.linalg.pinv(enlargement).astype(np.float32)
