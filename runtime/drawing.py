"""Draw an explanation: overlay, figure, and what a notebook shows."""

from __future__ import annotations

import base64
import html
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray

from . import overlay, text
from .attribution import Attribution, format_probability
from .box_drawing import draw_box
from .errors import MissingExtraError, RequestError
from .images import RGBImage
from .overlay import Style
from .preprocess import seen_window, to_image

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_NOTEBOOK_WIDTH = 480  # pixels
_EXPLAINED = (0, 220, 255)  # the outline of a segmentation network's region
_SMOOTH = 256  # pixels that a region is enlarged to
AnyAttribution = TypeVar("AnyAttribution", bound=Attribution)


def draw_overlay(
    explanation: Attribution, style: Style, original: bool = False, scale: int = 1
) -> RGBImage:
    """Draw a map over its image, outlines of the region above the threshold and explained, the box.

    Args:
        explanation: what is drawn.
        style: how.
        original: show the map without thresholding.
        scale: repeat each pixel of the image so many times first, and draw at that size.

    Returns:
        uint8 [scale * h, scale * w, 3], RGB.

    Raises:
        RequestError: a scale below 1.
    """
    if scale < 1:
        raise RequestError(f"scale must be 1 or more, not {scale}")
    image = overlay.enlarge(explanation.image, scale)
    values = _spread(explanation, scale)
    # Thresholded here, at full resolution, so that the edge is as sharp as the image.
    region = (values >= explanation.cut) & (values > 0)
    is_cut = explanation.cut > 0 and not original
    shown = np.where(region, values, np.float32(0)) if is_cut else values
    drawn = overlay.blend(image, shown, style.opacity, style.colormap)
    window = seen_window(explanation.placement.enlarged(scale))
    overlay.mark_window(drawn, window, style.crop)
    # Nothing is muted at threshold 0: an outline would only trace where the map is not 0.
    if is_cut and style.contour:
        top, left, bottom, right = window
        part = np.ascontiguousarray(region[top:bottom, left:right], np.uint8)
        overlay.outline(drawn, part, top, left)
    if explanation.weights is not None and style.contour:
        top, left, bottom, right = window
        explained = _spread_weights(explanation, scale)[top:bottom, left:right]
        if not explained.all():
            part = np.ascontiguousarray(explained, np.uint8)
            overlay.outline(drawn, part, top, left, color=_EXPLAINED)
    if explanation.box is not None:
        draw_box(drawn, explanation.box, scale, explanation.edge)
    return drawn


def _spread(explanation: Attribution, scale: int) -> NDArray[np.float32]:
    """Carry the map without thresholding to the enlarged image's pixels."""
    values = explanation.original_map
    if explanation.geometry == "input":
        return to_image(values, explanation.placement.enlarged(scale))
    if scale == 1:
        return values
    import cv2

    height, width = values.shape
    return np.asarray(cv2.resize(values, (scale * width, scale * height)), np.float32)


def _spread_weights(explanation: Attribution, scale: int) -> NDArray[np.bool_]:
    """Tell which of the enlarged image's pixels are in the region that is explained."""
    import cv2

    weights = explanation.weights
    assert weights is not None
    # Of at least the input's size, so that the places keep their edges.
    finer = max(1, -(-_SMOOTH // min(weights.shape)))
    height, width = (finer * side for side in weights.shape)
    fine = cv2.resize(weights, (width, height), interpolation=cv2.INTER_NEAREST)
    placed = to_image(np.asarray(fine, np.float32), explanation.placement.enlarged(scale))
    return np.asarray(placed > placed.max() / 2)


def saved_overlay(explanation: Attribution, style: Style) -> RGBImage:
    """Draw an overlay as it is saved: small images enlarged, a caption in a margin above."""
    scale = overlay.enlargement(*explanation.image.shape[:2])
    drawn = draw_overlay(explanation, style, scale=scale)
    return (
        overlay.caption(drawn, with_writable_label(explanation).caption_lines())
        if style.caption
        else drawn
    )


def with_writable_label(explanation: AnyAttribution) -> AnyAttribution:
    """Return an explanation whose label can be written on images, see ``text.name_class``."""
    label = text.name_class(explanation.label, explanation.index)
    return explanation if label == explanation.label else replace(explanation, label=label)


def require_matplotlib() -> None:
    """Check that figures can be drawn here.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("matplotlib", "plot", "drawing figures") from error


def draw_figure(explanation: Attribution, style: Style) -> Figure:
    """Draw image, map, thresholded map and rpi curve side by side (paper figure 3).

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    require_matplotlib()
    from .figure import Curve, Panel, color_bar, draw

    explanation = with_writable_label(explanation)
    symbol = "value" if explanation.task == "none" else "p"
    number = format_probability(explanation.probability, explanation.task, 3)
    scale = overlay.enlargement(*explanation.image.shape[:2])
    whole = draw_overlay(explanation, style, original=True, scale=scale)
    panels = [
        Panel(overlay.enlarge(explanation.image, scale), explanation.label, f"{symbol} = {number}"),
        Panel(whole, explanation.method, "the whole map"),
    ]
    if explanation.mask is not None:
        title, *detail = explanation.threshold_words()
        title = title.replace("tau*", "τ* =")
        panels.append(Panel(draw_overlay(explanation, style, scale=scale), title, "".join(detail)))
    bar = color_bar(1, style)
    if explanation.rpi is None or explanation.tft is None:
        return draw(panels, bar=bar)
    tried = ~np.isnan(explanation.rpi)
    curve = Curve(
        taus=np.asarray(explanation.tft.taus)[tried],
        rpi=explanation.rpi[tried],
        best=explanation.threshold,
        title="what each threshold gains",
        detail=f"p under the mask = {explanation.masked_probability:.3f}"
        if explanation.improved
        else "none raises the probability",
        by_rank=explanation.tft.thresholds == "rank",
    )
    return draw(panels, curve, bar)


def draw_html(explanation: Attribution) -> str:
    """Draw an overlay with its numbers as HTML that needs no other file."""
    import cv2

    scale = overlay.enlargement(*explanation.image.shape[:2])
    drawn = draw_overlay(explanation, overlay.DEFAULT_STYLE, scale=scale)
    height, width = drawn.shape[:2]
    if width > 2 * _NOTEBOOK_WIDTH:  # twice: for screens of double density
        size = 2 * _NOTEBOOK_WIDTH, max(1, round(height * 2 * _NOTEBOOK_WIDTH / width))
        drawn = np.asarray(cv2.resize(drawn, size, interpolation=cv2.INTER_AREA), np.uint8)
    _, data = cv2.imencode(".jpg", drawn[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 88])
    source = base64.b64encode(bytes(data)).decode()
    rows = "".join(
        f"<tr><td style='text-align:left'>{html.escape(one.label)}</td>"
        f"<td>{format_probability(one.probability, explanation.task, 3)}</td></tr>"
        for one in explanation.top
    )
    title, details = (
        html.escape(line.replace("  ", " · ")) for line in explanation.caption_lines()
    )
    return (
        "<div style='display:flex;flex-wrap:wrap;gap:1em;align-items:flex-start'>"
        f"<figure style='margin:0'><img alt='{title}' style='max-width:{_NOTEBOOK_WIDTH}px;"
        f"width:100%' src='data:image/jpeg;base64,{source}'>"
        f"<figcaption><b>{title}</b><br>{details}</figcaption></figure>"
        f"<table>{rows}</table></div>"
    )
