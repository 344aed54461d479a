"""An evaluation as a table for people, and as a folder of files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from rich.table import Column, Table

from ..runtime.errors import MissingExtraError
from ..runtime.files import write_whole
from .summary import Evaluation, Result

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_TITLES = {
    "insertion": "insertion",
    "deletion": "deletion",
    "pointing_game": "pointing game",
    "energy_in_box": "energy in box",
}


def results_table(found: Evaluation) -> Table:
    """The shape of the paper's table 3: measures down, variants across, ratios to the original."""
    variants = list(dict.fromkeys(each.variant for each in found.results))
    table = Table("method", Column("measure", no_wrap=True))
    for variant in variants:
        table.add_column(variant, justify="right")
    for method in dict.fromkeys(each.method for each in found.results):
        own = {each.variant: each for each in found.results if each.method == method}
        for field, title in {
            "average_increase": "average increase",
            "average_drop": "average drop",
            "coverage": "coverage",
            **_TITLES,
        }.items():
            cells = [_cell(own.get(name), own.get("original"), field) for name in variants]
            if any(cells):
                table.add_row(method, title, *cells)
        table.add_section()
    return table


def _cell(own: Result | None, original: Result | None, field: str) -> str:
    value = None if own is None else getattr(own, field)
    if value is None:
        return ""
    text = f"{value:.3f} ± {getattr(own, f'{field}_standard_error'):.3f}"
    before = None if original is None or original is own else getattr(original, field)
    if before is None or field == "coverage":
        return text
    # As the paper: above 1 is better than the original, for drops as for increases.
    lower_is_better = field in ("average_drop", "deletion")
    above, below = (before, value) if lower_is_better else (value, before)
    return f"{text} (x{above / below:.2f})" if below else text


def summary_lines(found: Evaluation) -> str:
    """What the table does not say."""
    reading = found.results[0]
    lines = [
        f"{found.model}: {found.pictures} photographs of {found.data}, explaining the "
        f"{found.explained} class",
        f"reading: mask {reading.mask}, thresholds by {reading.thresholds}; ± standard error; x: "
        "ratio to the original, above 1 is better",
    ]
    if found.accuracy is not None:
        lines.append(
            f"accuracy {found.accuracy:.4f} ± {found.accuracy_standard_error:.4f} on "
            f"{found.labelled} labelled photographs"
        )
    if found.unreadable_count:
        shown = "; ".join(list(found.unreadable.values())[:3])
        lines.append(f"{found.unreadable_count} photographs left out: {shown}")
    if found.skipped:
        lines.append(f"{found.skipped} photographs without a label of the network's left out")
    return "\n".join([*lines, *found.notes])


def write_report(found: Evaluation, folder: Path) -> list[Path]:
    """Write ``report.json``, ``report.csv`` and, where matplotlib is installed, plots.

    Raises:
        OutputError: the folder cannot be written.
    """
    written = [
        write_whole(folder / "report.json", msgspec.json.format(msgspec.json.encode(found))),
        write_whole(folder / "report.csv", found.to_csv().encode()),
    ]
    try:
        plots = _plots(found)
    except MissingExtraError:
        return written
    from ..runtime.figure import png

    return written + [write_whole(folder / name, png(figure)) for name, figure in plots.items()]


def _plots(found: Evaluation) -> dict[str, Figure]:
    try:
        from .plots import quality_bars, rpi_curves, threshold_histogram
    except ImportError as error:
        raise MissingExtraError("matplotlib", "plot", "drawing plots") from error
    plots = {"quality.png": quality_bars(found)}
    if found.taus:
        plots |= {"rpi.png": rpi_curves(found), "thresholds.png": threshold_histogram(found)}
    return plots
