"""Bring two maps of one image onto the same pixels, whatever part of it each network saw."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ..runtime.errors import DataError
from ..runtime.explanation import Explanation
from ..runtime.preprocess import Placement, seen_window, to_image

Floats = NDArray[np.float32]

_LONGER_SIDE = 256  # pixels at which maps of different views are compared


def common_maps(first: Explanation, second: Explanation) -> tuple[Floats, Floats]:
    """Return the whole maps of two explanations of one image over the same pixels.

    Args:
        first, second: with maps over the networks' inputs (``geometry="input"``).

    Returns:
        Both maps, float32 of one shape: as they are where both networks take the same view of the
        image in the same size; else over the part of the image that both saw, reduced to 256
        pixels along the image's longer side.

    Raises:
        DataError: there is no such part.
    """
    a, b = first.original_map, second.original_map
    if first.placement == second.placement and a.shape == b.shape:
        return a, b
    placements = [_reduced(one.placement) for one in (first, second)]
    windows = [seen_window(placement) for placement in placements]
    top, left = (max(window[side] for window in windows) for side in (0, 1))
    bottom, right = (min(window[side] for window in windows) for side in (2, 3))
    if bottom <= top or right <= left:
        raise DataError(
            "the two networks see no common part of an image of "
            f"{first.placement.image[1]} x {first.placement.image[0]} pixels"
        )
    a, b = (to_image(values, place) for values, place in zip((a, b), placements, strict=True))
    return a[top:bottom, left:right], b[top:bottom, left:right]


def _reduced(placement: Placement) -> Placement:
    height, width = placement.image
    size = tuple(
        max(1, round(side * min(1.0, _LONGER_SIDE / max(height, width))))
        for side in (height, width)
    )
    down, across = size[0] / height, size[1] / width
    return replace(
        placement,
        image=(size[0], size[1]),
        top=placement.top * down,
        left=placement.left * across,
        bottom=placement.bottom * down,
        right=placement.right * across,
    )
