"""Keep threads from slowing each other: the engine's, NumPy's, and those of other work."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

from threadpoolctl import ThreadpoolController

_lock = threading.Lock()
_inside = 0
_limit: object = None


@cache
def _controller() -> ThreadpoolController:
    return ThreadpoolController()


def usable_cores() -> int | None:
    """Count the processors that this process may use, if they are not all; None: all.

    As ``taskset``, containers and batch systems limit them.
    """
    try:
        usable = len(os.sched_getaffinity(0))
    except AttributeError:  # macOS and Windows
        return None
    return usable if usable < (os.cpu_count() or 1) else None


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Limit matrix products to the calling thread while the block runs.

    The matrix products of a map take a fraction of a millisecond, but OpenBLAS's threads go on
    spinning for tens of milliseconds and take cores from the engine's next run: a quarter of
    VGG-16's speed on two cores. Blocks may be nested and concurrent.
    """
    global _inside, _limit
    with _lock:
        if _inside == 0:
            _limit = _controller().limit(limits=1, user_api="blas")
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if _inside == 0:
                _limit.restore_original_limits()  # type: ignore[attr-defined]
