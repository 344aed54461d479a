"""What the command line prints with: text for people, one JSON document for machines, progress."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)

# Called with (what is being done, steps done since).
Advance = Callable[[str, int], None]


def escape(text: str) -> str:
    """Text as it is, where rich would read markup."""
    return text.replace("[", "\\[")


def print_json(document: Any) -> None:
    """One JSON document on standard output."""
    out.print_json(document if isinstance(document, str) else json.dumps(document))


def print_error(text: str) -> None:
    """One red line on standard error."""
    err.print(f"[red]error:[/red] {escape(text)}", soft_wrap=True)


@contextmanager
def progress(title: str, total: int | None, quiet: bool) -> Iterator[Advance]:
    """A progress bar on standard error, where that is a terminal; yields advance(title, steps)."""
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
        task = bar.add_task(title, total=total)
        begun = False

        def advance(name: str, steps: int) -> None:
            nonlocal begun
            bar.update(task, description=escape(name), advance=steps if begun else 0)
            begun = True

        yield advance
