"""Print what a benchmark measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table


def print_rows(rows: Sequence[Mapping[str, Any]], digits: str) -> None:
    """Print rows of one kind as a table, numbers in a format such as ``.2f``."""
    table = Table(*rows[0])
    for row in rows:
        table.add_row(
            *(format(v, digits) if isinstance(v, float) else str(v) for v in row.values())
        )
    Console(highlight=False, width=150).print(table)
