"""Show the progress of a command: a bar on a terminal, a line now and then in a pipe or a log."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.progress import (
    BarColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from ..runtime.timing import format_duration
from .console import err

_FIRST, _INTERVAL = 2.0, 5.0  # seconds until the first line, and between two lines


class Advance:
    """Reports progress: ``advance(what is being done, steps done since the last call)``.

    Args:
        title: what is done until the first call.
        total: steps there will be, or None while that is not known.
        bar: where it is drawn; None: lines are printed on standard error.
    """

    def __init__(self, title: str, total: int | None, bar: Progress | None) -> None:
        self._bar = bar
        self._task = None if bar is None else bar.add_task(title, total=total)
        self._total = total
        self._done = 0
        self._started = False
        self._start = time.monotonic()
        self._next = self._start + _FIRST

    def __call__(self, name: str, steps: int) -> None:
        """Advance by ``steps``; the first call only names what begins."""
        self._done += steps if self._started else 0
        self._started = True
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, description=name, completed=self._done)
        elif time.monotonic() >= self._next:
            self._next = time.monotonic() + _INTERVAL
            err.print(self._line(name), soft_wrap=True)

    def total(self, steps: int) -> None:
        """Set how many steps there will be; from here on every call counts."""
        self._total = steps
        self._started = True
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, total=steps)

    def _line(self, name: str) -> str:
        if not self._total or not self._done:
            return f"{name} ..."
        left = (time.monotonic() - self._start) * (self._total - self._done) / self._done
        return f"{name}: {self._done} of {self._total}, about {format_duration(left)} left"


class _Silent(Advance):
    def __call__(self, name: str, steps: int) -> None:
        """Print nothing."""


@contextmanager
def progress(title: str, total: int | None, quiet: bool) -> Iterator[Advance]:
    """Report the progress of a block on standard error.

    Args:
        title: what is done first.
        total: steps, None where that is not known yet.
        quiet: print nothing at all.
    """
    if quiet:
        yield _Silent(title, total, None)
        return
    if not err.is_terminal:
        yield Advance(title, total, None)
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=err, transient=True) as bar:
        yield Advance(title, total, bar)
