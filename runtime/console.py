"""What the command line prints with: text for people, one JSON document for machines, progress."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.markup import escape as escape
from rich.progress import (
    BarColumn,
    Progress,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
)

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)


def print_json(document: Any) -> None:
    """One JSON document on standard output, in ASCII: any terminal and any pipe can take it."""
    text = document if isinstance(document, str) else json.dumps(document)
    out.print_json(text, ensure_ascii=True)


def print_error(text: str) -> None:
    """One red line on standard error."""
    err.print(f"[red]error:[/red] {escape(text)}", soft_wrap=True)


class Advance:
    """Moves a progress bar: ``advance(what is being done, steps done since)``."""

    def __init__(self, bar: Progress, task: TaskID) -> None:
        self._bar, self._task, self._begun = bar, task, False

    def __call__(self, name: str, steps: int) -> None:
        """Go on; the first call only says what begins."""
        self._bar.update(self._task, description=escape(name), advance=steps if self._begun else 0)
        self._begun = True

    def total(self, steps: int) -> None:
        """Say how many steps there will be; from here on every call counts."""
        self._bar.update(self._task, total=steps)
        self._begun = True


@contextmanager
def progress(title: str, total: int | None, quiet: bool) -> Iterator[Advance]:
    """A progress bar on standard error, where that is a terminal."""
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        console=err,
        transient=True,
        disable=quiet or not err.is_terminal,
    )
    with bar:
        yield Advance(bar, bar.add_task(title, total=total))
