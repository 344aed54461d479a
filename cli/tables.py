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
    made = Table(title=title, title_justify="left", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in columns:
        made.add_column(Text(name), justify="right" if name in numbers else "left")
    for number, row in enumerate(rows):
        cells = [Text(cell) if isinstance(cell, str) else cell for cell in row]
        made.add_row(*cells, style="bold" if number in bold else None)
    return made


def facts(rows: Iterable[tuple[str, str]]) -> Table:
    """Lay out names in bold and what is true of each."""
    made = Table(show_header=False, box=None, pad_edge=False)
    made.add_column(no_wrap=True)
    made.add_column(overflow="fold")
    for name, value in rows:
        made.add_row(Text(name, "bold"), Text(value))
    return made
