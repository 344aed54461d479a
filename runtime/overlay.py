"""Draw a map over an image."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from . import text
from .images import RGBImage


def blend(image: RGBImage, values: NDArray[np.float32], opacity: float = 0.6) -> RGBImage:
    """Lay a map over an image, in the perceptually uniform colours of ``inferno``.

    Where the map is 0 the image stays untouched; the colour grows opaque with the map, so
    that what matters is seen through what does not.

    Args:
        image: uint8 [h, w, 3], RGB.
        values: float32 [h, w] in [0, 1].
        opacity: of the colour where the map is 1, in [0, 1].

    Returns:
        uint8 [h, w, 3], RGB.
    """
    import cv2

    # In 8 bits throughout: what an eye can tell apart, at a tenth of the time that floats take.
    levels = cv2.convertScaleAbs(values, alpha=255)
    kept, colours = tables(opacity)
    shown = cv2.multiply(image, cv2.applyColorMap(levels, kept), scale=1 / 255)
    return np.asarray(cv2.add(shown, cv2.applyColorMap(levels, colours)))


@lru_cache(maxsize=128)
def tables(opacity: float) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Compute how much of the image stays at each map level, and the colour laid over it.

    Each uint8 [256, 1, 3], of 255.
    """
    import cv2

    level = np.arange(256, dtype=np.uint8)
    colours = cv2.applyColorMap(level, cv2.COLORMAP_INFERNO)[..., ::-1].reshape(256, 1, 3)
    # Rises quickly from 0: even a weak attribution tints the image visibly.
    weight = (opacity * np.sqrt(level / 255.0)).reshape(256, 1, 1)
    kept = np.rint(255 * (1 - weight)) * np.ones((1, 1, 3))
    return kept.astype(np.uint8), np.rint(colours * weight).astype(np.uint8)


def outline(image: RGBImage, region: NDArray[np.uint8], top: int = 0, left: int = 0) -> None:
    """Trace the edges of a region and of its holes: white on black, readable on any image.

    Args:
        image: uint8 [h, w, 3], contiguous, changed in place.
        region: uint8 [r, c], not 0 where the region is.
        top, left: where the region's first row and column lie in the image.
    """
    import cv2

    contours, _ = cv2.findContours(
        region, cv2.RETR_LIST, cv2.CHAIN_APPROX_SIMPLE, offset=(left, top)
    )
    thickness = max(1, round(min(image.shape[:2]) / 400))
    cv2.drawContours(image, contours, -1, (0, 0, 0), 3 * thickness)
    cv2.drawContours(image, contours, -1, (255, 255, 255), thickness)


def caption(image: RGBImage, line: str) -> RGBImage:
    """Add a strip with a line of text above an image, shrunk to fit its width.

    Args:
        image: uint8 [h, w, 3], RGB.
        line: in any script.

    Returns:
        uint8 [h + strip, w, 3].
    """
    width = image.shape[1]
    size = max(11, min(width, 1200) // 40)
    length = text.width_of(line, size)
    if length > width - 8:
        size = max(2, int(size * max(1, width - 8) / length))
    strip = np.full((round(1.4 * size) + 6, width, 3), 24, np.uint8)
    text.write(strip, line, 4, 3, size)
    return np.concatenate([strip, image])
