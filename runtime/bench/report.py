"""Turn a benchmark into one JSON document and the numbers of its tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from ..timing import median
from .bench import Benchmark, Row
from .footprint import Footprint
from .plan import Configuration
from .stages import ANSWER


def summary(benchmark: Benchmark, row: Row) -> dict[str, float | None]:
    """Summarise a row: percentiles of its latency, images a second, ratio to classification.

    Returns:
        ``median_ms``, ``p90_ms``, ``p99_ms`` of the answer, from the prepared input on;
        ``images_per_second``: the batch by that median; ``ratio_to_plain``: of medians, to plain
        classification by the same engine in the same run, None where there is none.
    """
    answer = row.seconds[ANSWER]
    middle, ninety, last = (float(value) for value in np.percentile(answer, (50, 90, 99)))
    plain = benchmark.plain_of(row)
    return {
        "median_ms": middle * 1e3,
        "p90_ms": ninety * 1e3,
        "p99_ms": last * 1e3,
        "images_per_second": row.configuration.batch / middle,
        "ratio_to_plain": None if plain is None else middle / median(plain.seconds[ANSWER]),
    }


def document(benchmark: Benchmark, about: dict[str, Any]) -> dict[str, Any]:
    """Collect raw samples in seconds and the tables' numbers in one JSON document.

    Args:
        benchmark: from ``bench.measure``.
        about: from ``describe_machine``.
    """
    rows = [
        {
            **asdict(row.configuration),
            "baseline": row.baseline,
            **summary(benchmark, row),
            "stages_median_ms": {k: median(v) * 1e3 for k, v in row.seconds.items()},
            "seconds": row.seconds,
        }
        for row in benchmark.rows
    ]
    footprints = [
        {
            **{
                k: getattr(footprint.configuration, k)
                for k in ("model", "engine", "precision", "threads")
            },
            "start_up_median_s": median(footprint.seconds["total"]),
            "peak_median_bytes": peak_bytes(footprint),
            "seconds": footprint.seconds,
            "peak_bytes": footprint.peak_bytes,
        }
        for footprint in benchmark.footprints
    ]
    return {
        "machine": about,
        "rounds": benchmark.rounds,
        "image": benchmark.image,
        "rows": rows,
        "footprints": footprints,
        "left_out": [asdict(one) for one in benchmark.left_out],
    }


def peak_bytes(footprint: Footprint) -> float | None:
    """Return the median of the processes' peak memory; None if it is not known."""
    known = [peak for peak in footprint.peak_bytes if peak is not None]
    return median(known) if known else None


def _describe(configuration: Configuration) -> dict[str, str]:
    detections = configuration.detections
    plain = "classification" if detections is None else "detection"
    return {
        "model": Path(configuration.model).name,
        "engine": configuration.engine,
        "precision": configuration.precision,
        "method": configuration.method or plain,
        "tft": "on" if configuration.tft else "off" if configuration.method else "",
        "detections": str(detections) if detections else "",
        "batch": str(configuration.batch),
        "threads": str(configuration.threads),
    }


def find_shared(rows: Sequence[Row]) -> dict[str, str]:
    """Find the settings that are equal in all rows, so that a table shows them once."""
    all_of = [_describe(row.configuration) for row in rows]
    always = ("engine", "method", "tft")
    return {
        name: text
        for name, text in all_of[0].items()
        if name not in always and all(one[name] == text for one in all_of)
    }


def find_differing(row: Row, shared: dict[str, str]) -> dict[str, str]:
    """Return a row's settings that are not among the shared ones."""
    return {k: v for k, v in _describe(row.configuration).items() if k not in shared}
