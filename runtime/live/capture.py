"""Read frames from OpenCV captures and image sequences behind one protocol."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np

from ..errors import ImageError
from ..images import RGBImage, read_image

_LONGEST = 1e9  # frames; some files say nonsense


class Capture(Protocol):
    """An open source.

    Attributes:
        fps: frames a second, or 0 where the source does not say.
        frames: how many there are, or None.
        seconds: time of the last frame since the source's beginning, or None.
    """

    fps: float
    frames: int | None
    seconds: float | None

    def read(self) -> tuple[bool, RGBImage | None]:
        """Read a frame: (False, None) at the end; (True, None) for a corrupt one; else RGB."""
        ...

    def release(self) -> None:
        """Release the device or file."""
        ...


class OpenCVCapture:
    """A ``cv2.VideoCapture``, or what has its ``read``, ``release`` and, perhaps, ``get``."""

    def __init__(self, capture: Any) -> None:
        import cv2

        self._capture = capture
        self._get = getattr(capture, "get", None)
        self.fps = usable_rate(self._told(cv2.CAP_PROP_FPS))
        count = self._told(cv2.CAP_PROP_FRAME_COUNT)
        self.frames = int(count) if math.isfinite(count) and 0 < count < _LONGEST else None
        self.seconds: float | None = None

    def read(self) -> tuple[bool, RGBImage | None]:
        """See ``Capture``."""
        import cv2

        try:
            there, found = self._capture.read()
        except cv2.error:
            return True, None
        self.seconds = None if self._get is None else self._told(cv2.CAP_PROP_POS_MSEC) / 1e3
        return bool(there), _as_rgb(found) if there else None

    def release(self) -> None:
        """See ``Capture``."""
        self._capture.release()

    def _told(self, name: int) -> float:
        return 0.0 if self._get is None else float(self._get(name))


class ImageSequence:
    """Images one after the other; each is read when its turn comes."""

    def __init__(self, images: Iterator[Any], count: int | None = None) -> None:
        self._images = images
        self.fps = 0.0
        self.frames = count
        self.seconds: float | None = None

    def read(self) -> tuple[bool, RGBImage | None]:
        """See ``Capture``."""
        try:
            image = next(self._images)
        except StopIteration:
            return False, None
        try:
            return True, read_image(image)
        except ImageError:
            return True, None

    def release(self) -> None:
        """See ``Capture``."""


def usable_rate(fps: float) -> float:
    """Return a source's frame rate; 0 where it states none, or an impossible one."""
    return fps if math.isfinite(fps) and 0 < fps <= 1000 else 0.0


def _as_rgb(found: Any) -> RGBImage | None:
    import cv2

    if not isinstance(found, np.ndarray) or found.dtype != np.uint8 or found.size == 0:
        return None
    if found.ndim == 2 or (found.ndim == 3 and found.shape[2] == 1):
        return np.asarray(cv2.cvtColor(found, cv2.COLOR_GRAY2RGB))
    if found.ndim == 3 and found.shape[2] in (3, 4):
        alpha = found.shape[2] == 4
        code = cv2.COLOR_BGRA2RGB if alpha else cv2.COLOR_BGR2RGB
        return np.asarray(cv2.cvtColor(found, code))
    return None
