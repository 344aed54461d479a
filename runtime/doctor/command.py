"""The verb doctor."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from .. import options
from ..console import out, print_error, print_json, progress
from ..engines.registry import ENGINES
from ..errors import RequestError
from ..options import Cache, Gpu, Json, Threads


def doctor(
    check: Annotated[
        list[Path] | None,
        typer.Option(
            "--check",
            help="A model file to try in every engine that is ready; again for more files.",
        ),
    ] = None,
    pictures: Annotated[
        Path | None,
        typer.Option(help="Folder of photographs to show beside the test patterns: 16 of them."),
    ] = None,
    engines: Annotated[
        str | None,
        typer.Option(
            help=f"Check in these, which must be ready, of: {', '.join(sorted(ENGINES))} "
            "[default: all that are ready]."
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
    report. The report names no folder, user or picture.
    """
    import msgspec

    from ..errors import OutputError
    from ..files import writable, write_whole
    from .check import Settings
    from .doctor import examine, steps
    from .report import report_parts

    models = check or []
    if pictures is not None and not models:
        raise RequestError("--pictures are shown to a model: name it with --check MODEL")
    settings = Settings(
        engines=None if engines is None else tuple(options.names(engines)),
        gpu=gpu,
        threads=threads,
        cache=None if cache is None else str(cache),
        rounds=rounds,
        limit_s=limit,
    )
    shown = [] if pictures is None else [path for path, _ in options.pictures([pictures])]
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
        for part in report_parts(found):
            out.print(part, soft_wrap=isinstance(part, str))
        if output is not None:
            out.print(f"written to {output}", soft_wrap=True)
    for problem in found.problems:
        print_error(problem)
    if found.problems:
        raise typer.Exit(2)
    if not as_json:
        checked = ", and those checked answer rightly" if models else ""
        out.print(f"[green]ok[/green]: an engine is ready{checked}")
