"""Keep a stream at its source's rate: how much time each frame's thresholds may take.

Every frame has a deadline, and the time that is left until then, its slack, is measured where the
thresholds begin, so that it holds all that the frame and those before it have cost: decoding, the
network, drawing and writing, on whatever cores there are and beside whatever else they do. No
model of these costs is needed.

- A file: frame n is due at start + (its time in the source). Frames that are finished early leave
  slack to later ones, ten intervals at most. A frame's thresholds get one tenth of it on average,
  all of it at most, so that the slack settles at ten times what a frame can spend, within about ten
  frames, and does not swing. Where more would be saved up than may be, as while slides stand still,
  the next frame's thresholds get all of it.
- A live source: a frame is due when the next one is expected. There is nothing to save up: its
  thresholds get what is left until then.
"""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

_SHARE = 0.1  # of a file's slack that one frame's thresholds take on average
_MOST_SLACK = 10.0  # frame intervals; a slack of 1 / _SHARE intervals pays for any frame
_MOST_DELAY = 5.0  # seconds that are made up for; what a longer stall has cost is given up
_MARGIN = 0.1  # of the interval of a live source, for frames that arrive early
_INTERVALS = 15  # that are averaged


@dataclass(frozen=True)
class TimeLimit:
    """The time that a frame's thresholds may take, in seconds, not negative.

    Attributes:
        average: over frames like this one.
        most: for this frame.
    """

    average: float
    most: float


class Schedule:
    """The deadlines of a stream's frames; a file's begin to run when this is made.

    ``slack`` and ``is_late`` may be asked for on another thread than the one that finishes frames.

    Args:
        live: whether frames arrive at the source's own rate.
        clock: seconds, as ``time.perf_counter``.
    """

    def __init__(self, live: bool, clock: Callable[[], float] = time.perf_counter) -> None:
        self._live, self._clock = live, clock
        self._intervals: deque[float] = deque(maxlen=_INTERVALS)
        self._interval = 0.0  # their average; a number, which another thread may read
        self._start = clock()  # of a file: when its second 0 is due
        self._is_full = False  # whether no more slack can be saved up

    def slack(self, seconds: float, arrived: float) -> float:
        """Return the seconds until a frame is due; negative when it is late.

        Args:
            seconds: the frame's time in the source.
            arrived: when it had been decoded, by the clock.
        """
        if self._live:
            return arrived + (1 - _MARGIN) * self._interval - self._clock()
        return self._start + seconds - self._clock()

    def is_late(self, seconds: float, arrived: float) -> bool:
        """Tell whether a frame is late by more than the interval of two frames."""
        return self.slack(seconds, arrived) < -self._interval

    def limit(self, seconds: float, arrived: float) -> TimeLimit:
        """Return the time that a frame's thresholds may take, see ``slack``."""
        slack = max(0.0, self.slack(seconds, arrived))
        return TimeLimit(slack if self._live or self._is_full else _SHARE * slack, slack)

    def finish(self, seconds: float, interval: float) -> None:
        """Note that a frame was explained.

        Args:
            seconds: its time in the source.
            interval: seconds since the frame before it, by the source's clock; 0: it has none.
        """
        if interval > 0:
            self._intervals.append(interval)
            # Arrivals have outliers, as where a camera was lost; a file's times are what they are.
            average = statistics.median if self._live else statistics.fmean
            self._interval = average(self._intervals)
        if not self._live:
            now = self._clock()
            slack = max(self._start + seconds - now, -_MOST_DELAY)
            most = _MOST_SLACK * self._interval
            self._is_full = slack >= most > 0
            self._start = now - seconds + min(slack, most)
