"""Tables for people. Cells are printed as they stand; ``colored`` makes one stand out."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from rich.table import Table
from rich.text import Text

Cell = str | Text


def colored(text: str, color: str) -> Text:
    """Return a cell in a color of the terminal, as ``green``."""
    return Text(text, color)


def table(
    columns: Sequence[str],
    rows: Iterable[Sequence[Cell]],
    numbers: Collection[str] = (),
    title: str | None = None,
    bold: Collection[int] = (),
) -> Table:
    """Lay out rows under named columns.

    Args:
        columns: headings.
        rows: cells, as many as there are columns or fewer.
        numbers: the columns that are aligned to the right.
        title: a line above.
        bold: rows that are printed bold, by their number from 0.
    """
    grid = Table(title=title, title_justify="left", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in columns:
        grid.add_column(Text(name), justify="right" if name in numbers else "left")
    for number, row in enumerate(rows):
        cells = [Text(cell) if isinstance(cell, str) else cell for cell in row]
        grid.add_row(*cells, style="bold" if number in bold else None)
    return grid


def facts(rows: Iterable[tuple[str, str]]) -> Table:
    """Lay out names in bold and what is true of each."""
    grid = Table(show_header=False, box=None, pad_edge=False)
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in rows:
        grid.add_row(Text(name, "bold"), Text(value))
    return grid
