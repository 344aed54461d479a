"""Read a source on threads: keep its pace, reopen it when lost, count its frames."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from ..errors import SourceError
from .capture_thread import CaptureState, CaptureThread, Event, Frame
from .pipe import Pipe
from .source import Source

_FIRST_DELAY, _LONGEST_DELAY = 0.5, 30.0
_OPENING_SECONDS = 20.0  # an address has a shorter limit of its own, a device may have none
_TICK = 0.05
_ABANDONED = 4  # threads that may hang in a driver at once, before the next is started


class Reader:
    """Reads a source's frames into a queue.

    A driver can hang forever, so the source is opened and read on a capture thread. Another thread
    watches it, abandons it if it hangs, and starts the next one.

    Attributes:
        frames: the queue; ends with the source, or raises its error.
        state: of the source, with counts of frames.

    Args:
        source: from ``find_source``.
        drop: whether new frames replace waiting ones; a file is then played at its own speed.
        loop: whether a file starts again when it ends.
        fps: frames a second to take, at most.
        stall: seconds without a frame after which a live source counts as lost.
        retries: attempts to open a lost source again; None: until ``close``.
        tell: called with each ``Event``, on the reader's thread.

    Raises:
        SourceError: the source cannot be opened.
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
        self.frames: Pipe[Frame] = Pipe(1 if drop else 2, latest=drop)
        self.state = CaptureState(source, self.frames, drop, loop, fps, tell)
        self._stall, self._retries = stall, retries
        self._error: BaseException | None = None
        self._abandoned: list[CaptureThread] = []
        self._thread = threading.Thread(target=self._watch, name="whycam reader", daemon=True)
        self._thread.start()
        self.state.opened.wait()
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        """Stop reading; wait at most 2 seconds for the current read."""
        self.state.stopped.set()
        self.frames.close()
        self._thread.join(2.0)

    @property
    def pace(self) -> float:
        """Return the frames a second that are put into the queue; 0 if the source states none."""
        rate = self.state.source.fps or self.state.fps
        if self.state.limit_fps is None:
            return rate
        return min(rate, self.state.limit_fps) if rate else self.state.limit_fps

    def _watch(self) -> None:
        try:
            self._reopen_until_done()
        except BaseException as error:
            if not self.state.opened.is_set():
                self._error = error
            self.frames.end(error)
        else:
            self.frames.end()
        finally:
            self.state.opened.set()

    def _reopen_until_done(self) -> None:
        """Open and read the source; open it again if it was lost or loops."""
        failures = 0
        while not self.state.stopped.is_set():
            thread = CaptureThread(self.state, lost_before=failures > 0)
            why = self._wait_until_done(thread)
            if self.state.stopped.is_set():
                return
            if thread.frames:
                failures = 0
            if why is None:
                if not self.state.loop or not thread.frames:
                    self._check_complete(thread)
                    return
                self.state.offset = thread.seconds + 1.0 / (self.pace or 25.0)
                continue
            if not self.state.opened.is_set() or not self.state.source.again:
                raise SourceError(why)
            failures += 1
            if self._retries is not None and failures > self._retries:
                raise SourceError(f"{why}; it did not come back in {self._retries} attempts")
            self._wait_before_retry(why, failures)

    def _wait_before_retry(self, why: str, failures: int) -> None:
        delay = min(_FIRST_DELAY * 2 ** min(failures - 1, 10), _LONGEST_DELAY)
        self.state.tell(Event("lost", f"{why}; trying again in {delay:g} s"))
        self.state.stopped.wait(delay)
        while not self.state.stopped.is_set():
            self._abandoned = [thread for thread in self._abandoned if not thread.done.is_set()]
            if len(self._abandoned) < _ABANDONED:
                return
            self.state.stopped.wait(_TICK)

    def _wait_until_done(self, thread: CaptureThread) -> str | None:
        """Wait until a capture thread ends; return why the source was lost, or None at its end."""
        while not thread.done.wait(_TICK):
            since = thread.waiting
            silent = 0.0 if since is None else time.monotonic() - since
            if thread.ready:
                if self.state.source.live and silent > self._stall:
                    thread.abandoned.set()
                    self._abandoned.append(thread)
                    return f"{self.state.source.name} has sent no frame for {self._stall:g} s"
            elif self.state.source.live and silent > _OPENING_SECONDS:
                thread.abandoned.set()
                self._abandoned.append(thread)
                return f"{self.state.source.name} did not open within {_OPENING_SECONDS:g} s"
            if self.state.stopped.is_set():
                thread.abandoned.set()
                thread.done.wait(1.0)
                return None
        if thread.error is None:
            return None
        if isinstance(thread.error, SourceError) and self.state.source.live:
            return str(thread.error)
        raise thread.error

    def _check_complete(self, thread: CaptureThread) -> None:
        if self.state.handed == 0:
            raise SourceError(
                f"no frame could be read from {self.state.source.name}"
                + (f": {self.state.corrupt} could not be decoded" if self.state.corrupt else "")
            )
        # The stated length of a file may be a few frames off.
        name, total = self.state.source.name, self.state.total
        if total is not None and thread.taken < 0.95 * total - 2:
            text = f"{name} ended after {thread.taken} of {total} frames"
            self.state.tell(Event("cut short", text))
