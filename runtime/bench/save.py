"""Write what a benchmark measured into a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from ..files import write_whole
from .bench import Benchmark
from .report import document


def write_bench(found: Benchmark, about: dict[str, Any], folder: Path) -> list[Path]:
    """Write ``bench.json`` and, where matplotlib is installed, ``bench.png``.

    Raises:
        OutputError: the folder cannot be written.
    """
    encoded = msgspec.json.format(msgspec.json.encode(document(found, about)))
    written = [write_whole(folder / "bench.json", encoded)]
    try:
        from .plot import stage_bars
    except ImportError:  # no matplotlib
        return written
    from ..figure import encode_png

    figure = stage_bars(found)
    return [*written, write_whole(folder / "bench.png", encode_png(figure))]
