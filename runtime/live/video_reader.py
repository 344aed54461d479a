"""Read video files with FFmpeg: each frame upright, with its own time."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import numpy as np

from ..errors import MissingExtraError, SourceError
from ..images import RGBImage
from .capture import usable_rate


def pyav() -> Any:
    """Import PyAV, FFmpeg's libraries for Python.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        import av
    except ImportError as error:
        raise MissingExtraError("av", "video", "reading and writing video files") from error
    return av


class VideoReader:
    """An open video file, see ``Capture``.

    Frames that its container wants rotated, as phones write them, are.

    Raises:
        SourceError: it is no video, or is damaged.
        MissingExtraError: PyAV is not installed.
    """

    def __init__(self, path: str) -> None:
        self._av = pyav()
        try:
            # By its protocol, or a colon in the name would be taken for another one's.
            self._container = self._av.open(f"file:{path}", metadata_errors="replace")
        except (self._av.FFmpegError, ValueError) as error:
            raise SourceError(
                f"{path} is no video that FFmpeg can read, or is damaged: {_reason(error)}"
            ) from error
        if not self._container.streams.video:
            self._container.close()
            raise SourceError(f"{path} holds no video that FFmpeg can read, or is damaged")
        stream = self._container.streams.video[0]
        stream.thread_type = "AUTO"
        self.fps = usable_rate(float(stream.average_rate or stream.guessed_rate or 0))
        self.frames = self._count(stream)
        self.seconds: float | None = None
        self._start = stream.start_time or 0
        self._decoded = self._decode(stream)

    def read(self) -> tuple[bool, RGBImage | None]:
        """See ``Capture``."""
        try:
            frame = next(self._decoded)
        except StopIteration:
            return False, None
        if frame is None:
            return True, None
        known = frame.pts is not None and frame.time_base is not None
        self.seconds = float((frame.pts - self._start) * frame.time_base) if known else None
        image = np.asarray(frame.to_ndarray(format="rgb24"))
        turns = round(frame.rotation / 90) % 4
        return True, np.ascontiguousarray(np.rot90(image, turns)) if turns else image

    def release(self) -> None:
        """See ``Capture``."""
        self._decoded.close()
        self._container.close()

    def _count(self, stream: Any) -> int | None:
        """Count the frames by the index, or estimate them from the length."""
        if stream.frames > 0:
            return int(stream.frames)
        length = self._container.duration  # microseconds
        return round(length / 1e6 * self.fps) or None if length and length > 0 else None

    def _decode(self, stream: Any) -> Generator[Any, None, None]:
        """Yield frames in display order; None for packets that could not be decoded."""
        packets = self._container.demux(stream)
        while True:
            try:
                packet = next(packets)
            except (StopIteration, self._av.FFmpegError):  # what follows cannot be reached
                return
            try:
                frames = packet.decode()
            except self._av.FFmpegError:
                yield None
                continue
            yield from frames


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
