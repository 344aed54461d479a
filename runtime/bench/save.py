"""Write a benchmark into a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..files import write_json, write_whole
from .bench import Benchmark
from .report import document


def write_bench(benchmark: Benchmark, about: dict[str, Any], folder: Path) -> list[Path]:
    """Write ``bench.json`` and, where matplotlib is installed, ``bench.png``.

    Raises:
        OutputError: the folder cannot be written.
    """
    written = [write_json(folder / "bench.json", document(benchmark, about))]
    try:
        from ..figure import encode_png
        from .plot import plot_stages
    except ImportError:  # no matplotlib
        return written
    return [*written, write_whole(folder / "bench.png", encode_png(plot_stages(benchmark)))]
