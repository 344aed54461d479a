"""Captures that die, stall and stutter, behind the face of ``cv2.VideoCapture``."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from whycam.runtime.live.capture import OpenCVCapture
from whycam.runtime.live.source import Source

CORRUPT = "corrupt"


def image_of(number: int, size: tuple[int, int] = (48, 64)) -> np.ndarray:
    """uint8 [h, w, 3]: grey says which frame it is, and a bright square gives it a map."""
    found = np.full((*size, 3), (20 * number) % 240, np.uint8)
    found[size[0] // 3 : size[0] // 2, size[1] // 3 : size[1] // 2] = 255
    return found


def number_of(frame: np.ndarray) -> int:
    return round(float(np.median(frame[0])) / 20)


class FakeCapture:
    """Gives what it is told to, BGR.

    Items: an image; ``CORRUPT``: a read that worked and gave nothing; an exception: raised; an
    event: waited for, as a driver that hangs; a number: seconds that it takes.
    """

    def __init__(self, items: Iterable[Any], fps: float = 0.0, count: int = 0) -> None:
        self._items = iter(items)
        self._told = {cv2.CAP_PROP_FPS: fps, cv2.CAP_PROP_FRAME_COUNT: count}
        self.released = threading.Event()

    def read(self) -> tuple[bool, Any]:
        for item in self._items:
            if isinstance(item, Exception):
                raise item
            if isinstance(item, threading.Event):
                item.wait(20)
                return False, None
            if isinstance(item, int | float):
                time.sleep(item)
                continue
            return True, None if isinstance(item, str) else item
        return False, None

    def get(self, name: int) -> float:
        return self._told.get(name, 0.0)

    def release(self) -> None:
        self.released.set()


def source_of(*captures: Any, live: bool = True, name: str = "camera 9") -> Source:
    """A source that gives these captures, one at each opening; an exception is raised instead."""
    left = list(captures)

    def opened() -> Any:
        capture = left.pop(0)
        if isinstance(capture, Exception):
            raise capture
        return OpenCVCapture(capture)

    return Source(name, live, opened)


def write_video(path: Path, frames: Iterable[np.ndarray], fps: float = 25.0) -> Path:
    """A video as OpenCV writes it, from RGB."""
    writer = None
    for frame in frames:
        if writer is None:
            size = frame.shape[1], frame.shape[0]
            writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), fps, size)
        writer.write(frame[..., ::-1].copy())
    assert writer is not None
    writer.release()
    return path


def read_video(path: Path) -> tuple[list[np.ndarray], list[float]]:
    """Frames, RGB, and the seconds at which each is shown."""
    capture = cv2.VideoCapture(str(path))
    frames, seconds = [], []
    while True:
        there, frame = capture.read()
        if not there:
            return frames, seconds
        frames.append(frame[..., ::-1])
        seconds.append(capture.get(cv2.CAP_PROP_POS_MSEC) / 1e3)


def new_threads(before: set[threading.Thread], patience: float = 5.0) -> set[threading.Thread]:
    """Threads that were not there before and do not end."""
    deadline = time.monotonic() + patience
    while (left := set(threading.enumerate()) - before) and time.monotonic() < deadline:
        time.sleep(0.01)
    return left
