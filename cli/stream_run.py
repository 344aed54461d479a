"""Run a stream to its end, or to Ctrl-C, and report rates and losses."""

from __future__ import annotations

import signal
import statistics
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, get_args

from ..runtime.live.controls import Reused, StreamFrame, Timing
from ..runtime.live.stream import Stream
from .progress import progress

# Takes the frames of a stream one after the other; returns False to end it.
Sink = Callable[[StreamFrame], bool]
_REUSED: dict[Reused, str] = {
    "threshold": "with the last threshold held for want of time",
    "explanation": "with the last explanation held for want of time",
    "unchanged": "unchanged",
}
_TIMINGS = 10_000  # of the last frames, that are summarised


def run(
    opened: Stream, sinks: list[Sink], limit: int | None, quiet: bool
) -> tuple[int | None, dict[str, Any]]:
    """Hand each frame to all sinks.

    Args:
        opened: the stream.
        sinks: called with each frame.
        limit: number of frames at most, for the progress bar.
        quiet: show no progress.

    Returns:
        The signal that ended it, if any; and a report: frames, seconds, rates, losses.
    """
    timings: deque[Timing] = deque(maxlen=_TIMINGS)
    frames = passes = 0
    reused: Counter[str] = Counter()
    begun = reported = time.perf_counter()
    total = min((n for n in (opened.total, limit) if n is not None), default=None)
    with _stopping(opened) as signals, progress("starting", total, quiet) as advance:
        advance("starting", 0)
        done = 0
        for frame in opened:
            frames += 1
            passes += frame.timing.evaluations
            if frame.reused is not None:
                reused[frame.reused] += 1
            timings.append(frame.timing)
            if not min((sink(frame) for sink in sinks), default=True):  # all take it, even the last
                break
            now = time.perf_counter()
            if now - reported > 0.1:
                shown = [frame.explanation] if frame.explanation else frame.detections or ()
                labels = ", ".join(dict.fromkeys(one.label for one in shown)) or "nothing found"
                advance(f"{frame.timing.fps:.0f} fps: {labels}", frames - done)
                reported, done = now, frames
        opened.close()
    took = time.perf_counter() - begun
    latencies = sorted(timing.latency for timing in timings)
    return (signals[0] if signals else None), {
        "frames": frames,
        "took": took,
        "fps": frames / took,
        "source_fps": opened.fps or None,
        "latency": {
            "median": statistics.median(latencies) if latencies else None,
            "p95": latencies[int(0.95 * len(latencies))] if latencies else None,
        },
        "stages": {
            name: statistics.median(getattr(timing, name) for timing in timings)
            if timings
            else None
            for name in ("read", "explain", "draw")
        },
        "evaluations": passes / max(1, frames),
        "reused": {name: reused[name] for name in get_args(Reused)},
        "dropped": opened.dropped,
        "corrupt": opened.corrupt,
        "reconnects": opened.reconnects,
        "stopped": signal.Signals(signals[0]).name if signals else None,
    }


@contextmanager
def _stopping(opened: Stream) -> Iterator[list[int]]:
    """End the stream between two frames on Ctrl-C or SIGTERM, so that files are finished."""
    signals: list[int] = []

    def stop(number: int, _: object) -> None:
        signals.append(number)
        opened.stop()
        if len(signals) > 2:  # somebody insists
            raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield signals  # only the main thread may handle signals
        return
    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def summary(report: dict[str, Any]) -> str:
    """Summarise a report of ``run`` and name the files written."""
    median = report["latency"]["median"]
    reused = report["reused"]
    asked = f" (the source: {report['source_fps']:.4g})" if report["source_fps"] else ""
    parts = [
        f"{report['frames']} frames in {report['took']:.1f} s, {report['fps']:.1f} a second{asked}",
        *([f"latency {1e3 * median:.0f} ms"] if median is not None else []),
        *([f"{report['evaluations']:.1f} evaluations a frame"] if report["evaluations"] else []),
        *(f"{reused[name]} {text}" for name, text in _REUSED.items() if reused[name]),
        *(f"{report[name]} {name}" for name in ("dropped", "corrupt") if report[name]),
        *([f"reconnected {report['reconnects']} times"] if report["reconnects"] else []),
    ]
    written = [f"written to {place}" for place in report["written"]]
    return "\n".join(["; ".join(parts), *written])
