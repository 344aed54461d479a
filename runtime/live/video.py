"""Write a video on a thread of its own; frames written are kept, whatever ends it."""

from __future__ import annotations

import os
import shutil
import threading
from contextlib import ExitStack, suppress
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import OutputError, RequestError
from ..files import replacing
from ..images import RGBImage
from .pipe import Pipe
from .video_reader import pyav

__all__ = ["VideoFile"]

# Encoders of FFmpeg, the first that is there: H.264 where a build may have it, else MPEG-4 Part 2.
_ENCODERS = ("libx264", "libopenh264", "mpeg4")
# The fastest: explanations need the processor more. At this quality it is as large as MPEG-4.
_OPTIONS = {
    "libx264": {"preset": "ultrafast", "crf": "23"},
    "mpeg4": {"flags": "+qscale", "global_quality": str(4 * 118)},
}
_LEAST_TICKS = 10_000  # a second, about
_MOST_TICKS = 60_000  # MPEG-4 counts them in 16 bits
_LONGEST_STEP = 2**31 - 1  # ticks from one frame to the next, as MP4 files count them
_WAITING = 4  # frames
_RESERVE = 16 * 2**20  # bytes left free, so that the file's index can still be written
_CHECK_EVERY = 16  # frames


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
        codec: an encoder of FFmpeg, as mpeg4 or h264_nvenc; None: H.264 (libx264) if this FFmpeg
            has it, else MPEG-4 Part 2 (mpeg4).

    Raises:
        RequestError: another ending, an unusable rate, or a codec that is not there.
        OutputError: the place cannot be written.
        MissingExtraError: PyAV is not installed.
    """

    def __init__(self, path: str | os.PathLike[str], fps: float, codec: str | None = None) -> None:
        self.path = Path(path)
        self.frames = self.resized = 0
        if self.path.suffix.lower() != ".mp4":
            raise RequestError(f"a video is written as .mp4, not {self.path.name}")
        if not 0 < fps <= 1000:
            raise RequestError(f"a video has between 0 and 1000 frames a second, not {fps}")
        self._av = pyav()
        self._fps, self._codec = fps, self._encoder(codec)
        self._rate, self._ticks = _clock(fps)
        self._stack = ExitStack()
        self._temporary = self._stack.enter_context(replacing(self.path))
        self._container: Any = None
        self._stream: Any = None
        self._size = (0, 0)
        self._began = 0.0  # seconds of the first frame
        self._last = 0.0  # seconds of the last frame
        self._tick = -1  # of the last frame
        self._error: BaseException | None = None
        self._closed = self._damaged = self._finished = False
        self._pipe: Pipe[tuple[RGBImage, float | None]] = Pipe(_WAITING)
        self._thread = threading.Thread(target=self._run, name="whycam writer", daemon=True)
        self._thread.start()

    def __enter__(self) -> VideoFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def write(self, image: RGBImage, seconds: float | None = None) -> None:
        """Add a frame.

        Args:
            image: uint8 [h, w, 3], RGB, not changed afterwards; the first says the video's size,
                and others are fitted into it, with black borders.
            seconds: when it is shown, after the one before; None: evenly spaced.

        Raises:
            OutputError: an earlier frame could not be written.
        """
        if not self._pipe.put((image, seconds)):
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
        if self._finished:
            self._stack.close()
        else:
            with suppress(_Discarded):
                self._stack.__exit__(_Discarded, _Discarded(), None)
        self._raise()

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            for image, seconds in self._pipe:
                self._encode(image, seconds)
        except BaseException as error:
            self._error = error
        finally:
            self._pipe.close()
            self._finish()

    def _encode(self, image: RGBImage, seconds: float | None) -> None:
        import cv2

        if self._stream is None:
            self._open((image.shape[0], image.shape[1]))
        if self.frames % _CHECK_EVERY == 0:
            free = shutil.disk_usage(self.path.parent).free
            if free < _RESERVE:
                raise OutputError(
                    f"no space is left for {self.path} ({free / 2**20:.0f} MiB): it ends after "
                    f"{self.frames} frames"
                )
        if image.shape[:2] != self._size:
            self.resized += 1
            image = _fitted(image, self._size)
        height, width = self._size
        even = np.ascontiguousarray(image[: height // 2 * 2, : width // 2 * 2])
        planes = cv2.cvtColor(even, cv2.COLOR_RGB2YUV_I420)
        frame = self._av.VideoFrame.from_ndarray(planes, format="yuv420p")
        if seconds is None:
            seconds = self._last + 1 / self._fps if self.frames else 0.0
        if self.frames == 0:
            self._began = seconds
        self._last = seconds
        tick = round((seconds - self._began) * self._ticks)
        self._tick += min(max(1, tick - self._tick), _LONGEST_STEP)
        frame.pts, frame.time_base = self._tick, Fraction(1, self._ticks)
        frame.duration = max(1, round(self._ticks / self._fps))
        self._write_packets(frame)
        self.frames += 1

    def _write_packets(self, frame: Any) -> None:
        """Encode a frame; None flushes the encoder."""
        try:
            self._container.mux(self._stream.encode(frame))
        except self._av.FFmpegError as error:
            self._damaged = True
            raise self._unfinished(error) from error

    def _open(self, size: tuple[int, int]) -> None:
        if min(size) < 2:
            raise OutputError(f"frames of {size[1]} x {size[0]} pixels are too small for a video")
        self._size = size
        try:
            self._container = self._av.open(f"file:{self._temporary}", "w", format="mp4")
            stream = self._container.add_stream(
                self._codec, rate=self._rate, options=_OPTIONS.get(self._codec, {})
            )
            stream.height, stream.width = size[0] // 2 * 2, size[1] // 2 * 2
            stream.pix_fmt = "yuv420p"
            stream.codec_context.time_base = Fraction(1, self._ticks)
            stream.codec_context.open()
        except (self._av.FFmpegError, ValueError) as error:
            self._damaged = True
            raise OutputError(
                f"FFmpeg cannot write {size[1]} x {size[0]} pixels as '{self._codec}' "
                f"({getattr(error, 'strerror', None) or error}): choose another codec, as mpeg4"
            ) from error
        self._stream = stream

    def _finish(self) -> None:
        """Flush the encoder and write the index."""
        if self._container is None:
            return
        try:
            if self.frames and not self._damaged:
                self._write_packets(None)
            self._container.close()
            self._finished = self.frames > 0 and not self._damaged
        except (OutputError, self._av.FFmpegError) as error:
            failed = error if isinstance(error, OutputError) else self._unfinished(error)
            self._error = self._error or failed

    def _unfinished(self, error: OSError) -> OutputError:
        return OutputError(
            f"{self.path} could not be finished: {error.strerror or error}. Is the disk full?"
        )

    def _encoder(self, codec: str | None) -> str:
        if codec is None:
            return next(name for name in _ENCODERS if self._encodes(name))
        if not self._encodes(codec):
            there = ", ".join(name for name in _ENCODERS if self._encodes(name))
            raise RequestError(
                f"this FFmpeg has no video encoder '{codec}'; it has, among others, {there}"
            )
        return codec

    def _encodes(self, name: str) -> bool:
        try:
            return bool(self._av.Codec(name, "w").type == "video")
        except ValueError:
            return False


def _clock(fps: float) -> tuple[Fraction, int]:
    """Convert a rate to a fraction, as 30000/1001, and choose the ticks a second."""
    rate = Fraction(fps).limit_denominator(1001)
    if rate.numerator > _MOST_TICKS:
        rate = Fraction(fps).limit_denominator(_MOST_TICKS // 1001)
    return rate, rate.numerator * max(1, _LEAST_TICKS // rate.numerator)


class _Discarded(Exception):
    """Nothing is to be left behind."""


def _fitted(image: RGBImage, size: tuple[int, int]) -> RGBImage:
    """Scale an image into another size, with black borders."""
    import cv2

    scale = min(size[0] / image.shape[0], size[1] / image.shape[1])
    height, width = (
        min(most, max(1, round(scale * side)))
        for side, most in zip(image.shape[:2], size, strict=True)
    )
    fitted = np.zeros((*size, 3), np.uint8)
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    fitted[top : top + height, left : left + width] = cv2.resize(
        image, (width, height), interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    )
    return fitted
