"""Write an evaluation as a folder of tables and plots."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from ..runtime.errors import MissingExtraError
from ..runtime.files import write_whole
from .summary import Evaluation

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def write_report(evaluation: Evaluation, folder: Path) -> list[Path]:
    """Write ``report.json``, ``report.csv`` and, where matplotlib is installed, plots.

    Raises:
        OutputError: the folder cannot be written.
    """
    written = [
        write_whole(folder / "report.json", msgspec.json.format(msgspec.json.encode(evaluation))),
        write_whole(folder / "report.csv", evaluation.to_csv().encode()),
    ]
    try:
        plots = _plots(evaluation)
    except MissingExtraError:
        return written
    from ..runtime.figure import encode_png

    return written + [
        write_whole(folder / name, encode_png(figure)) for name, figure in plots.items()
    ]


def _plots(evaluation: Evaluation) -> dict[str, Figure]:
    try:
        from .plots import plot_quality, plot_rpi, plot_thresholds
    except ImportError as error:
        raise MissingExtraError("matplotlib", "plot", "drawing plots") from error
    plots = {"quality.png": plot_quality(evaluation)}
    if evaluation.taus:
        plots |= {
            "rpi.png": plot_rpi(evaluation),
            "thresholds.png": plot_thresholds(evaluation),
        }
    return plots
