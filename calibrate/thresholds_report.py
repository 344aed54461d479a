"""Write learnt thresholds as a folder of files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from ..runtime.errors import MissingExtraError
from ..runtime.files import write_whole
from .thresholds import LearntThresholds

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def write_learnt(learnt: LearntThresholds, folder: Path) -> list[Path]:
    """Write ``thresholds.json``, ``.csv`` and, where matplotlib is installed, ``.png``.

    Raises:
        OutputError: the folder cannot be written.
    """
    document = msgspec.json.format(msgspec.json.encode(learnt))
    written = [
        write_whole(folder / "thresholds.json", document),
        write_whole(folder / "thresholds.csv", learnt.to_csv().encode()),
    ]
    try:
        plot = _plot(learnt)
    except MissingExtraError:
        return written
    from ..runtime.figure import encode_png

    return [*written, write_whole(folder / "thresholds.png", encode_png(plot))]


def _plot(learnt: LearntThresholds) -> Figure:
    try:
        from .thresholds_plot import plot_kept
    except ImportError as error:
        raise MissingExtraError("matplotlib", "plot", "drawing plots") from error
    return plot_kept(learnt)
