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
from .options import ENGINES, Cache, Gpu, Json, Threads, complete, require
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
            help="A model file to check in every engine that is ready; repeat for more files.",
        ),
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option(
            help="Folder of images to check with besides the test patterns; 16 are taken."
        ),
    ] = None,
    engine: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,...",
            help=f"Engines to check in, which must be ready, of: {', '.join(ENGINES)} "
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
    prompts: Annotated[
        Path | None,
        typer.Option(
            help="Classes of files exported with --classes input [default: five example classes]."
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Write the whole report as JSON.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Check which engines run here, and what the others lack.

    With --check, also whether their answers are right.
    Each engine is tried in a process of its own, so that a crashing driver is a line in the report.
    The report names no folder, user or image.
    """
    import msgspec

    from ..runtime.doctor.check import Settings
    from ..runtime.doctor.doctor import count_steps, examine
    from ..runtime.errors import OutputError
    from ..runtime.files import writable_folder, write_json

    models = check or []
    if images is not None and not models:
        raise RequestError("--images needs a model to check: add --check MODEL")
    settings = Settings(
        engines=None if engine is None else tuple(parse.names(engine)),
        gpu=gpu,
        threads=threads,
        cache=None if cache is None else str(cache),
        prompts=None if prompts is None else str(prompts),
        rounds=rounds,
        limit_s=limit,
    )
    require("--prompts", prompts is not None, "--check MODEL", bool(models))
    image_files = [] if images is None else [path for path, _ in parse.images([images])]
    if output is not None:
        writable_folder(output.parent)  # known before the minutes it takes
        if os.path.isdir(output):
            raise OutputError(f"cannot write {output}: it is a folder")
    with progress("inspecting the machine", count_steps(models), as_json) as advance:
        report = examine(models, image_files, settings, advance)
    if output is not None:
        write_json(output, report)
    if as_json:
        print_json(msgspec.to_builtins(report))
    else:
        say_all(report_parts(report))
        if output is not None:
            say(f"written to {output}")
    for problem in report.problems:
        print_error(problem)
    if report.problems:
        raise typer.Exit(2)
    if not as_json:
        checked = ", and every answer checked is right" if models else ""
        print_ok(f"an engine is ready{checked}")


def report_parts(report: Report) -> Iterator[Table | str]:
    """Describe the machine, its engines and the checks, as lines and tables in order."""
    machine = report.machine
    memory = f", {machine['memory_mb'] / 1024:.1f} GiB" if machine["memory_mb"] else ""
    board = f"{machine['board']}, " if machine["board"] else ""
    yield f"{board}{machine['processor']}, {machine['cores']} cores{memory}"
    yield f"{machine['system']}, Python {machine['python']}, whycam {machine['whycam']}"
    yield _driver_line(report.driver)
    yield _engines(report.engines)
    for engine in report.engines:
        if engine.problem is not None:
            yield f"{engine.name}: {engine.problem}"
    for model in dict.fromkeys(check.model for check in report.checks):
        of_model = [check for check in report.checks if check.model == model]
        kind = of_model[0].file_precision
        yield f"{model} ({kind}), {report.images} images"
        yield from _checks(of_model)
    if report.checks:
        yield (
            "every engine against ONNX Runtime on the CPU in fp32: largest difference of a "
            "probability; median (lowest) correlation of maps; share of images with the same "
            "tau*; mean overlap of masks. Times: median, one image"
        )


def _driver_line(driver: Driver) -> str:
    if driver.problem is not None and not driver.gpus:
        return f"no NVIDIA GPU can be used: {driver.problem}"
    version = f"NVIDIA driver {driver.version or ''}".strip()
    listed = "; ".join(
        f"GPU {gpu.index}: {gpu.name}, compute capability {gpu.capability}, "
        f"{gpu.memory_bytes / 2**30:.1f} GiB"
        for gpu in driver.gpus
    )
    return f"{version}, CUDA up to {driver.cuda}; {listed}"


def _engines(states: Sequence[EngineState]) -> Table:
    return table(
        ["engine", "state", "version", "devices", "precisions"],
        [
            (
                state.name,
                _outcome(state.state),
                state.version or "",
                ", ".join(state.devices),
                ", ".join(state.precisions),
            )
            for state in states
        ],
    )


def _checks(checks: Sequence[Check]) -> Iterator[Table | str]:
    yield table(
        ["engine", "answers", "p differs by", "map correlation", "same tau*", "mask overlap"],
        [(_name(check), _outcome(check.outcome), *_similarity(check)) for check in checks],
    )
    for check in checks:
        if check.outcome == "not possible":
            yield f"{_name(check)}: {check.why}"
    timed = [(_name(check), *_times(check)) for check in checks if check.median_ms]
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
    comparison = check.comparison
    if comparison is None:
        return ("reference" if check.outcome == "right" else "", "", "", "")
    names = [name for name in comparison.differences if name.startswith("similarity.")]
    worst_map = max(
        (comparison.differences[name] for name in names), key=lambda one: one.worst, default=None
    )
    maps = "" if worst_map is None else f"{1 - worst_map.median:.4f} ({1 - worst_map.worst:.4f})"
    thresholds, masks = (comparison.differences.get(name) for name in ("threshold", "mask"))
    return (
        f"{comparison.worst['probabilities']:.1e}",
        maps,
        "" if thresholds is None else f"{1 - thresholds.mean:.0%}",
        "" if masks is None else f"{1 - masks.mean:.3f}",
    )


def _outcome(word: str) -> Cell:
    return colored(word, _COLORS[word]) if word in _COLORS else word
