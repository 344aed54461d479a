"""Draw the maps of several classes of one image side by side, and what differs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from . import overlay
from .attribution import Attribution
from .drawing import draw_overlay, with_writable_label
from .errors import RequestError
from .images import RGBImage, to_grey
from .overlay import DEFAULT_STYLE, Style
from .preprocess import seen_window
from .similarity import pearson

# Where the first map is larger, and where the other one is. Told apart by every kind of colour
# vision.
MORE, LESS = (224, 96, 16), (46, 110, 214)
_LONGER_SIDE = 640  # pixels of one panel
_GAP = 10
_EXPONENT = 0.7  # small differences are seen as well


def draw_comparison(explanations: Sequence[Attribution], style: Style = DEFAULT_STYLE) -> RGBImage:
    """Draw the maps of several classes of one image, and the differences to the first one.

    Two classes and their difference stand side by side. Of more classes the maps stand in the
    first row, and below each its difference to the first, with the maps' correlation.
    Differences are of whole maps, each scaled to [0, 1] by itself.

    Args:
        explanations: of one image, by one method, each of another class; two or more.
        style: how maps are drawn.

    Returns:
        uint8 [h, w, 3], RGB.

    Raises:
        RequestError: there are fewer than two, or they differ in more than their class.

    Example:
        >>> pair = whycam.load("model.onnx").explain("cat.jpg", ["tabby", "espresso"])
        >>> drawn = whycam.draw_comparison(pair)
        >>> cv2.imwrite("why.png", drawn[..., ::-1])
        True
    """
    _check_comparable(explanations)
    explanations = [with_writable_label(one) for one in explanations]
    maps = [_draw_map(one, style) for one in explanations]
    first, *others = explanations
    differences = [_draw_difference(first, one, style) for one in others]
    if len(explanations) == 2:
        return _join([[*maps, *differences]])
    scale = overlay.enlargement(*first.image.shape[:2])
    image = overlay.caption(_reduce(overlay.enlarge(first.image, scale)), ["image", ""])
    return _join([maps, [image, *differences]])


def _check_comparable(explanations: Sequence[Attribution]) -> None:
    if len(explanations) < 2:
        raise RequestError("a comparison needs two classes or more of one image")
    first, *others = explanations
    for one in others:
        if one.method != first.method:
            raise RequestError(
                f"a comparison is of one method, not of {first.method} and {one.method}"
            )
        if (
            one.placement != first.placement
            or one.original_map.shape != first.original_map.shape
            or not (one.image is first.image or np.array_equal(one.image, first.image))
        ):
            raise RequestError(
                "a comparison is of one image: pass the explanations that one call of explain "
                "returned for it"
            )
    indices = [one.index for one in explanations]
    twice = next((one for one in explanations if indices.count(one.index) > 1), None)
    if twice is not None:
        raise RequestError(
            f"a comparison is of several classes, and '{twice.label}' is there twice"
        )


def _draw_map(one: Attribution, style: Style) -> RGBImage:
    scale = overlay.enlargement(*one.image.shape[:2])
    drawn = draw_overlay(one, style, scale=scale)
    return overlay.caption(_reduce(drawn), one.caption_lines())


def _draw_difference(first: Attribution, other: Attribution, style: Style) -> RGBImage:
    difference = first.on_image(first.original_map) - other.on_image(other.original_map)
    drawn = blend_difference(first.image, difference, style.opacity)
    overlay.mark_window(drawn, seen_window(first.placement), style.crop)
    scale = overlay.enlargement(*drawn.shape[:2])
    correlation = pearson(first.original_map, other.original_map)
    lines = [
        f"orange: more for {first.label}",
        f"blue: more for {other.label}; maps correlate by {correlation:.2f}",
    ]
    return overlay.caption(_reduce(overlay.enlarge(drawn, scale)), lines)


def blend_difference(image: RGBImage, difference: NDArray[np.float32], opacity: float) -> RGBImage:
    """Lay the colours of a difference over the grey image: orange above 0, blue below.

    Args:
        image: uint8 [h, w, 3], RGB.
        difference: of two maps, float32 [h, w] in [-1, 1].
        opacity: of the colours where it is 1 or -1, in [0, 1].

    Returns:
        uint8 [h, w, 3], RGB.
    """
    weight = opacity * np.abs(difference)[..., None] ** np.float32(_EXPONENT)
    colour = np.where(
        difference[..., None] > 0, np.array(MORE, np.float32), np.array(LESS, np.float32)
    )
    return np.asarray(np.rint(to_grey(image) * (1 - weight) + colour * weight), np.uint8)


def _reduce(image: RGBImage) -> RGBImage:
    import cv2

    height, width = image.shape[:2]
    scale = _LONGER_SIDE / max(height, width)
    if scale >= 1:
        return image
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)


def _join(rows: Sequence[Sequence[RGBImage]]) -> RGBImage:
    """Put panels of one size in rows, white between them."""
    lines = []
    for row in rows:
        gap = np.full((row[0].shape[0], _GAP, 3), 255, np.uint8)
        lines.append(np.concatenate([part for panel in row for part in (panel, gap)][:-1], 1))
    gap = np.full((_GAP, lines[0].shape[1], 3), 255, np.uint8)
    return np.concatenate([part for line in lines for part in (line, gap)][:-1])
