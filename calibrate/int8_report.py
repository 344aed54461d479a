"""Write the reports of INT8 calibrations and of comparisons."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import msgspec

from ..runtime.files import write_json, write_whole
from .fidelity import Fidelity
from .int8 import Int8Result


def write_int8_report(result: Int8Result, folder: Path) -> list[Path]:
    """Write ``int8.json`` with everything, ``int8.csv`` with one line a method.

    Raises:
        OutputError: the folder cannot be written.
    """
    return [
        write_json(folder / "int8.json", result),
        write_whole(folder / "int8.csv", _csv(result.proof).encode()),
    ]


def write_fidelity_report(result: Fidelity, folder: Path) -> list[Path]:
    """Write ``compare.json`` with everything, ``compare.csv`` with one line a method."""
    return [
        write_json(folder / "compare.json", result),
        write_whole(folder / "compare.csv", _csv(result).encode()),
    ]


def _csv(result: Fidelity) -> str:
    text = io.StringIO()
    rows = [
        {"method": method, "images": result.images, "top1": result.top1}
        | msgspec.structs.asdict(maps)
        for method, maps in result.maps.items()
    ]
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
