"""Write a video on a thread of its own; what was written is kept, whatever ends it."""

from __future__ import annotations

import os
import shutil
import threading
from array import array
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import OutputError, RequestError
from ..files import replacing
from ..images import Picture
from . import mp4
from .pipe import Pipe

__all__ = ["VideoFile"]

# MPEG-4 Part 2: the one codec for .mp4 that every build of OpenCV can write.
CODEC = "mp4v"
_WAITING = 4  # frames
_RESERVE = 16 * 2**20  # bytes left free, so that the file's index can still be written
_CHECK_EVERY = 16  # frames
_UNEVEN = 5e-4  # seconds that a frame may be off the even spacing OpenCV writes


class VideoFile:
    """An MP4 file being written; a context manager.

    Frames are encoded on another thread. The file has a temporary name until ``close``, which
    keeps every frame written so far, also after an error or an interruption.

    Attributes:
        path: where it will be.
        frames: written so far.
        resized: frames of another size than the first, which were fitted into it.

    Args:
        path: ends in .mp4.
        fps: of frames without a time of their own, and of those that are evenly spaced.
        codec: four letters that OpenCV knows, for builds of it that can write others.

    Raises:
        RequestError: another ending, or an unusable rate or codec.
        OutputError: the place cannot be written.
    """

    def __init__(self, path: str | os.PathLike[str], fps: float, codec: str = CODEC) -> None:
        self.path = Path(path)
        self.frames = self.resized = 0
        if self.path.suffix.lower() != ".mp4":
            raise RequestError(f"a video is written as .mp4, not {self.path.name}")
        if not 0 < fps <= 1000:
            raise RequestError(f"a video has between 0 and 1000 frames a second, not {fps}")
        if len(codec) != 4:
            raise RequestError(f"a codec has four letters, as mp4v, not '{codec}'")
        self._fps, self._codec = fps, codec
        self._stack = ExitStack()
        self._temporary = self._stack.enter_context(replacing(self.path))
        self._writer: Any = None
        self._size = (0, 0)
        self._seconds = array("d")
        self._error: BaseException | None = None
        self._closed = False
        self._pipe: Pipe[tuple[Picture, float | None]] = Pipe(_WAITING)
        self._thread = threading.Thread(target=self._run, name="whycam writer", daemon=True)
        self._thread.start()

    def __enter__(self) -> VideoFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def write(self, picture: Picture, seconds: float | None = None) -> None:
        """Add a frame.

        Args:
            picture: uint8 [h, w, 3], RGB, not changed afterwards; the first says the video's size,
                and others are fitted into it, with black borders.
            seconds: when it is shown, after the one before; None: evenly spaced.

        Raises:
            OutputError: an earlier frame could not be written.
        """
        if not self._pipe.put((picture, seconds)):
            self._raise()
            raise OutputError(f"{self.path} is closed: no frame can be added")

    def close(self) -> None:
        """Finish the file and give it its name; without any frame there is none.

        Raises:
            OutputError: it could not be written, or not all of it.
        """
        if self._closed:
            return
        self._closed = True
        self._pipe.end()
        self._thread.join()
        held = mp4.frame_count(self._temporary) if self.frames else None
        if held is None:
            with suppress(_Discarded):
                self._stack.__exit__(_Discarded, _Discarded(), None)
            self._raise()
            if self.frames:
                raise OutputError(f"{self.path} could not be finished: is the disk full?")
            return
        with self._stack:
            self._set_times(held)
        self._raise()
        if held != self.frames:
            raise OutputError(
                f"{self.path} holds {held} of {self.frames} frames: the others could not be "
                "written. Is the disk full?"
            )

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            for picture, seconds in self._pipe:
                self._encode(picture, seconds)
        except BaseException as error:
            self._error = error
        finally:
            self._pipe.close()
            if self._writer is not None:
                self._writer.release()

    def _encode(self, picture: Picture, seconds: float | None) -> None:
        import cv2

        if self._writer is None:
            self._open((picture.shape[0], picture.shape[1]))
        if self.frames % _CHECK_EVERY == 0:
            free = shutil.disk_usage(self.path.parent).free
            if free < _RESERVE:
                raise OutputError(
                    f"no space is left for {self.path} ({free / 2**20:.0f} MiB): it ends after "
                    f"{self.frames} frames"
                )
        if picture.shape[:2] != self._size:
            self.resized += 1
            picture = _fitted(picture, self._size)
        self._writer.write(cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
        self.frames += 1
        last = self._seconds[-1] + 1 / self._fps if self._seconds else 0.0
        self._seconds.append(last if seconds is None else seconds)

    def _open(self, size: tuple[int, int]) -> None:
        import cv2

        if min(size) < 2:
            raise OutputError(f"frames of {size[1]} x {size[0]} pixels are too small for a video")
        self._size = size
        fourcc = cv2.VideoWriter.fourcc(*self._codec)
        place = str(self._temporary)
        self._writer = cv2.VideoWriter(place, fourcc, self._fps, (size[1], size[0]))
        if not self._writer.isOpened():
            raise OutputError(
                f"this build of OpenCV cannot write {size[1]} x {size[0]} pixels as "
                f"'{self._codec}'; {CODEC} is the codec that each has"
            )

    def _set_times(self, held: int) -> None:
        """Put the frames' own times into the file, where they are not evenly spaced."""
        seconds = self._seconds[:held]
        even = seconds[0] + np.arange(len(seconds)) / self._fps
        if np.abs(np.array(seconds) - even).max() > _UNEVEN:
            mp4.retime(self._temporary, seconds)


class _Discarded(Exception):
    """Nothing is to be left behind."""


def _fitted(picture: Picture, size: tuple[int, int]) -> Picture:
    """A picture scaled into another size, with black borders."""
    import cv2

    scale = min(size[0] / picture.shape[0], size[1] / picture.shape[1])
    height, width = (
        min(most, max(1, round(scale * side)))
        for side, most in zip(picture.shape[:2], size, strict=True)
    )
    fitted = np.zeros((*size, 3), np.uint8)
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    fitted[top : top + height, left : left + width] = cv2.resize(
        picture, (width, height), interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    )
    return fitted
