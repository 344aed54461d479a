"""Print for people, for machines, and errors: every string is printed as it stands."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console, RenderableType
from rich.text import Text

from ..runtime.report.facts import describe_unreadable

_PIPED = 200  # columns in a pipe or a file, which have no width of their own


def _width() -> int | None:
    """Choose the width of what is printed; None: the terminal's, or that of COLUMNS."""
    has_width = sys.stdout is not None and sys.stdout.isatty()
    return None if has_width or "COLUMNS" in os.environ else _PIPED


# No markup: file names, labels and what files hold may look like it.
out = Console(highlight=False, markup=False, emoji=False, width=_width())
err = Console(stderr=True, highlight=False, markup=False, emoji=False)


def say(text: str | Text) -> None:
    """Print lines on standard output; the terminal wraps them, so that they can be copied."""
    out.print(text, soft_wrap=True)


def say_all(parts: Iterable[RenderableType]) -> None:
    """Print lines and tables in order, with an empty line after a table."""
    for part in parts:
        is_text = isinstance(part, str | Text)
        out.print(part, soft_wrap=is_text)
        if not is_text:
            out.print()


def say_written(folder: Path, files: Sequence[Path]) -> None:
    """Name the files that were written to a folder."""
    say(f"written to {folder}/: {', '.join(path.name for path in files)}")


def unreadable_lines(unreadable: Mapping[str, str], count: int | None = None) -> list[str]:
    """Describe the images that were left out, in one line or none.

    Args:
        unreadable: why each image cannot be read, by its name.
        count: of all of them; None: as many as are named.
    """
    return [*describe_unreadable(count or len(unreadable), unreadable.values())]


def note(text: str) -> None:
    """Print a line on standard error, beside what a program may read from standard output."""
    err.print(text, soft_wrap=True)


def print_json(document: Any) -> None:
    """Print one JSON document on standard output, in ASCII: any terminal and pipe can take it."""
    out.print_json(json.dumps(document), ensure_ascii=True)


def print_error(text: str) -> None:
    """Print one line that begins with a red ``error:`` on standard error."""
    err.print(Text.assemble(("error:", "red"), " ", text), soft_wrap=True)


def print_ok(text: str) -> None:
    """Print one line that begins with a green ``ok`` on standard output."""
    say(Text.assemble(("ok", "green"), ": ", text))
