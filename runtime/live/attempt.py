"""One opening of a source, read on a thread of its own until it ends, dies or is left behind."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from ..errors import SourceError
from ..images import Picture
from .capture import Capture
from .pipe import Pipe
from .source import Source

_CORRUPT_IN_A_ROW = 300

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


@dataclass(eq=False)
class Reading:
    """How a source is read, and how far that is: what its openings, one after the other, share.

    Attributes:
        source: what is opened.
        frames: where frames go.
        drop: old frames give way to new ones, and a file is played at its own pace.
        loop: a file begins again when it ends.
        limit_fps: take at most so many frames a second.
        tell: called with each ``Event``.
        stopped: nobody wants any more.
        opened: it could be opened once.
        fps: the source's own, or 0 where it does not say.
        total: how many frames it has, or None.
        read: frames of the source so far.
        handed: those of them that were put into ``frames``.
        corrupt: those that could not be decoded.
        reconnects: how often a live source came back.
        began: when the first frame of a live source came, by ``time.perf_counter``.
        offset: seconds of a looped file's earlier rounds.
        due: when the next frame is wanted, where fewer are wanted than there are.
    """

    source: Source
    frames: Pipe[Frame]
    drop: bool
    loop: bool
    limit_fps: float | None
    tell: Callable[[Event], None]
    stopped: threading.Event = field(default_factory=threading.Event)
    opened: threading.Event = field(default_factory=threading.Event)
    fps: float = 0.0
    total: int | None = None
    read: int = 0
    handed: int = 0
    corrupt: int = 0
    reconnects: int = 0
    began: float | None = None
    offset: float = 0.0
    due: float = 0.0


class Attempt:
    """One opening of a source, read on a thread of its own until it ends or is abandoned.

    Attributes:
        ready: it is open.
        waiting: since when it waits for the source, by ``time.monotonic``; None: it does not.
        frames: that were handed on.
        taken: read, handed on or not.
        seconds: time of the last one.
        abandoned: nobody listens any more.
    """

    def __init__(self, reading: Reading, lost_before: bool) -> None:
        self.ready = False
        self.waiting: float | None = time.monotonic()
        self.frames = self.taken = 0
        self.seconds = 0.0
        self.abandoned = threading.Event()
        self.error: BaseException | None = None
        self.done = threading.Event()
        self._reading = reading
        self._lost_before = lost_before
        threading.Thread(target=self._run, name="whycam source", daemon=True).start()

    def _run(self) -> None:
        try:
            capture = self._reading.source.open()
            try:
                self._described(capture)
                self.ready = True
                self._reading.opened.set()
                self._read_all(capture)
            finally:
                capture.release()
        except BaseException as error:
            self.error = error
        finally:
            self.done.set()

    def _described(self, capture: Capture) -> None:
        reading = self._reading
        reading.fps = capture.fps
        reading.total = None if reading.source.live or reading.loop else capture.frames

    def _read_all(self, capture: Capture) -> None:
        reading, live = self._reading, self._reading.source.live
        started, broken = time.perf_counter(), 0
        while True:
            begun = time.perf_counter()
            self.waiting = time.monotonic()
            there, picture = capture.read()
            self.waiting = None
            if self.abandoned.is_set():
                return
            if not there:
                if live and reading.source.again:
                    raise SourceError(f"{reading.source.name} sends no more frames")
                return
            index, reading.read = reading.read, reading.read + 1
            if picture is None:
                broken += 1
                self._leave_out(broken)
                continue
            broken = 0
            decoded = arrived = time.perf_counter()
            seconds = self._time(capture, arrived)
            self.taken += 1
            if self._lost_before and self.frames == 0:
                reading.reconnects += 1
                reading.tell(Event("back", f"{reading.source.name} is back"))
            if not self._wanted(seconds):
                continue
            if reading.drop and not live:
                # A file that may be dropped from plays at its own pace, as a camera would.
                if reading.stopped.wait(max(0.0, started + seconds - reading.offset - arrived)):
                    return
                arrived = time.perf_counter()
            self.frames += 1
            reading.handed += 1
            if not reading.frames.put(Frame(index, seconds, picture, decoded - begun, arrived)):
                return

    def _leave_out(self, broken: int) -> None:
        """Count a frame that could not be decoded, the last of so many in a row."""
        reading = self._reading
        reading.corrupt += 1
        if reading.corrupt == 1:
            text = f"a frame of {reading.source.name} could not be decoded and is left out"
            reading.tell(Event("corrupt", text))
        if broken >= _CORRUPT_IN_A_ROW:
            raise SourceError(
                f"{broken} frames of {reading.source.name} in a row could not be decoded"
            )

    def _time(self, capture: Capture, arrived: float) -> float:
        """Seconds since the source's beginning."""
        reading = self._reading
        if reading.source.live:
            reading.began = arrived if reading.began is None else reading.began
            self.seconds = arrived - reading.began
            return self.seconds
        step = 1.0 / (reading.source.fps or reading.fps or 25.0)
        counted = reading.offset if self.taken == 0 else self.seconds + step
        told = math.nan if capture.seconds is None else capture.seconds + reading.offset
        # Containers without times say 0, or repeat themselves.
        usable = math.isfinite(told) and (told > self.seconds or self.taken == 0) and told >= 0
        self.seconds = told if usable else counted
        return self.seconds

    def _wanted(self, seconds: float) -> bool:
        """Whether a frame is due, where fewer are wanted than the source has."""
        reading = self._reading
        if reading.limit_fps is None or reading.source.fps is not None:
            return True
        step = 1.0 / reading.limit_fps
        if seconds < reading.due - step / 4:  # what jitters comes a little early at times
            return False
        reading.due = max(reading.due + step, seconds)
        return True
