"""Reads a source on threads of its own: paces it, survives a lost or silent one, and counts."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from .errors import SourceError
from .images import Picture
from .pipe import Pipe
from .source import Capture, Source

_FIRST_DELAY, _LONGEST_DELAY = 0.5, 30.0
_OPENING_SECONDS = 20.0  # an address has a shorter limit of its own, a device may have none
_TICK = 0.05
_CORRUPT_IN_A_ROW = 300
_ABANDONED = 4  # threads that hang in a driver, before another one is risked

Kind = Literal["lost", "back", "corrupt", "cut short", "resized"]


@dataclass(frozen=True)
class Event:
    """Something that happened to a stream and that people should know.

    Attributes:
        kind: ``lost``: a live source, which is tried again; ``back``: it came again; ``corrupt``:
            the first frame that could not be decoded; ``cut short``: a file ended before its
            time; ``resized``: frames have another size from here on.
        text: a sentence.
    """

    kind: Kind
    text: str


@dataclass(frozen=True, eq=False)
class Frame:
    """A frame as it was read.

    Attributes:
        index: in the source, from 0; those passed over count.
        seconds: its time in the source.
        picture: uint8 [h, w, 3], RGB.
        read: seconds that decoding it took; of a live source with the wait for it.
        arrived: when it was there, by ``time.perf_counter``.
    """

    index: int
    seconds: float
    picture: Picture
    read: float
    arrived: float


class Reader:
    """Puts a source's frames into ``frames``.

    Reading can hang in a driver for good, so each opening of the source has a thread, which
    another one watches and, if need be, leaves behind.

    Attributes:
        frames: ends with the source, or with the error that it died of.
        fps: the source's own, or 0 where it does not say.
        total: how many frames it has, or None.
        read: frames of the source so far.
        handed: those of them that were put into ``frames``.
        corrupt: those that could not be decoded.
        reconnects: how often a live source came back.

    Args:
        source: from ``find_source``.
        drop: old frames give way to new ones, and a file is played at its own pace.
        loop: a file begins again when it ends.
        fps: take at most so many frames a second of the source.
        stall: seconds without a frame after which a live source counts as lost.
        retries: how often to try to open a lost source again; None: until ``close``.
        tell: called with each ``Event``, on the reader's thread.

    Raises:
        SourceError: it cannot be opened.
    """

    def __init__(
        self,
        source: Source,
        *,
        drop: bool,
        loop: bool = False,
        fps: float | None = None,
        stall: float = 5.0,
        retries: int | None = None,
        tell: Callable[[Event], None] = lambda _: None,
    ) -> None:
        self.source = source
        self.frames: Pipe[Frame] = Pipe(1 if drop else 2, latest=drop)
        self.fps = 0.0
        self.total: int | None = None
        self.corrupt = 0
        self.reconnects = 0
        self._drop, self._loop, self._limit_fps = drop, loop, fps
        self._stall, self._retries, self._tell = stall, retries, tell
        self._stopped = threading.Event()
        self._opened = threading.Event()
        self._error: BaseException | None = None
        self.read = self.handed = 0
        self._began: float | None = None  # when the first frame of a live source came
        self._offset = 0.0  # seconds of a looped file's earlier rounds
        self._due = 0.0
        self._abandoned: list[_Attempt] = []
        self._thread = threading.Thread(target=self._watch, name="whycam reader", daemon=True)
        self._thread.start()
        self._opened.wait()
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        """Stop reading; waits a moment for a read under way, and no longer."""
        self._stopped.set()
        self.frames.close()
        self._thread.join(2.0)

    @property
    def pace(self) -> float:
        """Frames a second that come out, or 0 where the source does not say."""
        own = self.source.fps or self.fps
        if self._limit_fps is None:
            return own
        return min(own, self._limit_fps) if own else self._limit_fps

    def _watch(self) -> None:
        try:
            self._rounds()
        except BaseException as error:
            if not self._opened.is_set():
                self._error = error
            self.frames.end(error)
        else:
            self.frames.end()
        finally:
            self._opened.set()

    def _rounds(self) -> None:
        """Open and read, again and again where the source asks for it."""
        failures = 0
        while not self._stopped.is_set():
            attempt = _Attempt(self, lost_before=failures > 0)
            why = self._wait_for(attempt)
            if self._stopped.is_set():
                return
            if attempt.frames:
                failures = 0
            if why is None:
                if not self._loop or not attempt.frames:
                    self._finish(attempt)
                    return
                self._offset = attempt.seconds + 1.0 / (self.pace or 25.0)
                continue
            if not self._opened.is_set() or not self.source.again:
                raise SourceError(why)
            failures += 1
            if self._retries is not None and failures > self._retries:
                raise SourceError(f"{why}; it did not come back in {self._retries} attempts")
            self._wait_before_retry(why, failures)

    def _wait_before_retry(self, why: str, failures: int) -> None:
        delay = min(_FIRST_DELAY * 2 ** min(failures - 1, 10), _LONGEST_DELAY)
        self._tell(Event("lost", f"{why}; trying again in {delay:g} s"))
        self._stopped.wait(delay)
        while not self._stopped.is_set():
            self._abandoned = [each for each in self._abandoned if not each.done.is_set()]
            if len(self._abandoned) < _ABANDONED:
                return
            self._stopped.wait(_TICK)

    def _wait_for(self, attempt: _Attempt) -> str | None:
        """Until an attempt ends: None at the source's end, else why it was lost."""
        while not attempt.done.wait(_TICK):
            since = attempt.waiting
            silent = 0.0 if since is None else time.monotonic() - since
            if attempt.ready:
                if self.source.live and silent > self._stall:
                    attempt.abandoned.set()
                    self._abandoned.append(attempt)
                    return f"{self.source.name} has sent no frame for {self._stall:g} s"
            elif self.source.live and silent > _OPENING_SECONDS:
                attempt.abandoned.set()
                self._abandoned.append(attempt)
                return f"{self.source.name} did not open within {_OPENING_SECONDS:g} s"
            if self._stopped.is_set():
                attempt.abandoned.set()
                attempt.done.wait(1.0)
                return None
        if attempt.error is None:
            return None
        if isinstance(attempt.error, SourceError) and self.source.live:
            return str(attempt.error)
        raise attempt.error

    def _finish(self, attempt: _Attempt) -> None:
        if self.handed == 0:
            raise SourceError(
                f"no frame could be read from {self.source.name}"
                + (f": {self.corrupt} could not be decoded" if self.corrupt else "")
            )
        # What a file says of its length may be a few frames off.
        if self.total is not None and attempt.taken < 0.95 * self.total - 2:
            text = f"{self.source.name} ended after {attempt.taken} of {self.total} frames"
            self._tell(Event("cut short", text))


