"""The verb calibrate int8."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from ..calibrate.ranges import CALIBRATORS
from ..runtime.engines import registry
from ..runtime.engines.base import EngineSettings
from ..runtime.onnxfile import read_manifest
from . import parse
from .compare import fidelity_lines, fidelity_table
from .console import note, out, print_json, say, say_written
from .options import SLOW_INT8, Data, Json, Model, PaperMethod, RunOptions, complete
from .progress import progress
from .tables import table

if TYPE_CHECKING:
    from ..calibrate.int8 import Int8Result
    from ..runtime.manifest import Manifest


def int8(
    model: Model,
    data: Data,
    run: RunOptions,
    output: Annotated[Path, typer.Option("-o", "--output", help="The INT8 file to write.")],
    calibrator: Annotated[
        str,
        typer.Option(
            help="minmax, percentile, entropy, or auto: the one whose maps agree best with float.",
            autocompletion=complete(["auto", *CALIBRATORS]),
        ),
    ] = "auto",
    percentile: Annotated[
        float | None,
        typer.Option(help="Of an activation's magnitudes [default: the better of 99.99, 99.9]."),
    ] = None,
    weight_bits: Annotated[
        int | None,
        typer.Option(
            help="8, or 7 for processors without VNNI, whose sums overflow with 8 [default: 8, or "
            "7 if 8 bits miss the floor on this machine]."
        ),
    ] = None,
    images: Annotated[int, typer.Option(help="Images to take ranges from, at most.")] = 128,
    held_out: Annotated[
        int, typer.Option(help="Other images, to prove the file on, at most.")
    ] = 200,
    floor: Annotated[
        str,
        typer.Option(
            help="Least agreement with the float file: top1 (share of images with the same class), "
            "pearson (median correlation of each method's maps). Layers are left in float until it "
            "holds."
        ),
    ] = "pearson=0.95,top1=0.95",
    method: PaperMethod = None,
    report: Annotated[Path | None, typer.Option(help="Folder for int8.json and int8.csv.")] = None,
    as_json: Json = False,
) -> None:
    """Quantise a file to INT8, and prove that it still explains.

    Labels and maps are compared on images held out.
    """
    import msgspec

    from ..calibrate.dataset import open_dataset
    from ..calibrate.int8 import calibrate_int8
    from ..calibrate.int8_report import write_int8_report
    from ..calibrate.int8_settings import Settings

    settings = Settings(
        calibrator=calibrator,
        percentile=percentile,
        weight_bits=weight_bits,
        images=images,
        held_out=held_out,
        floor=parse.assignments("--floor", floor),
        methods=parse.methods(method),
        engine=run.engine,
        threads=run.threads,
        gpu=run.gpu,
    )
    dataset = open_dataset(data)
    quantised = msgspec.structs.replace(read_manifest(model), precision="int8")
    if registry.is_slower_in_int8(quantised, _engine_for(quantised, run)):
        note(
            f"note: {SLOW_INT8}: the result will be slower on this machine; with OpenVINO it would "
            'be faster (pip install "whycam[openvino]")'
        )
    with progress("reading the graph", None, as_json) as advance:
        result = calibrate_int8(model, dataset, output, settings, advance, advance.total, note)
    written = [] if report is None else write_int8_report(result, report)
    if as_json:
        document = msgspec.to_builtins(result)
        print_json({**document, "written": [str(path) for path in written]})
        return
    say("candidates, on the images that ranges were taken from:")
    out.print(trials_table(result))
    say("proof, on images held out:")
    out.print(fidelity_table(result.proof))
    say(fidelity_lines(result.proof))
    say(int8_lines(result))
    if report is not None:
        say_written(report, written)
    say(f"next: whycam explain {output} IMAGE -o maps")


def _engine_for(manifest: Manifest, run: RunOptions) -> str:
    """Name the engine that a file will run in."""
    if run.engine != "auto":
        return run.engine
    settings = EngineSettings(threads=run.threads, gpu=run.gpu)
    return next((each.name for each in registry.usable(manifest, settings)), "")


def trials_table(result: Int8Result) -> Table:
    """Lay out the candidates and their agreement on the calibration images."""
    methods = list(result.tried[0].pearson)
    columns = [f"{method}: correlation" for method in methods]
    chosen = (result.recipe, len(result.floating))
    return table(
        ["calibrator", "float layers", "same class", *columns],
        [
            [
                str(trial.recipe),
                str(trial.floating),
                f"{trial.top1:.3f}",
                *(f"{trial.pearson[method]:.4f}" for method in methods),
            ]
            for trial in result.tried
        ],
        numbers=columns,
        bold=[
            number
            for number, trial in enumerate(result.tried)
            if (trial.recipe, trial.floating) == chosen
        ],
    )


def int8_lines(result: Int8Result) -> str:
    """Describe the INT8 file: its size, its speed, and the layers left in float."""
    kept = len(result.floating)
    speed = result.milliseconds_before / result.milliseconds_after
    lines = [
        f"saved as {result.file} ({result.bytes_after / 1e6:.1f} MB, before "
        f"{result.bytes_before / 1e6:.1f}): {result.layers - kept} of {result.layers} layers in "
        f"INT8, ranges from {result.calibrated_on} images by {result.recipe}",
        f"one explanation: {result.milliseconds_after:.2f} ms, float "
        f"{result.milliseconds_before:.2f} ms (x{speed:.2f}), {result.proof.other}",
    ]
    if result.weight_bits == 7:
        lines.append(
            "weights have 7 bits, so that sums overflow on no processor; for processors with VNNI "
            "and for GPUs use --weight-bits 8"
        )
    else:
        lines.append(
            "weights have 8 bits, with which sums overflow on processors without VNNI: whycam "
            "refuses the file there; for those use --weight-bits 7"
        )
    if result.milliseconds_all_int8 is not None:
        cost = result.milliseconds_after / result.milliseconds_all_int8
        lines.append(
            f"{kept} layers in float cost x{cost:.2f} of the time with all in INT8 "
            f"({result.milliseconds_all_int8:.2f} ms):"
        )
        lines += [
            f"  {layer.name} ({layer.kind}), gain {layer.gain:.4f}" for layer in result.floating
        ]
    return "\n".join(lines)
