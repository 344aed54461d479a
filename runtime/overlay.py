"""Draw a map over an image: heat, outline of a region, the network's view, a caption."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from . import text
from .errors import RequestError
from .images import RGBImage

Colormap = Literal["inferno", "magma", "plasma", "viridis", "cividis", "turbo", "jet"]
COLORMAPS: tuple[Colormap, ...] = get_args(Colormap)
Crop = Literal["frame", "dim", "none"]
CROPS: tuple[Crop, ...] = get_args(Crop)
# Rows and columns of a rectangle of an image: top, left, bottom, right; the last two not in it.
Window = tuple[int, int, int, int]

_OPAQUE_FROM = 0.75  # map value from which on the colour has its full opacity
_DIMMED = 0.45  # brightness outside the network's view
_STEP = 0.8  # pixels by which an outline may leave the region's edge
_FRAME = 0.6  # opacity of the line around it
_SHORT, _LONG = 300, 1600  # pixels: sides that enlarged images reach, and do not exceed


@dataclass(frozen=True)
class Style:
    """How explanations are drawn.

    Attributes:
        opacity: of the colours where the map is high, in [0, 1].
        colormap: a name in ``COLORMAPS``; inferno, magma, plasma, viridis and cividis are
            perceptually uniform.
        contour: whether the region above the threshold is outlined.
        crop: how the part of the image that the network saw is shown where it is not the whole
            image: ``frame``, a thin line around it; ``dim``, the rest darkened; ``none``.
        caption: whether saved overlays have class, probability, method and threshold above the
            image.

    Raises:
        RequestError: a value out of its range.

    Example:
        >>> Style(colormap="viridis", opacity=0.4).crop
        'frame'
    """

    opacity: float = 0.6
    colormap: Colormap = "inferno"
    contour: bool = True
    crop: Crop = "frame"
    caption: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.opacity <= 1:
            raise RequestError(f"opacity must lie in [0, 1], not {self.opacity}")
        for name, value, known in (
            ("colormap", self.colormap, COLORMAPS),
            ("crop", self.crop, CROPS),
        ):
            if value not in known:
                raise RequestError(f"{name} must be one of {', '.join(known)}; not {value!r}")


DEFAULT_STYLE = Style()


def blend(
    image: RGBImage,
    values: NDArray[np.float32],
    opacity: float = 0.6,
    colormap: Colormap = "inferno",
) -> RGBImage:
    """Lay the colours of a map over an image.

    The opacity of the colours rises smoothly from 0 where the map is 0, so that low values leave
    the image as it is.

    Args:
        image: uint8 [h, w, 3], RGB.
        values: float32 [h, w] in [0, 1].
        opacity: of the colours where the map is high, in [0, 1].
        colormap: a name in ``COLORMAPS``.

    Returns:
        uint8 [h, w, 3], RGB.
    """
    import cv2

    # In 8 bits throughout: what an eye can tell apart, at a tenth of the time that floats take.
    levels = cv2.convertScaleAbs(values, alpha=255)
    kept, colours = tables(opacity, colormap)
    shown = cv2.multiply(image, cv2.applyColorMap(levels, kept), scale=1 / 255)
    return np.asarray(cv2.add(shown, cv2.applyColorMap(levels, colours)))


@lru_cache(maxsize=128)
def tables(
    opacity: float, colormap: Colormap = "inferno"
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Compute how much of the image stays at each map level, and the colour laid over it.

    Each uint8 [256, 1, 3], of 255.
    """
    share = np.minimum(np.arange(256) / 255.0 / _OPAQUE_FROM, 1.0)
    weight = (opacity * share**2 * (3 - 2 * share)).reshape(256, 1, 1)  # smoothstep
    kept = np.rint(255 * (1 - weight)) * np.ones((1, 1, 3))
    return kept.astype(np.uint8), np.rint(color_table(colormap) * weight).astype(np.uint8)


@lru_cache(maxsize=len(COLORMAPS))
def color_table(colormap: Colormap) -> NDArray[np.uint8]:
    """Look up the colour of each map level: uint8 [256, 1, 3], RGB."""
    import cv2

    code = getattr(cv2, f"COLORMAP_{colormap.upper()}")
    colors = cv2.applyColorMap(np.arange(256, dtype=np.uint8), code)
    return np.ascontiguousarray(colors[..., ::-1].reshape(256, 1, 3), np.uint8)


