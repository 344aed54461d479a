"""Say which region of an image a segmentation network's scores are explained of.

Such a network scores each class at every place. Its explaining graph takes a weight for each of
these places, and explains the weighted mean.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from .errors import RequestError
from .images import open_image, read_image, upright, without_warnings
from .preprocess import Placement

if TYPE_CHECKING:
    from PIL.Image import Image

Floats = NDArray[np.float32]
# None: where the network predicts the class; "image": everywhere; a point (x, y) in pixels; an
# array of the image's pixels [h, w], of weights (floats) or a mask (booleans; integers, all of
# which but 0 count); or an image file, in which all that is not black counts.
RegionSource = None | Literal["image"] | tuple[float, float] | NDArray[Any] | str | os.PathLike[str]


def weigh_places(source: RegionSource, placement: Placement, size: tuple[int, int]) -> Floats:
    """Compute the weight of each place of a region that a user gives.

    Args:
        source: other than None.
        placement: where the network's input lies in the image.
        size: (h, w) of the places, which divide the input evenly.

    Returns:
        The share of each place that lies in the region, float32 [h, w] in [0, 1].

    Raises:
        RequestError: a region of another size than the image, or outside what the network sees.
        ImageError: a file that cannot be read.
    """
    if isinstance(source, str) and source == "image":
        return average_over_places(np.ones(placement.image, np.float32), placement, size)
    if isinstance(source, tuple):
        return _weigh_point(source, placement, size)
    mask: NDArray[Any] = np.asarray(source)
    if isinstance(source, str | os.PathLike):
        mask = _read_mask(Path(source))
    if mask.ndim != 2 or mask.shape != placement.image or mask.dtype.kind not in "bfiu":
        raise RequestError(
            f"a region is a mask of the image's {placement.image[0]} x {placement.image[1]} pixels "
            f"(height x width), not {mask.dtype} {list(mask.shape)}"
        )
    values = mask.astype(np.float32)
    if not np.isfinite(values).all() or values.min() < 0:
        raise RequestError("a region's weights are finite numbers from 0")
    if values.max() > 0:
        # Numbers of classes or objects are no weights.
        values = values / values.max() if mask.dtype.kind == "f" else np.sign(values)
    weights = average_over_places(values, placement, size)
    if not weights.any():
        where = "is empty" if not values.any() else "lies outside what the network sees"
        raise RequestError(f"the region {where}, so there is nothing to explain")
    return weights


def _read_mask(path: Path) -> NDArray[np.bool_]:
    """Tell which pixels of a mask's file are not black, [h, w]; grey of any depth is kept."""

    def read(image: Image) -> NDArray[np.bool_] | None:
        if not (image.mode.startswith("I;16") or image.mode in ("I", "F")):
            return None
        return np.asarray(np.asarray(upright(image, str(path))) != 0)

    deep = None
    if path.suffix.lower() != ".npy":
        with without_warnings():
            deep = open_image(path, read)
    return np.asarray(read_image(path).any(-1)) if deep is None else deep


def average_over_places(values: Floats, placement: Placement, size: tuple[int, int]) -> Floats:
    """Average an image's values over each place of a grid that lies over the network's input.

    Args:
        values: float32 [height, width] of the image.
        placement: where the input lies.
        size: (h, w) of the grid.

    Returns:
        float32 [h, w]; 0 for what lies outside the image.
    """
    rows = _overlaps(placement.top, placement.bottom, size[0], values.shape[0])
    columns = _overlaps(placement.left, placement.right, size[1], values.shape[1])
    return np.asarray(rows @ values.astype(np.float64) @ columns.T, np.float32)


def _overlaps(start: float, end: float, count: int, pixels: int) -> NDArray[np.float64]:
    """Compute which share of each of ``count`` cells every pixel covers, [count, pixels]."""
    edges = np.linspace(start, end, count + 1)
    pixel = np.arange(pixels)
    before, after = edges[:-1, None], edges[1:, None]
    covered = np.minimum(after, pixel + 1) - np.maximum(before, pixel)
    return np.asarray(np.clip(covered, 0, None) * (count / (end - start)))


def _weigh_point(point: tuple[float, float], placement: Placement, size: tuple[int, int]) -> Floats:
    if len(point) != 2 or not all(isinstance(each, int | float | np.number) for each in point):
        raise RequestError(f"a point is (x, y) in pixels of the image, not {point}")
    x, y = point
    height, width = placement.image
    row = (y - placement.top) / (placement.bottom - placement.top)
    column = (x - placement.left) / (placement.right - placement.left)
    is_inside = 0 <= row < 1 and 0 <= column < 1 and 0 <= y < height and 0 <= x < width
    if not is_inside:
        raise RequestError(
            f"the point ({x:g}, {y:g}) lies outside what the network sees of the image of "
            f"{width} x {height} pixels: x from {max(0.0, placement.left):g} to "
            f"{min(width, placement.right):g}, y from {max(0.0, placement.top):g} to "
            f"{min(height, placement.bottom):g}"
        )
    weights = np.zeros(size, np.float32)
    weights[int(row * size[0]), int(column * size[1])] = 1
    return weights
