"""Turn a benchmark into one JSON document and the numbers of its tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from ..timing import median
from .bench import Benchmark, Footprint, Row
from .plan import Configuration
from .stages import ANSWER


def summary(found: Benchmark, row: Row) -> dict[str, float | None]:
    """Summarise a row: percentiles of its latency, images a second, ratio to classification.

    Returns:
        ``median_ms``, ``p90_ms``, ``p99_ms`` of the answer, from the prepared input on;
        ``images_per_second``: the batch by that median; ``ratio_to_plain``: of medians, to plain
        classification by the same engine in the same run, None where there is none.
    """
    answer = row.seconds[ANSWER]
    middle, ninety, last = (float(value) for value in np.percentile(answer, (50, 90, 99)))
    plain = found.plain_of(row)
    return {
        "median_ms": middle * 1e3,
        "p90_ms": ninety * 1e3,
        "p99_ms": last * 1e3,
        "images_per_second": row.configuration.batch / middle,
        "ratio_to_plain": None if plain is None else middle / median(plain.seconds[ANSWER]),
    }


def document(found: Benchmark, about: dict[str, Any]) -> dict[str, Any]:
    """Collect raw samples in seconds and the tables' numbers in one JSON document.

    Args:
        found: from ``bench.measure``.
        about: from ``describe_machine``.
    """
    rows = [
        {
            **asdict(row.configuration),
            "baseline": row.baseline,
            **summary(found, row),
            "stages_median_ms": {k: median(v) * 1e3 for k, v in row.seconds.items()},
            "seconds": row.seconds,
        }
        for row in found.rows
    ]
    footprints = [
        {
            **{k: getattr(each.configuration, k) for k in ("model", "engine", "precision")},
            "threads": each.configuration.threads,
            "start_up_median_s": median(each.seconds["total"]),
            "peak_median_bytes": peak_bytes(each),
            "seconds": each.seconds,
            "peak_bytes": each.peak_bytes,
        }
        for each in found.footprints
    ]
    return {
        "machine": about,
        "rounds": found.rounds,
        "image": found.image,
        "rows": rows,
        "footprints": footprints,
        "left_out": [asdict(each) for each in found.left_out],
    }


def peak_bytes(footprint: Footprint) -> float | None:
    """Take the median of a process's peak memory up to its first map; None if not known."""
    known = [each for each in footprint.peak_bytes if each is not None]
    return median(known) if known else None


def _described(configuration: Configuration) -> dict[str, str]:
    return {
        "model": Path(configuration.model).name,
        "engine": configuration.engine,
        "precision": configuration.precision,
        "method": configuration.method or "classification",
        "tft": "on" if configuration.tft else "off" if configuration.method else "",
        "batch": str(configuration.batch),
        "threads": str(configuration.threads),
    }


def shared_by(rows: Sequence[Row]) -> dict[str, str]:
    """Find the settings that are the same in all rows, so that a table says them once."""
    all_of = [_described(row.configuration) for row in rows]
    always = ("engine", "method", "tft")
    return {
        name: text
        for name, text in all_of[0].items()
        if name not in always and all(each[name] == text for each in all_of)
    }


def names_of(row: Row, shared: dict[str, str]) -> dict[str, str]:
    """List the settings that tell a row from the others."""
    return {k: v for k, v in _described(row.configuration).items() if k not in shared}
