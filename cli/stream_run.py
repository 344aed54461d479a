"""Run a stream to its end, or to Ctrl-C, and report rates and losses."""

from __future__ import annotations

import signal
import statistics
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ..runtime.live.controls import StreamFrame
from ..runtime.live.stream import Stream
from .progress import progress

# Takes the frames of a stream one after the other; returns False to end it.
Sink = Callable[[StreamFrame], bool]
_LATENCIES = 10_000  # the last frames, whose latencies are summarised


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
    latencies: deque[float] = deque(maxlen=_LATENCIES)
    frames = passes = 0
    begun = reported = time.perf_counter()
    total = min((n for n in (opened.total, limit) if n is not None), default=None)
    with _stopping(opened) as signals, progress("starting", total, quiet) as advance:
        advance("starting", 0)
        done = 0
        for frame in opened:
            frames += 1
            passes += frame.timing.evaluations
            latencies.append(frame.timing.latency)
            if not min((sink(frame) for sink in sinks), default=True):  # all take it, even the last
                break
            now = time.perf_counter()
            if now - reported > 0.1:
                advance(f"{frame.timing.fps:.0f} fps: {frame.explanation.label}", frames - done)
                reported, done = now, frames
        opened.close()
    took = time.perf_counter() - begun
    return (signals[0] if signals else None), {
        "frames": frames,
        "took": took,
        "fps": frames / took,
        "latency": {
            "median": statistics.median(latencies) if latencies else None,
            "p95": sorted(latencies)[int(0.95 * len(latencies))] if latencies else None,
        },
        "evaluations": passes / max(1, frames),
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
    parts = [
        f"{report['frames']} frames in {report['took']:.1f} s, {report['fps']:.1f} a second",
        *([f"latency {1e3 * median:.0f} ms"] if median is not None else []),
        *([f"{report['evaluations']:.1f} evaluations a frame"] if report["evaluations"] else []),
        *(f"{report[name]} {name}" for name in ("dropped", "corrupt") if report[name]),
        *([f"reconnected {report['reconnects']} times"] if report["reconnects"] else []),
    ]
    written = [f"written to {place}" for place in report["written"]]
    return "\n".join(["; ".join(parts), *written])
