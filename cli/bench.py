"""The verb bench."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..runtime.bench.bench import BASELINES
from ..runtime.onnxfile import read_manifest
from ..runtime.request import check_classifier
from . import parse
from .console import print_json, say, say_all, say_written
from .options import ENGINES, Json, Method, complete
from .progress import progress

if TYPE_CHECKING:
    from ..runtime.bench.bench import BaselineRuns
    from ..runtime.bench.plan import Configuration
    from ..runtime.sweep import Floats


def bench(
    models: Annotated[
        list[Path], typer.Argument(metavar="MODEL...", help="Files made by whycam export.")
    ],
    engine: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,...",
            help=f"Of: {', '.join(ENGINES)} [default: those installed].",
            autocompletion=complete(ENGINES),
        ),
    ] = None,
    precision: Annotated[
        str, typer.Option(help="Of: fp32, bf16.", autocompletion=complete(["fp32", "bf16"]))
    ] = "fp32",
    method: Method = None,
    tft: Annotated[
        str,
        typer.Option(
            "--tft",
            help="Without TFT (off), with it (on), or both.",
            autocompletion=complete(["off", "on"]),
        ),
    ] = "off,on",
    detections: Annotated[
        str | None,
        typer.Option(help="Of detectors: how many are explained, as 1,10 [default: 1,10]."),
    ] = None,
    batch: Annotated[str, typer.Option(help="Images explained at once, as 1,8.")] = "1",
    threads: Annotated[
        str | None, typer.Option(help="Threads for one run, as 1,2 [default: every core].")
    ] = None,
    rounds: Annotated[int, typer.Option(help="How often each combination is timed, in turn.")] = 20,
    against: Annotated[
        str | None,
        typer.Option(
            help=f"Other tools to run on the same PyTorch network: {', '.join(BASELINES)}.",
            autocompletion=complete(list(BASELINES)),
        ),
    ] = None,
    torch_model: Annotated[
        str | None,
        typer.Option(
            help="With --against: that network, as for whycam export [default: as in the file]."
        ),
    ] = None,
    image: Annotated[
        Path | None, typer.Option(help="The image [default: one that is generated].")
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(
            help="Classes of files exported with --classes input [default: five example classes]."
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Folder for bench.json and bench.png.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure how long explanations take here.

    Plain classification, or detection, and other tools are timed beside them.
    Several values are separated by commas. Every combination is timed once in each round.
    """
    from ..runtime.bench.bench import count_steps, measure
    from ..runtime.bench.plan import plan
    from ..runtime.bench.report import document
    from ..runtime.bench.save import write_bench
    from ..runtime.files import writable_folder
    from ..runtime.machine import describe_machine
    from .bench_tables import report

    planned = plan(
        [str(model) for model in models],
        None if engine is None else parse.names(engine),
        parse.names(precision),
        parse.methods(method),
        [choice == "on" for choice in parse.choices("--tft", tft, ("off", "on"))],
        parse.counts("--batch", batch),
        None if threads is None else parse.counts("--threads", threads),
        None if detections is None else parse.counts("--detections", detections),
    )
    baselines, about = None, describe_machine()
    if against is not None:
        for model in models:
            check_classifier(read_manifest(model))
        chosen = parse.choices("--against", against, list(BASELINES))
        engines = {each.engine for each in planned.configurations}
        baselines, about["other_tools_on"] = _prepare_baselines(
            chosen, models, torch_model, engines
        )
    if output is not None:
        writable_folder(output)  # before the hours it may take
    with progress("benchmarking", None, as_json) as advance:
        advance.total(count_steps(planned, rounds))
        benchmark = measure(
            planned,
            None if image is None else str(image),
            rounds,
            baselines,
            advance,
            None if prompts is None else str(prompts),
        )
    written = [] if output is None else write_bench(benchmark, about, output)
    if as_json:
        print_json({**document(benchmark, about), "written": [str(path) for path in written]})
        return
    say_all(report(benchmark, about))
    if against is not None:
        say(f"other tools ran on: {about['other_tools_on']}")
    if output is not None:
        say_written(output, written)


def _prepare_baselines(
    names: list[str], models: Sequence[Path], torch_model: str | None, engines: Collection[str]
) -> tuple[BaselineRuns, str]:
    """Prepare other tools on the networks of files, and say on which device they will run."""
    from ..export.requirements import require_torch

    require_torch("comparing with other tools")
    from ..export.baselines import (
        check_installed,
        choose_device,
        load_network,
        prepare_baselines,
    )

    check_installed(names)
    device = choose_device(engines)
    manifests = {str(model): read_manifest(model) for model in models}
    networks = {model: load_network(manifest, torch_model) for model, manifest in manifests.items()}

    def runs_for(what: Configuration, image: Floats) -> dict[str, Callable[[], Any]]:
        layer = manifests[what.model].target_layer
        return prepare_baselines(networks[what.model], layer, image, names, what.threads, device)

    return runs_for, device
