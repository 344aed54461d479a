"""Tables for people. Cells are printed as they stand; ``colored`` makes one stand out."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

Cell = str | Text

_GAP = 2  # columns of the terminal between two columns of a table
_WORDS = 20  # a column that is no wider is never broken: its cells are numbers and names
_NARROWEST = 16  # of a column whose long words are broken


class FittingTable(Table):
    """A table that changes its form where it is too wide for the terminal.

    Columns of long text are broken over several lines; numbers never are. A table that is still too
    wide is transposed, and if that is too wide, printed as records, one name and value a line.

    Attributes:
        heading: a line above, as wide as the terminal.
        cells: the rows.
    """

    def __init__(self, columns: Sequence[str], numbers: Collection[str], title: str | None) -> None:
        super().__init__(
            box=None,
            pad_edge=False,
            padding=(0, _GAP, 0, 0),
        )
        self.heading = title
        self.cells: list[tuple[list[Text], bool]] = []
        self._numbers = [name in numbers for name in columns]
        for name in columns:
            justify = "right" if name in numbers else "left"
            self.add_column(Text(name), justify=justify, overflow="fold")  # type: ignore[arg-type]

    def append(self, cells: Sequence[Cell], bold: bool) -> None:
        """Add a row."""
        texts = [Text(cell) if isinstance(cell, str) else cell for cell in cells]
        self.cells.append((texts, bold))
        self.add_row(*texts, style="bold" if bold else None)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Print the table, or its records."""
        if self.heading is not None:
            yield Text(self.heading, "italic")
        widths = self._fitting(options.max_width)
        if widths is None:
            transposed = self._transposed()
            if transposed is not None and transposed._fitting(options.max_width) is not None:
                yield transposed
            else:
                yield from self._records()
            return
        for column, width in zip(self.columns, widths, strict=True):
            column.width = width
        yield from super().__rich_console__(console, options)

    def _fitting(self, room: int) -> list[int] | None:
        """Choose the columns' widths; None where some cell would be cut."""
        headers = [column.header for column in self.columns]
        rows: list[list[Any]] = [headers, *(cells for cells, _ in self.cells)]
        widths, least = [0] * len(headers), [0] * len(headers)
        for cells in rows:
            for place, cell in enumerate(cells):
                widths[place] = max(widths[place], cell.cell_len)
        for place, width in enumerate(widths):
            whole = self._numbers[place] or width <= _WORDS
            texts = [cells[place].plain for cells in rows if place < len(cells)]
            # What is never broken: numbers and names, but for a remark in brackets behind them.
            parts = [
                part for text in texts for part in (text.split(" (") if whole else text.split())
            ]
            longest = max((Text(part).cell_len + whole for part in parts), default=0)
            least[place] = min(width, longest if whole else min(longest, _NARROWEST))
        room -= _GAP * (len(widths) - 1)
        while sum(widths) > room:
            spares = [wide - low for wide, low in zip(widths, least, strict=True)]
            spare, place = max((spare, place) for place, spare in enumerate(spares))
            if spare <= 0:
                return None
            widths[place] -= 1
        return widths

    def _transposed(self) -> FittingTable | None:
        """Make a column of each row, headed by its first cell; None where there is one row."""
        if len(self.cells) < 2:
            return None
        corner, *names = (column.header for column in self.columns)
        heads = [str(cells[0]) for cells, _ in self.cells]
        turned = FittingTable([str(corner), *heads], heads, None)
        for place, name in enumerate(names, 1):
            row = [
                (cells[place] if place < len(cells) else Text("")).copy() for cells, _ in self.cells
            ]
            for cell, (_, bold) in zip(row, self.cells, strict=True):
                if bold:
                    cell.stylize("bold")
            turned.append([str(name), *row], False)
        return turned

    def _records(self) -> RenderResult:
        names = [column.header for column in self.columns]
        wide = max(name.cell_len for name in names if isinstance(name, Text))
        for number, (cells, bold) in enumerate(self.cells):
            if number:
                yield Text("")
            for name, cell in zip(names, cells, strict=False):
                assert isinstance(name, Text)
                if cell.plain:
                    label = Text(name.plain.ljust(wide + _GAP), "bold")
                    cell = Text("  ").join(line for line in cell.split("\n") if line.plain.strip())
                    yield Text.assemble(label, cell, style="bold" if bold else "")


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
    """Lay out rows under named columns; as records where the terminal is too narrow.

    Args:
        columns: headings.
        rows: cells, as many as there are columns or fewer.
        numbers: the columns that are aligned to the right.
        title: a line above.
        bold: rows that are printed bold, by their number from 0.
    """
    grid = FittingTable(columns, numbers, title)
    for number, row in enumerate(rows):
        grid.append(row, number in bold)
    return grid


def facts(rows: Iterable[tuple[str, str]]) -> Table:
    """Lay out names in bold and what is true of each."""
    grid = Table(show_header=False, box=None, pad_edge=False)
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in rows:
        grid.add_row(Text(name, "bold"), Text(value))
    return grid


def sweep_cells(row: Mapping[str, Any], whole: float) -> list[str]:
    """Write the threshold of TFT, its rpi, and the probability of the masked image.

    Args:
        row: as ``Explanation.to_dict`` gives it, with TFT.
        whole: the probability, or score, of the whole image.
    """
    if not row["improved"]:
        return ["none", "-", f"{whole:.4f}"]
    # A search also tries thresholds between the tenths.
    tau = f"{row['threshold']:.2f}".removesuffix("0")
    rpi = max(value for value in row["rpi"] if value is not None)
    return [tau, f"{rpi:.3f}", f"{row['masked_probability']:.4f}"]
