"""What the doctor found, for people."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.table import Table

from ..console import escape
from ..engines.nvidia import Driver
from .check import Check
from .doctor import EngineState, Report

_COLORS = {"ready": "green", "right": "green", "wrong": "red", "failed": "red"}


def report_parts(found: Report) -> Iterator[Table | str]:
    """Text and tables, in order."""
    own = found.machine
    memory = f", {own['memory_mb'] / 1024:.1f} GiB" if own["memory_mb"] else ""
    board = f"{own['board']}, " if own["board"] else ""
    yield escape(f"{board}{own['processor']}, {own['cores']} cores{memory}")
    yield escape(f"{own['system']}, Python {own['python']}, whycam {own['whycam']}")
    yield escape(_driver_line(found.driver))
    yield _engines(found.engines)
    for each in found.engines:
        if each.problem is not None:
            yield escape(f"{each.name}: {each.problem}")
    for model in dict.fromkeys(each.model for each in found.checks):
        own_checks = [each for each in found.checks if each.model == model]
        kind = own_checks[0].file_precision
        yield escape(f"{model} ({kind}), {found.pictures} pictures")
        yield from _checks(own_checks)
    if found.checks:
        yield (
            "each against ONNX Runtime on the CPU in fp32: the worst picture's difference of a "
            "probability, the median and lowest correlation of maps, how often tau* is the same, "
            "the mean overlap of masks; then the median time of one picture"
        )


def _driver_line(driver: Driver) -> str:
    if driver.problem is not None and not driver.gpus:
        return f"no NVIDIA GPU can be used: {driver.problem}"
    own = f"NVIDIA driver {driver.version or ''}".strip()
    listed = "; ".join(
        f"GPU {each.index}: {each.name}, compute capability {each.capability}, "
        f"{each.memory_bytes / 2**30:.1f} GiB"
        for each in driver.gpus
    )
    return f"{own}, CUDA up to {driver.cuda}; {listed}"


def _engines(states: Sequence[EngineState]) -> Table:
    table = Table("engine", "state", "version", "devices", "precisions")
    for each in states:
        table.add_row(
            each.name,
            _colored(each.state),
            escape(each.version or ""),
            escape(", ".join(each.devices)),
            ", ".join(each.precisions),
        )
    return table


def _checks(checks: Sequence[Check]) -> Iterator[Table | str]:
    alike = Table("engine", "answers", "p differs", "maps alike", "tau*", "masks")
    timed = Table("engine")
    for name in ("classification", "explanation", "TFT"):
        timed.add_column(f"{name}, ms", justify="right")
    for each in checks:
        engine = f"{each.engine} {each.precision}"
        alike.add_row(engine, _colored(each.outcome), *_likeness(each))
        if each.median_ms:
            times = (each.median_ms.get(name) for name in ("classification", "explanation", "tft"))
            timed.add_row(engine, *("" if ms is None else f"{ms:.1f}" for ms in times))
    yield alike
    for each in checks:
        if each.outcome == "not possible":
            yield escape(f"{each.engine} {each.precision}: {each.why}")
    if timed.rows:
        yield timed


def _likeness(check: Check) -> tuple[str, str, str, str]:
    own = check.comparison
    if own is None:
        return ("reference" if check.outcome == "right" else "", "", "", "")
    lowest = min(own.maps.values(), key=lambda each: each.correlation_low, default=None)
    maps = "" if lowest is None else f"{lowest.correlation:.4f} ({lowest.correlation_low:.4f})"
    return (
        f"{own.probability:.1e}",
        maps,
        "" if own.same_threshold is None else f"{own.same_threshold:.0%}",
        "" if own.mask_overlap is None else f"{own.mask_overlap:.3f}",
    )


def _colored(word: str) -> str:
    color = _COLORS.get(word)
    return f"[{color}]{word}[/{color}]" if color else word