def outline(
    image: RGBImage,
    region: NDArray[np.uint8],
    top: int = 0,
    left: int = 0,
    window: Window | None = None,
    color: tuple[int, int, int] = (255, 255, 255),
) -> None:
    """Trace the edges of a region and of its holes: light on black, readable on any image.

    Where the region reaches the edge of what the network saw, it has no edge of its own, and no
    line is drawn.

    Args:
        image: uint8 [h, w, 3], contiguous, changed in place.
        region: uint8 [r, c], not 0 where the region is.
        top, left: where the region's first row and column lie in the image.
        window: what the network saw of the image; None: where ``region`` lies.
        color: of the line, RGB; white by default.
    """
    import cv2

    rows, columns = region.shape
    window = window or (top, left, top + rows, left + columns)
    thin, halo = line_widths(image)
    margin = halo // 2 + 2
    sides = (top == window[0], top + rows == window[2], left == window[1])
    at_edge = [margin * side for side in (*sides, left + columns == window[3])]
    # Continued beyond the window's edge, the region has its line there, outside of what is drawn.
    above, below, before, after = at_edge
    if any(at_edge):
        region = np.pad(region, ((above, below), (before, after)), "edge")
    offset = (left - before - window[1], top - above - window[0])
    contours, _ = cv2.findContours(region, cv2.RETR_LIST, cv2.CHAIN_APPROX_SIMPLE, offset=offset)
    # Without the steps from pixel to pixel: smoother, and fewer lines to draw.
    contours = [cv2.approxPolyDP(contour, _STEP, True) for contour in contours]
    seen = image[window[0] : window[2], window[1] : window[3]]
    cv2.drawContours(seen, contours, -1, (0, 0, 0), halo, cv2.LINE_AA)
    kind = cv2.LINE_AA if thin > 1 else cv2.LINE_8  # smoothed, one pixel would not be white
    cv2.drawContours(seen, contours, -1, color, thin, kind)


def line_widths(image: RGBImage) -> tuple[int, int]:
    """Choose the widths of a white line and of its dark halo for an image's size, in pixels."""
    thin = max(1, round(min(image.shape[:2]) / 400))
    return thin, thin + 2 * max(1, round(thin / 2))


def mark_window(image: RGBImage, window: Window, crop: Crop) -> None:
    """Show which part of an image the network saw; nothing where that is the whole image.

    Args:
        image: uint8 [h, w, 3], changed in place.
        window: that part.
        crop: see ``Style``.
    """
    height, width = image.shape[:2]
    top, left, bottom, right = window
    if crop == "none" or window == (0, 0, height, width):
        return
    if crop == "dim":
        import cv2

        seen = image[top:bottom, left:right].copy()
        image[:] = cv2.convertScaleAbs(image, alpha=_DIMMED)
        image[top:bottom, left:right] = seen
        return
    # Just outside the window where there is room, so that every pixel inside stays as it is: a
    # light line, and a dark one around it, of which one is seen on any image.
    thin = line_widths(image)[0]
    for distance, color in ((thin, 255), (2 * thin, 0)):
        above, below = max(0, top - distance), max(0, bottom + distance)
        before, after = max(0, left - distance), max(0, right + distance)
        inner = distance - thin
        for rows, columns in (
            (slice(above, max(0, top - inner)), slice(before, after)),
            (slice(bottom + inner, below), slice(before, after)),
            (slice(max(0, top - inner), bottom + inner), slice(before, max(0, left - inner))),
            (slice(max(0, top - inner), bottom + inner), slice(right + inner, after)),
        ):
            part = image[rows, columns].astype(np.float32)
            image[rows, columns] = np.rint(part + _FRAME * (color - part))


def enlargement(height: int, width: int) -> int:
    """Choose by how much a small image is enlarged before it is drawn on: a whole number."""
    wanted = -(-_SHORT // min(height, width)) if min(height, width) < 2 * _SHORT // 3 else 1
    return max(1, min(wanted, _LONG // max(height, width)))


def enlarge(image: RGBImage, scale: int) -> RGBImage:
    """Repeat each pixel ``scale`` times in both directions: uint8 [scale * h, scale * w, 3]."""
    return image if scale == 1 else image.repeat(scale, 0).repeat(scale, 1)


def caption(image: RGBImage, lines: Sequence[str]) -> RGBImage:
    """Add a strip with lines of text above an image.

    Lines that are too long are broken at double spaces; what is still too long ends in an ellipsis.

    Args:
        image: uint8 [h, w, 3], RGB.
        lines: in any script.

    Returns:
        uint8 [h + strip, w, 3]; the image below is as it was.
    """
    width = image.shape[1]
    size = max(11, min(width, 1200) // 40)
    step, room = round(1.4 * size), width - 8
    broken: list[str] = []
    for line in lines:
        parts = line.split("  ")
        broken.append(parts[0])
        for part in parts[1:]:
            longer = f"{broken[-1]}  {part}"
            if text.width_of(longer, size) <= room:
                broken[-1] = longer
            else:
                broken.append(part)
    strip = np.full((step * len(broken) + 6, width, 3), 24, np.uint8)
    for row, line in enumerate(broken):
        text.write(strip, text.shorten(line, room, size), 4, 3 + row * step, size)
    return np.concatenate([strip, image])
