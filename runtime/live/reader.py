"""Reads a source on threads of its own: paces it, survives a lost or silent one, and counts."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from ..errors import SourceError
from .attempt import Attempt, Event, Frame, Reading
from .pipe import Pipe
from .source import Source

_FIRST_DELAY, _LONGEST_DELAY = 0.5, 30.0
_OPENING_SECONDS = 20.0  # an address has a shorter limit of its own, a device may have none
_TICK = 0.05
_ABANDONED = 4  # threads that hang in a driver, before another one is risked


class Reader:
    """Puts a source's frames into ``frames``.

    Reading can hang in a driver for good, so each opening of the source has a thread, which
    another one watches and, if need be, leaves behind.

    Attributes:
        frames: ends with the source, or with the error that it died of.
        reading: what is known of the source, and counted.

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
        self.frames: Pipe[Frame] = Pipe(1 if drop else 2, latest=drop)
        self.reading = Reading(source, self.frames, drop, loop, fps, tell)
        self._stall, self._retries = stall, retries
        self._error: BaseException | None = None
        self._abandoned: list[Attempt] = []
        self._thread = threading.Thread(target=self._watch, name="whycam reader", daemon=True)
        self._thread.start()
        self.reading.opened.wait()
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        """Stop reading; waits a moment for a read under way, and no longer."""
        self.reading.stopped.set()
        self.frames.close()
        self._thread.join(2.0)

    @property
    def pace(self) -> float:
        """Frames a second that come out, or 0 where the source does not say."""
        own = self.reading.source.fps or self.reading.fps
        if self.reading.limit_fps is None:
            return own
        return min(own, self.reading.limit_fps) if own else self.reading.limit_fps

    def _watch(self) -> None:
        try:
            self._rounds()
        except BaseException as error:
            if not self.reading.opened.is_set():
                self._error = error
            self.frames.end(error)
        else:
            self.frames.end()
        finally:
            self.reading.opened.set()

    def _rounds(self) -> None:
        """Open and read, again and again where the source asks for it."""
        failures = 0
        while not self.reading.stopped.is_set():
            attempt = Attempt(self.reading, lost_before=failures > 0)
            why = self._wait_for(attempt)
            if self.reading.stopped.is_set():
                return
            if attempt.frames:
                failures = 0
            if why is None:
                if not self.reading.loop or not attempt.frames:
                    self._finish(attempt)
                    return
                self.reading.offset = attempt.seconds + 1.0 / (self.pace or 25.0)
                continue
            if not self.reading.opened.is_set() or not self.reading.source.again:
                raise SourceError(why)
            failures += 1
            if self._retries is not None and failures > self._retries:
                raise SourceError(f"{why}; it did not come back in {self._retries} attempts")
            self._wait_before_retry(why, failures)

    def _wait_before_retry(self, why: str, failures: int) -> None:
        delay = min(_FIRST_DELAY * 2 ** min(failures - 1, 10), _LONGEST_DELAY)
        self.reading.tell(Event("lost", f"{why}; trying again in {delay:g} s"))
        self.reading.stopped.wait(delay)
        while not self.reading.stopped.is_set():
            self._abandoned = [each for each in self._abandoned if not each.done.is_set()]
            if len(self._abandoned) < _ABANDONED:
                return
            self.reading.stopped.wait(_TICK)

    def _wait_for(self, attempt: Attempt) -> str | None:
        """Until an attempt ends: None at the source's end, else why it was lost."""
        while not attempt.done.wait(_TICK):
            since = attempt.waiting
            silent = 0.0 if since is None else time.monotonic() - since
            if attempt.ready:
                if self.reading.source.live and silent > self._stall:
                    attempt.abandoned.set()
                    self._abandoned.append(attempt)
                    return f"{self.reading.source.name} has sent no frame for {self._stall:g} s"
            elif self.reading.source.live and silent > _OPENING_SECONDS:
                attempt.abandoned.set()
                self._abandoned.append(attempt)
                return f"{self.reading.source.name} did not open within {_OPENING_SECONDS:g} s"
            if self.reading.stopped.is_set():
                attempt.abandoned.set()
                attempt.done.wait(1.0)
                return None
        if attempt.error is None:
            return None
        if isinstance(attempt.error, SourceError) and self.reading.source.live:
            return str(attempt.error)
        raise attempt.error

    def _finish(self, attempt: Attempt) -> None:
        if self.reading.handed == 0:
            raise SourceError(
                f"no frame could be read from {self.reading.source.name}"
                + (f": {self.reading.corrupt} could not be decoded" if self.reading.corrupt else "")
            )
        # What a file says of its length may be a few frames off.
        name, total = self.reading.source.name, self.reading.total
        if total is not None and attempt.taken < 0.95 * total - 2:
            text = f"{name} ended after {attempt.taken} of {total} frames"
            self.reading.tell(Event("cut short", text))
