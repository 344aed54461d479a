"""A benchmark as tables for people, and as one JSON document."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from ..console import escape
from ..timing import median
from .bench import Benchmark, Footprint, Row
from .plan import Configuration
from .stages import ANSWER, STAGES, WHOLE


def summary(found: Benchmark, row: Row) -> dict[str, float | None]:
    """What the first table says of a row.

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
    """Everything for machines: raw samples in seconds, and what the tables say.

    Args:
        found: from ``bench.measure``.
        about: from ``describe_machine``.
    """
    rows = [
        {
            **asdict(row.configuration),
            "peer": row.peer,
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
            "peak_median_bytes": _peak(each),
            "seconds": each.seconds,
            "peak_bytes": each.peak_bytes,
        }
        for each in found.footprints
    ]
    return {
        "machine": about,
        "rounds": found.rounds,
        "picture": found.picture,
        "rows": rows,
        "footprints": footprints,
        "left_out": [asdict(each) for each in found.left_out],
    }


def _peak(footprint: Footprint) -> float | None:
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
    """What is the same in all rows, and so is said once."""
    all_of = [_described(row.configuration) for row in rows]
    always = ("engine", "method", "tft")
    return {
        name: text
        for name, text in all_of[0].items()
        if name not in always and all(each[name] == text for each in all_of)
    }


def names_of(row: Row, shared: dict[str, str]) -> dict[str, str]:
    """What tells a row from the others."""
    return {k: v for k, v in _described(row.configuration).items() if k not in shared}


def answers_table(found: Benchmark) -> Table:
    """One line a configuration: from the prepared input to map or probabilities."""
    shared = shared_by(found.rows)
    table = _table(
        "from the prepared input to the answer; / plain: to classification by the same engine",
        [*names_of(found.rows[0], shared)],
        ["median ms", "p90", "p99", "images/s", "/ plain"],
    )
    for row in found.rows:
        numbers = summary(found, row)
        ratio = numbers["ratio_to_plain"]
        table.add_row(
            *map(escape, names_of(row, shared).values()),
            *(f"{numbers[name]:.2f}" for name in ("median_ms", "p90_ms", "p99_ms")),
            f"{numbers['images_per_second']:.1f}",
            "" if ratio is None else f"{ratio:.2f}",
        )
    return table


def stages_table(found: Benchmark) -> Table:
    """Median milliseconds of each stage, and its share of them all, from file to overlay."""
    rows = [row for row in found.rows if not row.peer]
    shared = shared_by(found.rows)
    table = _table(
        "from the picture file to the overlay: median ms of each stage, and its share",
        [*names_of(found.rows[0], shared)],
        [*STAGES, WHOLE],
    )
    for row in rows:
        medians = {stage: median(row.seconds[stage]) for stage in STAGES if stage in row.seconds}
        total = sum(medians.values())
        cells = [
            f"{medians[stage] * 1e3:.2f}\n{medians[stage] / total:.0%}" if stage in medians else ""
            for stage in STAGES
        ]
        whole = f"{median(row.seconds[WHOLE]) * 1e3:.2f}\n"
        table.add_row(*map(escape, names_of(row, shared).values()), *cells, whole)
    return table


def _table(title: str, names: Sequence[str], numbers: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, padding=(0, 1, 0, 0))
    for name in names:
        table.add_column(name)
    for name in numbers:
        table.add_column(name, justify="right")
    return table


def footprints_table(found: Benchmark) -> Table:
    """Seconds to the first map in a fresh process, and the memory that took."""
    table = _table(
        "a fresh process up to its first map, without TFT",
        ["model", "engine", "precision", "threads"],
        ["import s", "load s", "map s", "all s", "peak MiB"],
    )
    for each in found.footprints:
        what, peak = each.configuration, _peak(each)
        table.add_row(
            escape(Path(what.model).name),
            what.engine,
            what.precision,
            str(what.threads),
            *(f"{median(samples):.2f}" for samples in each.seconds.values()),
            "not known" if peak is None else f"{peak / 2**20:.0f}",
        )
    return table


def heading(found: Benchmark, about: dict[str, Any]) -> str:
    """What was measured, where and with what."""
    shared = ", ".join(f"{name} {text}" for name, text in shared_by(found.rows).items())
    versions = ", ".join(f"{name} {number}" for name, number in about["packages"].items())
    picture = "a generated picture" if found.picture == "generated" else found.picture
    return "\n".join(
        [
            f"{about['processor']}, {about['cores']} cores; {about['system']}",
            f"python {about['python']}, whycam {about['whycam']}, {versions}; {about['date']}",
            f"{shared}; {picture}; {found.rounds} rounds, all in turn",
        ]
    )


def remarks(found: Benchmark) -> list[str]:
    """How other tools compare with the fastest of whycam's, and what was left out."""
    lines = []
    for row in found.rows:
        ours = _fastest_beside(found, row) if row.peer and row.configuration.method else None
        if ours is not None:
            ratio = median(row.seconds[ANSWER]) / median(ours.seconds[ANSWER])
            own, what = ours.configuration, row.configuration
            lines.append(
                f"{what.engine} takes {ratio:.1f} times as long as whycam in {own.engine} "
                f"{own.precision} ({Path(own.model).name}, {own.method}, batch {own.batch}, "
                f"threads {own.threads})"
            )
    return lines + [f"left out: {each.what}: {each.reason}" for each in found.left_out]


def _fastest_beside(found: Benchmark, peer: Row) -> Row | None:
    """Whycam's own map of the same method, model, batch, threads and, to be fair, precision."""
    same = ("model", "precision", "method", "tft", "batch", "threads")
    wanted = [getattr(peer.configuration, name) for name in same]
    beside = [
        row
        for row in found.rows
        if not row.peer and [getattr(row.configuration, name) for name in same] == wanted
    ]
    return min(beside, key=lambda row: median(row.seconds[ANSWER]), default=None)


def report(found: Benchmark, about: dict[str, Any]) -> Iterator[str | Table]:
    """Everything for people, part by part."""
    yield heading(found, about)
    for table in (answers_table(found), stages_table(found), footprints_table(found)):
        yield ""
        yield table
    lines = remarks(found)
    if lines:
        yield ""
    yield from map(escape, lines)
