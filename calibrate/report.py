"""Write the figures of an evaluation as tables."""

from __future__ import annotations

from pathlib import Path

from ..runtime.files import write_json, write_whole
from .summary import Evaluation


def write_report(evaluation: Evaluation, folder: Path) -> list[Path]:
    """Write ``report.json`` and ``report.csv``; figures of independent labels to ``labels.csv``.

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
    return written
