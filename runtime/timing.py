"""Time alternatives so that they can be compared, on a machine that changes speed."""

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
    """Run every contender once a round and keep what each returns; nothing is dropped.

    So a machine that changes speed changes it for all.

    Args:
        contenders: functions by name, such as ``lambda: measure_seconds(run)``.
        rounds: how many results of each are kept.
        warm_up: runs of each before the first round.
        tick: told of each round.
    """
    for run in contenders.values():
        for _ in range(warm_up):
            run()
    results: dict[_Key, list[_Result]] = {name: [] for name in contenders}
    for turn in range(rounds):
        for name, run in contenders.items():
            # The threads of the contender before may still spin, and the caches be its own: let
            # both settle, so that each is timed as in a loop of its own.
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
        seconds: how long it is; no less than a second is told.
    """
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
