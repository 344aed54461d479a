"""Read a source on a thread of its own until it ends, fails or is abandoned."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from ..errors import SourceError
from ..images import RGBImage
from .capture import Capture
from .pipe import Pipe
from .repeats import RepeatDetector
from .source import Source

_CORRUPT_IN_A_ROW = 300

Kind = Literal["lost", "back", "corrupt", "cut short", "resized"]


@dataclass(frozen=True)
class Event:
    """An event of a stream that its user should know of.

    Attributes:
        kind: ``lost``: a live source failed and is opened again; ``back``: it sends frames again;
            ``corrupt``: the first frame that could not be decoded; ``cut short``: a file ended
            early; ``resized``: the size of the frames changed.
        text: the same in a sentence.
    """

    kind: Kind
    text: str


@dataclass(frozen=True, eq=False)
class Frame:
    """A frame as it was read.

    Attributes:
        index: in the source, from 0; frames that were skipped count.
        seconds: its time in the source.
        image: uint8 [h, w, 3], RGB.
        read: seconds to decode it; for a live source, including the wait for it.
        arrived: when it had been decoded, by ``time.perf_counter``.
        interval: seconds since the frame before it, of those that were not skipped: by their
            arrival where frames may be dropped, else by their times; 0 for the first.
        content: frames with the same number have the same pixels.
    """

    index: int
    seconds: float
    image: RGBImage
    read: float
    arrived: float
    interval: float = 0.0
    content: int = 0


@dataclass(eq=False)
class CaptureState:
    """The state of reading a source; each capture thread takes it over from the one before.

    Attributes:
        source: the source to open.
        frames: the queue that frames are put into.
        drop: whether new frames replace waiting ones; a file is then played at its own speed.
        loop: whether a file starts again when it ends.
        limit_fps: frames a second to take, at most.
        tell: called with each ``Event``.
        stopped: set when the reader is closed.
        opened: set once the source has been opened.
        fps: frame rate of the source, or 0 if it states none.
        total: number of frames of the source, or None.
        read: frames read so far.
        handed: of these, frames put into ``frames``.
        corrupt: of these, frames that could not be decoded.
        reconnects: how often a live source came back.
        began: when the first frame of a live source arrived, by ``time.perf_counter``.
        offset: seconds of a looped file's earlier rounds.
        due: time of the next frame to take, if ``limit_fps`` skips some.
        last: arrival, or time, of the last frame put into ``frames``; None before the first.
        repeats: recognises frames with the pixels of the one before.
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
    last: float | None = None
    repeats: RepeatDetector = field(default_factory=RepeatDetector)


class CaptureThread:
    """A thread that opens a source and reads it until it ends or is abandoned.

    Attributes:
        ready: whether the source is open.
        waiting: since when it waits for the source, by ``time.monotonic``; None: it does not.
        frames: number of frames put into the queue.
        taken: number of frames decoded, including those that were skipped.
        seconds: time of the last frame.
        abandoned: set when the reader gives the thread up, as when a driver hangs.
        error: what ended the thread; None: the end of the source.
        done: set when the thread has ended.
    """

    def __init__(self, state: CaptureState, lost_before: bool) -> None:
        self.ready = False
        self.waiting: float | None = time.monotonic()
        self.frames = self.taken = 0
        self.seconds = 0.0
        self.abandoned = threading.Event()
        self.error: BaseException | None = None
        self.done = threading.Event()
        self._state = state
        self._lost_before = lost_before
        threading.Thread(target=self._run, name="whycam source", daemon=True).start()

    def _run(self) -> None:
        try:
            capture = self._state.source.open()
            try:
                self._read_properties(capture)
                self.ready = True
                self._state.opened.set()
                self._read_all(capture)
            finally:
                capture.release()
        except BaseException as error:
            self.error = error
        finally:
            self.done.set()

    def _read_properties(self, capture: Capture) -> None:
        state = self._state
        state.fps = capture.fps
        state.total = None if state.source.live or state.loop else capture.frames

    def _read_all(self, capture: Capture) -> None:
        state, live = self._state, self._state.source.live
        started, corrupt_in_a_row = time.perf_counter(), 0
        while True:
            begun = time.perf_counter()
            self.waiting = time.monotonic()
            available, image = capture.read()
            self.waiting = None
            if self.abandoned.is_set():
                return
            if not available:
                if live and state.source.again:
                    raise SourceError(f"{state.source.name} sends no more frames")
                return
            index, state.read = state.read, state.read + 1
            if image is None:
                corrupt_in_a_row += 1
                self._count_corrupt(corrupt_in_a_row)
                continue
            corrupt_in_a_row = 0
            decoded = arrived = time.perf_counter()
            seconds = self._frame_seconds(capture, arrived)
            self.taken += 1
            if self._lost_before and self.frames == 0:
                state.reconnects += 1
                state.tell(Event("back", f"{state.source.name} is back"))
            if not self._is_due(seconds):
                continue
            if state.drop and not live:
                # A file whose frames may be dropped is played at its own speed, as a camera.
                if state.stopped.wait(max(0.0, started + seconds - state.offset - arrived)):
                    return
                arrived = time.perf_counter()
            self.frames += 1
            state.handed += 1
            if not state.frames.put(self._frame(index, seconds, image, decoded - begun, arrived)):
                return

    def _frame(
        self, index: int, seconds: float, image: RGBImage, read: float, arrived: float
    ) -> Frame:
        state = self._state
        by_arrival = state.source.live or state.drop
        now = arrived if by_arrival else seconds
        interval = 0.0 if state.last is None else now - state.last
        state.last = now
        content = state.repeats.number(image)
        return Frame(index, seconds, image, read, arrived, interval, content)

    def _count_corrupt(self, corrupt_in_a_row: int) -> None:
        """Count a frame that could not be decoded; fail after too many in a row."""
        state = self._state
        state.corrupt += 1
        if state.corrupt == 1:
            text = f"a frame of {state.source.name} could not be decoded and is left out"
            state.tell(Event("corrupt", text))
        if corrupt_in_a_row >= _CORRUPT_IN_A_ROW:
            raise SourceError(
                f"{corrupt_in_a_row} frames of {state.source.name} in a row could not be decoded"
            )

    def _frame_seconds(self, capture: Capture, arrived: float) -> float:
        """Compute a frame's time in seconds since the source's beginning."""
        state = self._state
        if state.source.live:
            state.began = arrived if state.began is None else state.began
            self.seconds = arrived - state.began
            return self.seconds
        step = 1.0 / (state.source.fps or state.fps or 25.0)
        counted = state.offset if self.taken == 0 else self.seconds + step
        stated = math.nan if capture.seconds is None else capture.seconds + state.offset
        # Containers without times state 0, or repeat a time.
        usable = (
            math.isfinite(stated) and (stated > self.seconds or self.taken == 0) and stated >= 0
        )
        self.seconds = stated if usable else counted
        return self.seconds

    def _is_due(self, seconds: float) -> bool:
        """Tell whether a frame is due, where ``limit_fps`` skips some."""
        state = self._state
        if state.limit_fps is None or state.source.fps is not None:
            return True
        step = 1.0 / state.limit_fps
        if seconds < state.due - step / 4:  # tolerates jitter
            return False
        state.due = max(state.due + step, seconds)
        return True
