"""Write learnt thresholds as a folder of files."""

from __future__ import annotations

from pathlib import Path

from ..runtime.files import write_json, write_whole
from .thresholds import LearntThresholds
from .thresholds_curve import format_csv


def write_learnt(learnt: LearntThresholds, folder: Path) -> list[Path]:
    """Write ``thresholds.json``, ``.csv`` and, where matplotlib is installed, ``.png``.

    Raises:
        OutputError: the folder cannot be written.
    """
    written = [
        write_json(folder / "thresholds.json", learnt),
        write_whole(folder / "thresholds.csv", format_csv(learnt.curves).encode()),
    ]
    try:
        from ..runtime.figure import encode_png
        from .thresholds_plot import plot_kept
    except ImportError:  # no matplotlib
        return written
    return [*written, write_whole(folder / "thresholds.png", encode_png(plot_kept(learnt)))]
