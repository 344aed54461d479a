"""Write an evaluation as a folder of tables and plots."""

from __future__ import annotations

from pathlib import Path

from ..runtime.files import write_json, write_whole
from .summary import Evaluation


def write_report(evaluation: Evaluation, folder: Path) -> list[Path]:
    """Write ``report.json``, ``report.csv`` and, where matplotlib is installed, plots.

    Figures of independent labels are in ``labels.csv``.

    Raises:
        OutputError: the folder cannot be written.
    """
    written = [
        write_json(folder / "report.json", evaluation),
        write_whole(folder / "report.csv", evaluation.to_csv().encode()),
    ]
    if evaluation.labels:
        text = evaluation.labels_to_csv()
        written.append(write_whole(folder / "labels.csv", text.encode()))
    try:
        from ..runtime.figure import encode_png
        from .plots import plot_quality, plot_rpi, plot_thresholds
    except ImportError:  # no matplotlib
        return written
    plots = {"quality.png": plot_quality(evaluation)}
    if evaluation.taus:
        plots |= {
            "rpi.png": plot_rpi(evaluation),
            "thresholds.png": plot_thresholds(evaluation),
        }
    return written + [
        write_whole(folder / name, encode_png(figure)) for name, figure in plots.items()
    ]
