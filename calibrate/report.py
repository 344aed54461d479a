"""An evaluation as a folder of files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from ..runtime.errors import MissingExtraError
from ..runtime.files import write_whole
from .summary import Evaluation

if TYPE_CHECKING:
    from matplotlib.figure import Figure


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
