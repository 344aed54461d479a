"""What was learnt of thresholds, as a table for people and as a folder of files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from rich.table import Column, Table

from ..runtime.errors import MissingExtraError
from ..runtime.files import write_whole
from .thresholds import Curve, Learnt, Point

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def curve_table(curve: Curve) -> Table:
    """Forwards down; increase, rpi and time across."""
    names = ("increase", "of the gain", "rpi", "of all ten", "ms")
    table = Table(Column("tried", no_wrap=True))
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    table.title = f"{curve.method}, mask {curve.mask}, thresholds by {curve.thresholds}"
    table.add_row("map as it is", f"{curve.original_average_increase:.3f}", "", "", "", "")
    for point in curve.search:
        table.add_row(f"search of {point.forwards}", *_cells(point))
    for point in curve.fixed:
        table.add_row("only " + " ".join(f"{tau:g}" for tau in point.taus), *_cells(point))
    table.add_row("all ten", *_cells(curve.every))
    return table


def _cells(point: Point) -> list[str]:
    increase = f"{point.average_increase:.3f}±{point.average_increase_standard_error:.3f}"
    time = "" if point.milliseconds is None else f"{point.milliseconds:.1f}"
    return [
        increase,
        _share(point.increase_kept),
        f"{point.mean_rpi:.3f}",
        _share(point.rpi_kept),
        time,
    ]


def _share(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.0f} %"


def learnt_lines(found: Learnt) -> str:
    """What the tables do not say."""
    curve = found.curves[0]
    lines = [
        f"{found.model}: {found.pictures} photographs of {found.data}, learnt from "
        f"{curve.learnt_from}, measured on {curve.held_out} others; engine {found.engine}",
        "increase: average increase ± standard error; of the gain: what it has beyond the map as "
        "it is, as a share of what all ten thresholds gain; rpi: mean relative probability "
        "increase; ms: one map alone, median",
    ]
    if found.unreadable:
        shown = "; ".join(list(found.unreadable.values())[:3])
        lines.append(f"{len(found.unreadable)} photographs left out: {shown}")
    return "\n".join(lines)


def write_learnt(found: Learnt, folder: Path) -> list[Path]:
    """Write ``thresholds.json``, ``.csv`` and, where matplotlib is installed, ``.png``.

    Raises:
        OutputError: the folder cannot be written.
    """
    document = msgspec.json.format(msgspec.json.encode(found))
    written = [
        write_whole(folder / "thresholds.json", document),
        write_whole(folder / "thresholds.csv", found.to_csv().encode()),
    ]
    try:
        plot = _plot(found)
    except MissingExtraError:
        return written
    from ..runtime.figure import png

    return [*written, write_whole(folder / "thresholds.png", png(plot))]


def _plot(found: Learnt) -> Figure:
    try:
        from .thresholds_plot import kept_curves
    except ImportError as error:
        raise MissingExtraError("matplotlib", "plot", "drawing plots") from error
    return kept_curves(found)
