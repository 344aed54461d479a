"""Draw a stream's frames, and those that look like the one before only once."""

from __future__ import annotations

import numpy as np

from ..images import RGBImage
from .annotate import Overlay
from .frames import Explained


class DrawnFrames:
    """Draws explained frames one after the other.

    The map that is drawn is blended with the last one, so that frames without a change go on
    changing for a while. Once two of them came out alike, the others are copies.

    Args:
        overlay: draws; its settings follow the frames' looks.
    """

    def __init__(self, overlay: Overlay) -> None:
        self._overlay = overlay
        self._last: tuple[object, ...] = ()
        self._image: RGBImage | None = None  # of the last frame, if it was unchanged
        self._settled = False

    def draw(self, explained: Explained, note: str) -> RGBImage:
        """Draw a frame, see ``Overlay.draw``; a new image, which the caller may change."""
        key = explained.look, note
        unchanged = explained.reused == "unchanged" and key == self._last
        self._last = key
        if not unchanged:
            self._image, self._settled = None, False
            return self._drawn(explained, note)
        if self._settled and self._image is not None:
            return np.array(self._image)
        image = self._drawn(explained, note)
        self._settled = self._image is not None and np.array_equal(image, self._image)
        self._image = image.copy()
        return image

    def _drawn(self, explained: Explained, note: str) -> RGBImage:
        overlay, look = self._overlay, explained.look
        overlay.opacity, overlay.smoothing = look.opacity, look.smoothing
        overlay.threshold, overlay.contour = look.threshold, look.contour
        overlay.colormap, overlay.view = look.colormap, look.view
        image = explained.frame.image
        if explained.explanation is not None:
            return overlay.draw(image, explained.explanation, note)
        return overlay.draw_detections(image, explained.detections or (), note)
