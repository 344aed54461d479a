"""The verb doctor."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from ..runtime.errors import RequestError
from . import parse
from .console import print_error, print_json, print_ok, say, say_all
from .options import ENGINES, Cache, Gpu, Json, Threads, complete
from .progress import progress
from .tables import Cell, colored, table

if TYPE_CHECKING:
    from ..runtime.doctor.check import Check
    from ..runtime.doctor.doctor import EngineState, Report
    from ..runtime.engines.nvidia import Driver


_COLORS = {"ready": "green", "right": "green", "wrong": "red", "failed": "red"}


def doctor(
    check: Annotated[
        list[Path] | None,
        typer.Option(
            "--check",
            help="A model file to try in every engine that is ready; again for more files.",
        ),
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option(help="Folder of images to show beside the test patterns: 16 of them."),
    ] = None,
    engine: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,...",
            help=f"Check in these, which must be ready, of: {', '.join(ENGINES)} "
            "[default: all that are ready].",
            autocompletion=complete(ENGINES),
        ),
    ] = None,
    rounds: Annotated[int, typer.Option(help="How often each call is timed.")] = 10,
    limit: Annotated[
        float,
        typer.Option(help="Seconds for one file in one engine; TensorRT builds for minutes."),
    ] = 1800,
    gpu: Gpu = 0,
    threads: Threads = None,
    cache: Cache = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Write the whole report as JSON.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Say which engines run here, what the others lack, and whether they answer rightly.

    Each engine is asked in a process of its own, so that a driver that crashes is a line in the
    report. The report names no folder, user or image.
    """
    import msgspec

    from ..runtime.doctor.check import Settings
    from ..runtime.doctor.doctor import examine, steps
    from ..runtime.errors import OutputError
    from ..runtime.files import writable, write_whole

    models = check or []
    if images is not None and not models:
        raise RequestError("--images are shown to a model: name it with --check MODEL")
    settings = Settings(
        engines=None if engine is None else tuple(parse.names(engine)),
        gpu=gpu,
        threads=threads,
        cache=None if cache is None else str(cache),
        rounds=rounds,
        limit_s=limit,
    )
    shown = [] if images is None else [path for path, _ in parse.images([images])]
    if output is not None:
        writable(output.parent)  # known before the minutes it takes
        if os.path.isdir(output):
            raise OutputError(f"cannot write {output}: it is a folder")
    with progress("looking around", steps(models), as_json) as advance:
        found = examine(models, shown, settings, advance)
    document = msgspec.json.encode(found)
    if output is not None:
        write_whole(output, msgspec.json.format(document, indent=2) + b"\n")
    if as_json:
        print_json(document.decode())
    else:
        say_all(report_parts(found))
        if output is not None:
            say(f"written to {output}")
    for problem in found.problems:
        print_error(problem)
    if found.problems:
        raise typer.Exit(2)
    if not as_json:
        checked = ", and those checked answer rightly" if models else ""
        print_ok(f"an engine is ready{checked}")


def report_parts(found: Report) -> Iterator[Table | str]:
    """Say what was found, as lines and tables in order."""
    own = found.machine
    memory = f", {own['memory_mb'] / 1024:.1f} GiB" if own["memory_mb"] else ""
    board = f"{own['board']}, " if own["board"] else ""
    yield f"{board}{own['processor']}, {own['cores']} cores{memory}"
    yield f"{own['system']}, Python {own['python']}, whycam {own['whycam']}"
    yield _driver_line(found.driver)
    yield _engines(found.engines)
    for each in found.engines:
        if each.problem is not None:
            yield f"{each.name}: {each.problem}"
    for model in dict.fromkeys(each.model for each in found.checks):
        own_checks = [each for each in found.checks if each.model == model]
        kind = own_checks[0].file_precision
        yield f"{model} ({kind}), {found.images} images"
        yield from _checks(own_checks)
    if found.checks:
        yield (
            "each against ONNX Runtime on the CPU in fp32: the worst image's difference of a "
            "probability, the median and lowest correlation of maps, how often tau* is the same, "
            "the mean overlap of masks; then the median time of one image"
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
    return table(
        ["engine", "state", "version", "devices", "precisions"],
        [
            (
                each.name,
                _outcome(each.state),
                each.version or "",
                ", ".join(each.devices),
                ", ".join(each.precisions),
            )
            for each in states
        ],
    )


def _checks(checks: Sequence[Check]) -> Iterator[Table | str]:
    yield table(
        ["engine", "answers", "p differs", "maps alike", "tau*", "masks"],
        [(_name(each), _outcome(each.outcome), *_similarity(each)) for each in checks],
    )
    for each in checks:
        if each.outcome == "not possible":
            yield f"{each.engine} {each.precision}: {each.why}"
    timed = [(_name(each), *_times(each)) for each in checks if each.median_ms]
    if timed:
        columns = ["classification, ms", "explanation, ms", "TFT, ms"]
        yield table(["engine", *columns], timed, numbers=columns)


def _name(check: Check) -> str:
    return f"{check.engine} {check.precision}"


def _times(check: Check) -> Iterator[str]:
    for name in ("classification", "explanation", "tft"):
        milliseconds = check.median_ms.get(name)
        yield "" if milliseconds is None else f"{milliseconds:.1f}"


def _similarity(check: Check) -> tuple[str, str, str, str]:
    own = check.comparison
    if own is None:
        return ("reference" if check.outcome == "right" else "", "", "", "")
    names = [name for name in own.differences if name.startswith("likeness.")]
    least = max(
        (own.differences[name] for name in names), key=lambda each: each.worst, default=None
    )
    maps = "" if least is None else f"{1 - least.median:.4f} ({1 - least.worst:.4f})"
    thresholds, masks = (own.differences.get(name) for name in ("threshold", "mask"))
    return (
        f"{own.worst['probabilities']:.1e}",
        maps,
        "" if thresholds is None else f"{1 - thresholds.mean:.0%}",
        "" if masks is None else f"{1 - masks.mean:.3f}",
    )


def _outcome(word: str) -> Cell:
    return colored(word, _COLORS[word]) if word in _COLORS else word
