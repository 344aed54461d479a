"""Read frames from OpenCV captures and image sequences behind one protocol."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np

from ..errors import ImageError
from ..images import RGBImage, read_image

_MAX_FRAMES = 1e9  # some files state an impossible number


class Capture(Protocol):
    """An open source.

    Attributes:
        fps: frames a second, or 0 if the source states none.
        frames: number of frames, or None.
        seconds: time of the last frame since the beginning of the source, or None.
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
    """A ``cv2.VideoCapture``, or an object with its ``read``, ``release`` and perhaps ``get``."""

    def __init__(self, capture: Any) -> None:
        import cv2

        self._capture = capture
        self._get = getattr(capture, "get", None)
        self.fps = usable_rate(self._property(cv2.CAP_PROP_FPS))
        count = self._property(cv2.CAP_PROP_FRAME_COUNT)
        self.frames = int(count) if math.isfinite(count) and 0 < count < _MAX_FRAMES else None
        self.seconds: float | None = None

    def read(self) -> tuple[bool, RGBImage | None]:
        """See ``Capture``."""
        import cv2

        try:
            available, frame = self._capture.read()
        except cv2.error:
            return True, None
        self.seconds = None if self._get is None else self._property(cv2.CAP_PROP_POS_MSEC) / 1e3
        return bool(available), _as_rgb(frame) if available else None

    def release(self) -> None:
        """See ``Capture``."""
        self._capture.release()

    def _property(self, name: int) -> float:
        return 0.0 if self._get is None else float(self._get(name))


class ImageSequence:
    """A sequence of images, each read when it is needed."""

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
    """Return a source's frame rate; 0 if it states none, or an impossible one."""
    return fps if math.isfinite(fps) and 0 < fps <= 1000 else 0.0


def _as_rgb(frame: Any) -> RGBImage | None:
    """Convert OpenCV's grey, BGR or BGRA to RGB; None for anything else."""
    import cv2

    if not isinstance(frame, np.ndarray) or frame.dtype != np.uint8 or frame.size == 0:
        return None
    channels = 1 if frame.ndim == 2 else frame.shape[2] if frame.ndim == 3 else 0
    codes = {1: cv2.COLOR_GRAY2RGB, 3: cv2.COLOR_BGR2RGB, 4: cv2.COLOR_BGRA2RGB}
    return np.asarray(cv2.cvtColor(frame, codes[channels])) if channels in codes else None
