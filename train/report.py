"""Before and after, in the shape of the paper's table 3."""

from __future__ import annotations

from collections.abc import Mapping

from rich.table import Table

from ..calibrate.summary import Result


def before_after_table(rows: Mapping[str, Result]) -> Table:
    """Original, TFT and AFT beside each other, with ratios to the original above 1 for better."""
    table = Table("measure", *rows)
    original = rows["original"]
    for field, title in (
        ("average_increase", "average increase"),
        ("average_drop", "average drop"),
        ("coverage", "coverage"),
        ("pointing_game", "pointing game"),
        ("energy_in_box", "energy in box"),
    ):
        values = {name: getattr(row, field) for name, row in rows.items()}
        if any(value is None for value in values.values()):
            continue
        cells = []
        for name, value in values.items():
            text = f"{value:.3f} ± {getattr(rows[name], f'{field}_standard_error'):.3f}"
            before = getattr(original, field)
            above, below = (before, value) if field == "average_drop" else (value, before)
            if name != "original" and below and field != "coverage":
                text += f" (x{above / below:.2f})"
            cells.append(text)
        table.add_row(title, *cells)
    return table
