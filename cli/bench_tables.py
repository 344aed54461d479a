"""Format a benchmark as lines and tables."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.table import Table

from ..runtime.bench.bench import Benchmark, Row
from ..runtime.bench.report import find_differing, find_shared, peak_bytes, summary
from ..runtime.bench.stages import ANSWER, STAGES, WHOLE
from ..runtime.timing import median
from .tables import table


def answers_table(benchmark: Benchmark) -> Table:
    """Lay out, a line for each configuration, from the prepared input to map or probabilities."""
    shared = find_shared(benchmark.rows)
    columns = ["median ms", "p90", "p99", "images/s", "/ plain"]
    rows = []
    for row in benchmark.rows:
        numbers = summary(benchmark, row)
        ratio = numbers["ratio_to_plain"]
        rows.append(
            [
                *find_differing(row, shared).values(),
                *(f"{numbers[name]:.2f}" for name in ("median_ms", "p90_ms", "p99_ms")),
                f"{numbers['images_per_second']:.1f}",
                "" if ratio is None else f"{ratio:.2f}",
            ]
        )
    return table(
        [*find_differing(benchmark.rows[0], shared), *columns],
        rows,
        numbers=columns,
        title="from the prepared input to the answer; / plain: to classification, or "
        "detection, by the same engine",
    )


def stages_table(benchmark: Benchmark) -> Table:
    """Lay out median milliseconds of each stage, and its share, from file to overlay."""
    shared = find_shared(benchmark.rows)
    rows = []
    for row in benchmark.rows:
        if row.baseline:
            continue
        medians = {stage: median(row.seconds[stage]) for stage in STAGES if stage in row.seconds}
        total = sum(medians.values())
        cells = [
            f"{medians[stage] * 1e3:.2f}\n{medians[stage] / total:.0%}" if stage in medians else ""
            for stage in STAGES
        ]
        whole = f"{median(row.seconds[WHOLE]) * 1e3:.2f}\n"
        rows.append([*find_differing(row, shared).values(), *cells, whole])
    # Another column is called engine.
    stages = ["inference" if stage == "engine" else stage for stage in STAGES]
    return table(
        [*find_differing(benchmark.rows[0], shared), *stages, WHOLE],
        rows,
        numbers=[*stages, WHOLE],
        title="from the image file to the overlay: median ms of each stage, and its share",
    )


def footprints_table(benchmark: Benchmark) -> Table:
    """Lay out seconds to the first map in a fresh process, and the memory that took."""
    columns = ["import s", "load s", "map s", "all s", "peak MiB"]
    rows = []
    for entry in benchmark.footprints:
        configuration, peak = entry.configuration, peak_bytes(entry)
        rows.append(
            [
                Path(configuration.model).name,
                configuration.engine,
                configuration.precision,
                str(configuration.threads),
                *(f"{median(samples):.2f}" for samples in entry.seconds.values()),
                "not known" if peak is None else f"{peak / 2**20:.0f}",
            ]
        )
    return table(
        ["model", "engine", "precision", "threads", *columns],
        rows,
        numbers=columns,
        title="a fresh process up to its first map, without TFT",
    )


def heading(benchmark: Benchmark, about: dict[str, Any]) -> str:
    """Describe the machine, the versions and the settings."""
    shared = ", ".join(
        f"{name} {text}" for name, text in find_shared(benchmark.rows).items() if text
    )
    versions = ", ".join(f"{name} {number}" for name, number in about["packages"].items())
    image = "a generated image" if benchmark.image == "generated" else benchmark.image
    return "\n".join(
        [
            f"{about['processor']}, {about['cores']} cores; {about['system']}",
            f"python {about['python']}, whycam {about['whycam']}, {versions}; {about['date']}",
            f"{shared}; {image}; {benchmark.rounds} rounds, all in turn",
        ]
    )


def remarks(benchmark: Benchmark) -> list[str]:
    """Compare other tools with the fastest of whycam's, and name what was left out."""
    lines = []
    for row in benchmark.rows:
        fastest = (
            _fastest_beside(benchmark, row) if row.baseline and row.configuration.method else None
        )
        if fastest is not None:
            ratio = median(row.seconds[ANSWER]) / median(fastest.seconds[ANSWER])
            ours, theirs = fastest.configuration, row.configuration
            lines.append(
                f"{theirs.engine} takes {ratio:.1f} times as long as whycam in {ours.engine} "
                f"{ours.precision} ({Path(ours.model).name}, {ours.method}, batch {ours.batch}, "
                f"threads {ours.threads})"
            )
    return lines + [f"left out: {entry.what}: {entry.reason}" for entry in benchmark.left_out]


def _fastest_beside(benchmark: Benchmark, baseline: Row) -> Row | None:
    """Find whycam's fastest map of the same method, model, batch, threads and precision."""
    same = ("model", "precision", "method", "tft", "batch", "threads")
    of_baseline = [getattr(baseline.configuration, name) for name in same]
    beside = [
        row
        for row in benchmark.rows
        if not row.baseline and [getattr(row.configuration, name) for name in same] == of_baseline
    ]
    return min(beside, key=lambda row: median(row.seconds[ANSWER]), default=None)


def report(benchmark: Benchmark, about: dict[str, Any]) -> Iterator[str | Table]:
    """Format the whole benchmark, as lines and tables in order."""
    yield heading(benchmark, about)
    yield ""
    yield from (answers_table(benchmark), stages_table(benchmark), footprints_table(benchmark))
    yield from remarks(benchmark)
