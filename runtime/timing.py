"""Time alternatives in turn, so that changes in the machine's speed affect all of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

# Callbacks of long work: what is done and the steps done since; the number of steps, again when it
# grows; what the user should know meanwhile.
Tick = Callable[[str, int], None]
Total = Callable[[int], None]
Note = Callable[[str], None]
WARM_UP = 3
_PAUSE = 0.02  # seconds
_Key = TypeVar("_Key")
_Result = TypeVar("_Result")


def run_interleaved(
    contenders: Mapping[_Key, Callable[[], _Result]],
    rounds: int,
    warm_up: int = WARM_UP,
    tick: Tick | None = None,
) -> dict[_Key, list[_Result]]:
    """Run every contender once a round, and return all results of each.

    Args:
        contenders: functions by name, such as ``lambda: measure_seconds(run)``.
        rounds: how many results of each are kept.
        warm_up: runs of each before the first round.
        tick: called after each round.
    """
    for run in contenders.values():
        for _ in range(warm_up):
            run()
    results: dict[_Key, list[_Result]] = {name: [] for name in contenders}
    for turn in range(rounds):
        for name, run in contenders.items():
            # Threads of the contender before may still spin, and caches hold its data: a pause and
            # an untimed run let both settle.
            time.sleep(_PAUSE)
            run()
            results[name].append(run())
        if tick is not None:
            tick(f"round {turn + 1} of {rounds}", 1)
    return results


def measure_seconds(run: Callable[[], Any]) -> float:
    """Time one call in seconds."""
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


def median(samples: Sequence[float]) -> float:
    """Compute the median of raw samples."""
    return float(np.percentile(samples, 50))


def format_duration(seconds: float) -> str:
    """Format a rough duration for people, as 40 s, 12 min or 1.6 h.

    Args:
        seconds: the duration; below a second, it is formatted as 1 s.
    """
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
