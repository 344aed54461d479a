"""Draw explanations over the frames of a video, without flicker."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from .. import text
from ..attribution import format_probability
from ..box_drawing import check_size, draw_boxes
from ..detection import Detection
from ..errors import RequestError
from ..explanation import Explanation
from ..images import RGBImage
from ..overlay import COLORMAPS, Colormap, Window, color_table, outline, tables
from ..preprocess import seen_window

View = Literal["overlay", "map", "side-by-side"]
VIEWS: tuple[View, ...] = get_args(View)

_SAMPLES = 24  # rows and columns of a frame that are compared with the frame before
_NEW_SCENE = 40.0  # mean difference of these samples, of 255, from which on the scene is new


class Overlay:
    """Draws explanations over frames, one after the other; for any OpenCV loop.

    The map is blended with that of the last frame, until the class, the method, the frame's size
    or the scene changes.

    Attributes:
        opacity: of the colours where the map is 1, in [0, 1].
        smoothing: weight of the last frame's map, in [0, 1); 0: none.
        threshold: least map value that is drawn, in [0, 1]; None: that of the explanation.
        contour: whether the region above the threshold is outlined.
        caption: whether label, probability and threshold are written over the frame.
        colormap: of the map, a name in ``COLORMAPS``.
        view: ``overlay``, the map over the frame; ``map``, the map alone, opaque, and black where
            the network did not look; ``side-by-side``, the frame as it is and the overlay to the
            right of it.

    Raises:
        RequestError: a value out of its range.

    Example:
        >>> explainer, overlay = whycam.load("model.onnx"), whycam.Overlay(opacity=0.5)
        >>> frame = cv2.imread("cat.jpg")[..., ::-1]
        >>> overlay.draw(frame, explainer.explain(frame)).shape
        (75, 113, 3)
    """

    def __init__(
        self,
        opacity: float = 0.6,
        smoothing: float = 0.5,
        threshold: float | None = None,
        contour: bool = True,
        caption: bool = True,
        colormap: Colormap = "inferno",
        view: View = "overlay",
    ) -> None:
        for name, value in (("opacity", opacity), ("threshold", threshold)):
            if value is not None and not 0.0 <= value <= 1.0:
                raise RequestError(f"{name} must lie between 0 and 1, not {value}")
        if not 0.0 <= smoothing < 1.0:
            raise RequestError(f"smoothing must lie in [0, 1), not {smoothing}")
        check_view(colormap, view)
        self.opacity, self.smoothing, self.threshold = opacity, smoothing, threshold
        self.contour, self.caption = contour, caption
        self.colormap, self.view = colormap, view
        self._map: NDArray[np.float32] | None = None
        self._cut = 0.0
        self._key: tuple[object, ...] = ()
        self._samples: NDArray[np.int16] | None = None

    def reset(self) -> None:
        """Forget the frames drawn so far."""
        self._map = self._samples = None

    def draw(self, image: RGBImage, explanation: Explanation, note: str = "") -> RGBImage:
        """Draw an explanation of a frame as the view says.

        Args:
            image: uint8 [h, w, 3], RGB; left as it is. (OpenCV's BGR frames do as well: only
                the colours of the heat change places.)
            explanation: of this frame.
            note: what the caption says besides.

        Returns:
            uint8 [h, w, 3], or [h, 2 w, 3] side by side; a new image. An overlay is the same as
            ``image`` where the map is 0 and no caption stands.

        Raises:
            RequestError: the explanation is of an image of another size.
        """
        placement = explanation.placement
        if image.shape[:2] != placement.image:
            raise RequestError(
                f"the explanation is of an image of {placement.image[0]} x "
                f"{placement.image[1]} pixels (height x width), not of one of "
                f"{image.shape[0]} x {image.shape[1]}"
            )
        values, cut = self._smoothed(image, explanation)
        levels, top, left = _levels(values, cut, explanation)
        drawn = _background(image, explanation, self)
        if levels.size:
            _tint(drawn[top : top + levels.shape[0], left : left + levels.shape[1]], levels, self)
            # By the threshold of this frame alone, not the smoothed one, which never reaches 0.
            threshold = explanation.cut if self.threshold is None else self.threshold
            if self.contour and threshold > 0:
                outline(drawn, levels, top, left, _window(explanation))
        if self.caption:
            _caption(drawn, explanation, note)
        return np.concatenate([image, drawn], axis=1) if self.view == "side-by-side" else drawn

    def draw_detections(
        self, image: RGBImage, detections: Sequence[Detection], note: str = ""
    ) -> RGBImage:
        """Draw the detections of a frame: the heat of their maps together, boxes and labels.

        Where maps overlap the highest is seen, each cut where it was thresholded. The heat is
        blended with that of the last frame, until the number of its rows and columns, the frame's
        size or the scene changes; there are boxes in place of outlines.

        Args:
            image: uint8 [h, w, 3], RGB; left as it is.
            detections: of this frame and one method; may be none.
            note: what is written at the lower left.

        Returns:
            uint8 [h, w, 3], or [h, 2 w, 3] side by side; a new image.

        Raises:
            RequestError: a detection is of an image of another size.
        """
        check_size(image, detections)
        drawn = np.array(image, order="C")
        if not detections:
            self.reset()
        else:
            first = detections[0]
            heat = np.max(
                [np.where(o.original_map >= o.cut, o.original_map, 0) for o in detections], 0
            )
            values, cut = self._smoothed(
                image, replace(first, original_map=heat, cut=0.0, index=-1)
            )
            levels, top, left = _levels(values, cut, first)
            drawn = _background(image, first, self)
            if levels.size:
                _tint(
                    drawn[top : top + levels.shape[0], left : left + levels.shape[1]], levels, self
                )
            draw_boxes(drawn, detections, labels=self.caption)
        if self.caption and note:
            _write_lines(drawn, [note])
        return np.concatenate([image, drawn], axis=1) if self.view == "side-by-side" else drawn

    def _smoothed(
        self, image: RGBImage, explanation: Explanation
    ) -> tuple[NDArray[np.float32], float]:
        """Blend the map and its cut with those of the last frame."""
        values, cut = explanation.original_map, float(explanation.cut)
        key = (explanation.index, explanation.method, image.shape, values.shape)
        if self.smoothing > 0 and not self._is_new_scene(image, key) and self._map is not None:
            values = values + np.float32(self.smoothing) * (self._map - values)
            cut += self.smoothing * (self._cut - cut)
        self._map, self._cut = values, cut
        return values, cut if self.threshold is None else self.threshold

    def _is_new_scene(self, image: RGBImage, key: tuple[object, ...]) -> bool:
        """Tell whether the scene, class, method or size differs from the last frame's."""
        rows, columns = (max(1, side // _SAMPLES) for side in image.shape[:2])
        samples = image[rows // 2 :: rows, columns // 2 :: columns].astype(np.int16)
        before, self._samples = self._samples, samples
        same, self._key = key == self._key, key
        if not same or before is None or before.shape != samples.shape:
            return True
        return bool(np.abs(samples - before).mean() > _NEW_SCENE)


def check_view(colormap: str, view: str) -> None:
    """Check the names of a colour map and of a view.

    Raises:
        RequestError: there is none of that name.
    """
    for name, value, known in (("colormap", colormap, COLORMAPS), ("view", view, VIEWS)):
        if value not in known:
            raise RequestError(f"{name} must be one of {', '.join(known)}; not {value!r}")


def _background(image: RGBImage, explanation: Explanation, overlay: Overlay) -> RGBImage:
    """Return what a map is drawn on: a copy of the frame, or the colour of 0 in the map's window.

    Returns:
        uint8 [h, w, 3], contiguous.
    """
    if overlay.view != "map":
        return np.array(image, order="C")
    background = np.zeros(image.shape, np.uint8)
    top, left, bottom, right = _window(explanation)
    background[top:bottom, left:right] = color_table(overlay.colormap)[0, 0]
    return background


def _levels(
    values: NDArray[np.float32], cut: float, explanation: Explanation
) -> tuple[NDArray[np.uint8], int, int]:
    """Scale the map above its cut to the frame's pixels in steps of 1/255, and locate it.

    Returns:
        uint8 [r, c], the smallest rectangle that holds all that is not 0, and its first row and
        column; [0, 0] if there is nothing.
    """
    import cv2

    height, width = explanation.placement.image
    top, left, bottom, right = _edges(explanation)
    levels = cv2.convertScaleAbs(values, alpha=255)
    if levels.shape != (bottom - top, right - left):
        levels = cv2.resize(levels, (right - left, bottom - top), interpolation=cv2.INTER_LINEAR)
    # Crop to the image where the network's input extends beyond its edges.
    levels = levels[max(0, -top) : height - top, max(0, -left) : width - left]
    top, left = max(top, 0), max(left, 0)
    if cut > 0:
        _, levels = cv2.threshold(levels, max(cut * 255 - 0.5, 0), 0, cv2.THRESH_TOZERO)
    column, row, columns, rows = cv2.boundingRect(levels)
    region = np.asarray(levels[row : row + rows, column : column + columns], np.uint8)
    return region, top + row, left + column


def _edges(explanation: Explanation) -> Window:
    """Round the edges of what the map lies over to whole image pixels."""
    placement = explanation.placement
    if explanation.geometry == "image":
        return 0, 0, *placement.image
    top, left = round(placement.top), round(placement.left)
    return top, left, max(round(placement.bottom), top + 1), max(round(placement.right), left + 1)


def _window(explanation: Explanation) -> Window:
    """Locate what the network saw of the image."""
    if explanation.geometry == "image":
        return seen_window(explanation.placement)
    height, width = explanation.placement.image
    top, left, bottom, right = _edges(explanation)
    return max(0, top), max(0, left), min(height, bottom), min(width, right)


def _tint(region: RGBImage, levels: NDArray[np.uint8], overlay: Overlay) -> None:
    """Draw colours in a region in place: opaque in the view of the map, else as ``blend`` does."""
    import cv2

    if overlay.view == "map":
        region[:] = cv2.applyColorMap(levels, color_table(overlay.colormap))
        return
    kept, colours = tables(overlay.opacity, overlay.colormap)
    dimmed = cv2.multiply(region, cv2.applyColorMap(levels, kept), scale=1 / 255)
    region[:] = cv2.add(dimmed, cv2.applyColorMap(levels, colours), dst=dimmed)


def _caption(drawn: RGBImage, explanation: Explanation, note: str) -> None:
    """Write class, method and threshold at the lower left."""
    width = drawn.shape[1]
    size = _letter_size(drawn)
    if size is None:
        return
    details: list[str] = [explanation.method]
    if explanation.threshold is not None:
        details.append(f"tau {explanation.threshold:.2g}")
    elif explanation.tft is not None:
        details.append("no threshold helps")
    if explanation.rpi is not None and np.isnan(explanation.rpi).all():
        details.append("held")  # from an earlier frame
    elif explanation.rpi is not None and explanation.improved:
        details.append(f"rpi {np.nanmax(explanation.rpi):+.0%}")
    label = text.name_class(explanation.label, explanation.index)
    number = f" {format_probability(explanation.probability, explanation.task, 2)}"
    lines = [
        text.shorten(label, width - text.width_of(number, size) - size, size) + number,
        text.shorten("  ".join([*details, note] if note else details), width - size, size),
    ]
    _write_lines(drawn, lines)


def _letter_size(drawn: RGBImage) -> int | None:
    """Choose the size of letters for a frame; None: it is too small to read on."""
    height, width = drawn.shape[:2]
    size = min(max(11, min(height, width) // 30), 48)
    return None if height < 4 * size or width < 8 * size else size


def _write_lines(drawn: RGBImage, lines: Sequence[str]) -> None:
    """Write lines at the lower left, on a shade that leaves the frame visible."""
    import cv2

    height, width = drawn.shape[:2]
    size = _letter_size(drawn)
    if size is None:
        return
    space = round(1.4 * size)
    longest = max(text.width_of(line, size) for line in lines) + size
    # In coarse steps, so that the shade does not tremble with the digits.
    top = height - len(lines) * space - size // 2
    shade = drawn[top:, : min(width, -(-longest // 64) * 64)]
    shade[:] = cv2.convertScaleAbs(shade, alpha=0.35)
    for row, line in enumerate(lines):
        text.write(drawn, line, size // 2, height - (len(lines) - row) * space - size // 4, size)