class _Attempt:
    """One opening of a source, read on a thread of its own until it ends or is abandoned.

    Attributes:
        ready: it is open.
        waiting: since when it waits for the source, by ``time.monotonic``; None: it does not.
        frames: that were handed on.
        taken: read, handed on or not.
        seconds: time of the last one.
        abandoned: nobody listens any more.
    """

    def __init__(self, reader: Reader, lost_before: bool) -> None:
        self.ready = False
        self.waiting: float | None = time.monotonic()
        self.frames = self.taken = 0
        self.seconds = 0.0
        self.abandoned = threading.Event()
        self.error: BaseException | None = None
        self.done = threading.Event()
        self._reader = reader
        self._lost_before = lost_before
        threading.Thread(target=self._run, name="whycam source", daemon=True).start()

    def _run(self) -> None:
        try:
            capture = self._reader.source.open()
            try:
                self._described(capture)
                self.ready = True
                self._reader._opened.set()
                self._read_all(capture)
            finally:
                capture.release()
        except BaseException as error:
            self.error = error
        finally:
            self.done.set()

    def _described(self, capture: Capture) -> None:
        import cv2

        reader = self._reader
        get = getattr(capture, "get", lambda _: 0.0)
        fps, count = float(get(cv2.CAP_PROP_FPS)), float(get(cv2.CAP_PROP_FRAME_COUNT))
        # Some files and drivers say nothing, or nonsense.
        reader.fps = fps if math.isfinite(fps) and 0 < fps <= 1000 else 0.0
        pictures = getattr(capture, "count", None)
        if reader.source.live or reader._loop:
            reader.total = None
        elif isinstance(pictures, int):
            reader.total = pictures
        else:
            reader.total = int(count) if math.isfinite(count) and 0 < count < 1e9 else None

    def _read_all(self, capture: Capture) -> None:
        reader, live = self._reader, self._reader.source.live
        started, broken = time.perf_counter(), 0
        while True:
            begun = time.perf_counter()
            self.waiting = time.monotonic()
            there, picture = self._next(capture)
            self.waiting = None
            if self.abandoned.is_set():
                return
            if not there:
                if live and reader.source.again:
                    raise SourceError(f"{reader.source.name} sends no more frames")
                return
            index, reader.read = reader.read, reader.read + 1
            if picture is None:
                broken += 1
                self._leave_out(broken)
                continue
            broken = 0
            decoded = arrived = time.perf_counter()
            seconds = self._time(capture, arrived)
            self.taken += 1
            if self._lost_before and self.frames == 0:
                reader.reconnects += 1
                reader._tell(Event("back", f"{reader.source.name} is back"))
            if not self._wanted(seconds):
                continue
            if reader._drop and not live:
                # A file that may be dropped from plays at its own pace, as a camera would.
                if reader._stopped.wait(max(0.0, started + seconds - reader._offset - arrived)):
                    return
                arrived = time.perf_counter()
            self.frames += 1
            reader.handed += 1
            if not reader.frames.put(Frame(index, seconds, picture, decoded - begun, arrived)):
                return

    def _leave_out(self, broken: int) -> None:
        """Count a frame that could not be decoded, the last of so many in a row."""
        reader = self._reader
        reader.corrupt += 1
        if reader.corrupt == 1:
            text = f"a frame of {reader.source.name} could not be decoded and is left out"
            reader._tell(Event("corrupt", text))
        if broken >= _CORRUPT_IN_A_ROW:
            raise SourceError(
                f"{broken} frames of {reader.source.name} in a row could not be decoded"
            )

    def _next(self, capture: Capture) -> tuple[bool, Picture | None]:
        """Whether there is a frame, and the frame in RGB; None: it is corrupt."""
        import cv2

        try:
            there, found = capture.read()
        except cv2.error:
            return True, None
        return bool(there), _as_rgb(found, self._reader.source.rgb) if there else None

    def _time(self, capture: Capture, arrived: float) -> float:
        """Seconds since the source's beginning."""
        import cv2

        reader = self._reader
        if reader.source.live:
            reader._began = arrived if reader._began is None else reader._began
            self.seconds = arrived - reader._began
            return self.seconds
        step = 1.0 / (reader.source.fps or reader.fps or 25.0)
        get = getattr(capture, "get", None)
        told = -1.0 if get is None else float(get(cv2.CAP_PROP_POS_MSEC)) / 1e3
        told += reader._offset
        counted = reader._offset if self.taken == 0 else self.seconds + step
        # Containers without times say 0, or repeat themselves.
        usable = math.isfinite(told) and (told > self.seconds or self.taken == 0) and told >= 0
        self.seconds = told if usable and get is not None else counted
        return self.seconds

    def _wanted(self, seconds: float) -> bool:
        """Whether a frame is due, where fewer are wanted than the source has."""
        reader = self._reader
        if reader._limit_fps is None or reader.source.fps is not None:
            return True
        step = 1.0 / reader._limit_fps
        if seconds < reader._due - step / 4:  # what jitters comes a little early at times
            return False
        reader._due = max(reader._due + step, seconds)
        return True


def _as_rgb(found: Any, rgb: bool) -> Picture | None:
    import cv2

    if not isinstance(found, np.ndarray) or found.dtype != np.uint8 or found.size == 0:
        return None
    if found.ndim == 3 and found.shape[2] == 3:
        return found if rgb else np.asarray(cv2.cvtColor(found, cv2.COLOR_BGR2RGB))
    if found.ndim == 2 or (found.ndim == 3 and found.shape[2] == 1):
        return np.asarray(cv2.cvtColor(found, cv2.COLOR_GRAY2RGB))
    if found.ndim == 3 and found.shape[2] == 4:
        return np.asarray(cv2.cvtColor(found, cv2.COLOR_BGRA2RGB))
    return None
