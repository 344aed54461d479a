"""Open a stream's source: camera, file, address, pipeline, folder or capture."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import SourceError
from ..images import IMAGE_SUFFIXES, list_images
from .capture import Capture, ImageSequence, OpenCVCapture
from .video_reader import VideoReader

_OPEN_SECONDS = 10.0
_READ_SECONDS = 10.0
_IMAGES_PER_SECOND = 25.0


@dataclass(frozen=True)
class Source:
    """A camera, file, address or sequence of images that frames are read from.

    Attributes:
        name: for messages.
        live: whether frames arrive at their own rate, and are lost if they are not read.
        open: opens it; raises ``SourceError``.
        again: whether it can be opened a second time.
        fps: frames a second, if known without opening it.
    """

    name: str
    live: bool
    open: Callable[[], Capture]
    again: bool = True
    fps: float | None = None


def find_source(source: Any, fps: float | None = None) -> Source:
    """Recognise a source without opening it.

    Args:
        source: a camera's number or device; a video file; a folder of images, read in the order
            of their names, or one image; an address (``rtsp://...``); a GStreamer pipeline, which
            has a ``!``; an object with the ``read`` and ``release`` of ``cv2.VideoCapture``; or an
            iterable of RGB images, uint8 [h, w, 3].
        fps: frame rate of images, which have none; for a camera, the rate to request.

    Raises:
        SourceError: it is none of these, or does not exist.
    """
    if isinstance(source, bool):
        raise SourceError(f"a source is a camera, a file, an address or a folder, not {source}")
    if isinstance(source, int | np.integer):
        return _camera(int(source), f"camera {source}", fps)
    if isinstance(source, str | os.PathLike):
        return _named(os.fspath(source), fps)
    if callable(getattr(source, "read", None)) and callable(getattr(source, "release", None)):
        capture = OpenCVCapture(source)
        # A capture without a number of frames is a camera's.
        live = capture.frames is None
        return Source(f"the {type(source).__name__}", live, lambda: capture, again=False)
    if isinstance(source, Iterable):
        rate = fps or _IMAGES_PER_SECOND
        name = f"the {type(source).__name__} of images"
        images = iter(source)
        return Source(name, False, lambda: ImageSequence(images), again=False, fps=rate)
    raise SourceError(
        f"cannot read a stream from {type(source).__name__}: pass a camera's number, a file, an "
        "address, a folder, a cv2.VideoCapture or an iterable of RGB images"
    )


def _named(text: str, fps: float | None) -> Source:
    if text.isdecimal():
        return _camera(int(text), f"camera {text}", fps)
    if "!" in text and not os.path.exists(text):
        return Source("the GStreamer pipeline", True, lambda: _open_pipeline(text))
    if "://" in text:
        # A recording at an address has an end: it is not a live source.
        live = not text.split("?")[0].lower().endswith((".mp4", ".mkv", ".mov", ".avi", ".webm"))
        return Source(_without_password(text), live, lambda: _open_address(text))
    path = Path(text)
    if not os.path.exists(text):  # False, where pathlib raises: names too long, or with NUL
        raise SourceError(f"there is no file, folder or camera {text}")
    if path.is_dir():
        return _folder(path, fps)
    if path.is_char_device():
        return _camera(text, text, fps)
    if path.stat().st_size == 0:
        raise SourceError(f"{text} is empty")
    if path.suffix.lower() in IMAGE_SUFFIXES:
        return _image_sequence(text, [path], fps)
    return Source(text, False, lambda: VideoReader(text))


def _folder(path: Path, fps: float | None) -> Source:
    files = [file for file in list_images(path) if file.parent == path]
    if not files:
        raise SourceError(f"there are no images in the folder {path}")
    return _image_sequence(str(path), files, fps)


def _image_sequence(name: str, files: list[Path], fps: float | None) -> Source:
    rate = fps or _IMAGES_PER_SECOND
    return Source(name, False, lambda: ImageSequence(iter(files), len(files)), fps=rate)


def _camera(device: int | str, name: str, fps: float | None) -> Source:
    def open_camera() -> Capture:
        import cv2

        capture = cv2.VideoCapture(device)
        if not capture.isOpened():
            raise SourceError(
                f"cannot open {name}: is it connected, not in use by another program, and may "
                "this user read it? (Linux: ls -l /dev/video*)"
            )
        if fps is not None:
            capture.set(cv2.CAP_PROP_FPS, fps)  # as near to it as the camera can
        # Frames in a driver's buffer are old. Not every driver can do without one.
        capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)
        return OpenCVCapture(capture)

    return Source(name, True, open_camera)


def _open_address(url: str) -> Capture:
    import cv2

    limits = [
        cv2.CAP_PROP_OPEN_TIMEOUT_MSEC,
        int(1e3 * _OPEN_SECONDS),
        cv2.CAP_PROP_READ_TIMEOUT_MSEC,
        int(1e3 * _READ_SECONDS),
    ]
    capture = cv2.VideoCapture(url, cv2.CAP_FFMPEG, limits)
    if not capture.isOpened():
        raise SourceError(
            f"cannot open {_without_password(url)} within {_OPEN_SECONDS:g} s: is the address "
            "right, and can it be reached from here?"
        )
    return OpenCVCapture(capture)


def _open_pipeline(pipeline: str) -> Capture:
    import cv2

    if not cv2.videoio_registry.hasBackend(cv2.CAP_GSTREAMER):
        raise SourceError(
            "the OpenCV here was built without GStreamer, as those from PyPI are: install your "
            "distribution's (Debian: apt install python3-opencv) or build it with WITH_GSTREAMER"
        )
    capture = cv2.VideoCapture(pipeline, cv2.CAP_GSTREAMER)
    if not capture.isOpened():
        raise SourceError(
            f"cannot start the GStreamer pipeline '{pipeline}': try it with gst-launch-1.0; it "
            "must end in ... ! videoconvert ! video/x-raw,format=BGR ! appsink drop=1 max-buffers=1"
        )
    return OpenCVCapture(capture)


def _without_password(url: str) -> str:
    scheme, _, rest = url.partition("://")
    host, slash, path = rest.partition("/")
    return f"{scheme}://{host.rpartition('@')[2]}{slash}{path}"
