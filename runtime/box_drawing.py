"""Draw boxes over an image, and the heat of all detections of an image at once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from . import overlay, text
from .attribution import Attribution
from .boxes import Box
from .errors import RequestError
from .images import RGBImage
from .manifest_parts import Edge
from .overlay import DEFAULT_STYLE, Style
from .preprocess import seen_window, to_image

# Told apart from every colour of the heat, and from one another; on a dark halo.
_LINE, _EXPLAINED = (90, 220, 255), (255, 140, 0)


def draw_box(image: RGBImage, box: Box, scale: int = 1, edge: Edge | None = None) -> None:
    """Draw a box, with the edge that is explained in another colour.

    Args:
        image: uint8 [h, w, 3], contiguous, changed in place.
        box: in pixels before the image was enlarged.
        scale: by which it was.
        edge: that is explained.
    """
    import cv2

    thin, halo = overlay.line_widths(image)
    height, width = image.shape[:2]
    left, right = (min(max(round(scale * x), 0), width - 1) for x in (box.left, box.right))
    top, bottom = (min(max(round(scale * y), 0), height - 1) for y in (box.top, box.bottom))
    for color, line in (((0, 0, 0), halo), (_LINE, thin)):
        cv2.rectangle(image, (left, top), (right, bottom), color, line)
    if edge is not None:
        ends = {
            "left": ((left, top), (left, bottom)),
            "top": ((left, top), (right, top)),
            "right": ((right, top), (right, bottom)),
            "bottom": ((left, bottom), (right, bottom)),
        }[edge]
        cv2.line(image, *ends, (0, 0, 0), 2 * halo)
        cv2.line(image, *ends, _EXPLAINED, halo)


def draw_detections(
    image: RGBImage,
    detections: Sequence[Attribution],
    style: Style = DEFAULT_STYLE,
    scale: int = 1,
) -> RGBImage:
    """Draw all detections of an image: the heat of their maps together, boxes, labels and scores.

    Where maps overlap, the highest is seen. Each map is cut where it was thresholded.

    Args:
        image: uint8 [h, w, 3], RGB, that the detections are of.
        detections: of one method, the best first; may be none.
        style: colours and opacity; with ``caption`` each box has its label and score.
        scale: repeat each pixel of the image so many times first, and draw at that size.

    Returns:
        uint8 [scale * h, scale * w, 3], RGB.

    Raises:
        RequestError: a detection is of an image of another size, or a scale below 1.

    Example:
        >>> found = whycam.load("detector.onnx").detect("street.jpg")
        >>> drawn = whycam.draw_detections(found[0].image, found)
        >>> cv2.imwrite("boxes.png", drawn[..., ::-1])
        True
    """
    if scale < 1:
        raise RequestError(f"scale must be 1 or more, not {scale}")
    check_size(image, detections)
    drawn = np.array(overlay.enlarge(image, scale), order="C")
    if not detections:
        return drawn
    drawn = overlay.blend(drawn, join_heat(detections, scale), style.opacity, style.colormap)
    overlay.mark_window(drawn, seen_window(detections[0].placement.enlarged(scale)), style.crop)
    draw_boxes(drawn, detections, scale, style.caption)
    return drawn


def check_size(image: RGBImage, detections: Sequence[Attribution]) -> None:
    """Check that detections are of an image of this size.

    Raises:
        RequestError: one is not.
    """
    for one in detections:
        if one.placement.image != image.shape[:2]:
            raise RequestError(
                f"a detection is of an image of {one.placement.image[0]} x "
                f"{one.placement.image[1]} pixels (height x width), not of one of "
                f"{image.shape[0]} x {image.shape[1]}"
            )


def draw_boxes(
    image: RGBImage, detections: Sequence[Attribution], scale: int = 1, labels: bool = True
) -> None:
    """Draw the boxes of detections, the best on top, with their labels and scores above them.

    Args:
        image: uint8 [h, w, 3], contiguous, changed in place.
        detections: the best first.
        scale: by which the image was enlarged.
        labels: whether labels are written.
    """
    for one in reversed(detections):
        if one.box is not None:
            draw_box(image, one.box, scale, one.edge)
    for one in reversed(detections):
        if one.box is not None and labels:
            label = text.name_class(one.label, one.index)
            _draw_tag(image, one.box, f"{label} {one.probability:.2f}", scale)


def join_heat(detections: Sequence[Attribution], scale: int = 1) -> NDArray[np.float32]:
    """Take the highest of several maps at each pixel, each cut where it was thresholded.

    Returns:
        float32 [scale * h, scale * w] of the image, in [0, 1].
    """
    heat = np.zeros((), np.float32)
    for one in detections:
        values = one.original_map
        if one.geometry == "input":
            values = to_image(values, one.placement.enlarged(scale))
        elif scale > 1:
            values = values.repeat(scale, 0).repeat(scale, 1)
        if one.cut > 0:
            values = np.where(values >= one.cut, values, np.float32(0))
        heat = np.maximum(heat, values)
    return heat


def _draw_tag(image: RGBImage, box: Box, words: str, scale: int) -> None:
    """Write a line above a box, or within it where there is no room above."""
    import cv2

    height, width = image.shape[:2]
    size = min(max(11, min(height, width) // 36), 40)
    words = text.shorten(words, width - size, size)
    across, down = text.width_of(words, size) + size // 2, round(1.35 * size)
    if across > width or down > height:
        return
    left = min(max(round(scale * box.left), 0), width - across)
    top = round(scale * box.top) - down
    if top < 0:
        top = min(max(round(scale * box.top), 0), height - down)
    shade = image[top : top + down, left : left + across]
    shade[:] = cv2.convertScaleAbs(shade, alpha=0.3)
    text.write(image, words, left + size // 4, top, size)
