"""The verb calibrate int8."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from ..calibrate.ranges import CALIBRATORS
from . import parse
from .calibrate_compare import fidelity_lines, fidelity_table
from .console import note, out, print_json, say, say_written
from .options import Data, Json, Model, PaperMethod, RunOptions, complete
from .progress import progress
from .tables import table

if TYPE_CHECKING:
    from ..calibrate.int8 import Int8


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
            "7 where 8 miss the floor here]."
        ),
    ] = None,
    images: Annotated[int, typer.Option(help="Images to take ranges from, at most.")] = 128,
    held_out: Annotated[int, typer.Option(help="Others, to prove it on, at most.")] = 200,
    floor: Annotated[
        str,
        typer.Option(
            help="Agreement with the float file that must hold: top1 (share with the same class), "
            "pearson (median correlation of every method's maps). Layers are left in float "
            "until it does."
        ),
    ] = "pearson=0.95,top1=0.95",
    method: PaperMethod = None,
    report: Annotated[Path | None, typer.Option(help="Folder for int8.json and int8.csv.")] = None,
    as_json: Json = False,
) -> None:
    """Quantise a file to INT8 and prove, on images held out, that labels and maps survive."""
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
    with progress("reading the graph", None, as_json) as advance:
        made = calibrate_int8(model, dataset, output, settings, advance, advance.total, note)
    written = [] if report is None else write_int8_report(made, report)
    if as_json:
        document = msgspec.to_builtins(made)
        print_json({**document, "written": [str(path) for path in written]})
        return
    say("on the images that ranges were taken from:")
    out.print(trials_table(made))
    say("proof, on images held out:")
    out.print(fidelity_table(made.proof))
    say(fidelity_lines(made.proof))
    say(int8_lines(made))
    if report is not None:
        say_written(report, written)
    say(f"next: whycam explain {output} IMAGE -o maps")


def trials_table(int8: Int8) -> Table:
    """Lay out what was tried, on the images that ranges were taken from."""
    methods = list(int8.tried[0].pearson)
    columns = [f"{method}: correlation" for method in methods]
    chosen = (int8.recipe, len(int8.floating))
    return table(
        ["calibrator", "float layers", "same class", *columns],
        [
            [
                str(trial.recipe),
                str(trial.floating),
                f"{trial.top1:.3f}",
                *(f"{trial.pearson[method]:.4f}" for method in methods),
            ]
            for trial in int8.tried
        ],
        numbers=columns,
        bold=[
            number
            for number, trial in enumerate(int8.tried)
            if (trial.recipe, trial.floating) == chosen
        ],
    )


def int8_lines(found: Int8) -> str:
    """Say what was made, what it costs and saves."""
    kept = len(found.floating)
    speed = found.milliseconds_before / found.milliseconds_after
    lines = [
        f"{found.file}: {found.bytes_after / 1e6:.1f} MB (float {found.bytes_before / 1e6:.1f}), "
        f"{found.layers - kept} of {found.layers} layers in INT8, ranges by {found.recipe} of "
        f"{found.calibrated_on} images",
        f"one explanation: {found.milliseconds_after:.2f} ms, float "
        f"{found.milliseconds_before:.2f} ms (x{speed:.2f}), {found.proof.other}",
    ]
    if found.weight_bits == 7:
        lines.append(
            "weights have 7 bits, which every processor adds without overflow; those with VNNI, "
            "and GPUs, can have 8: --weight-bits 8"
        )
    else:
        lines.append(
            "weights have 8 bits: processors without VNNI add these with overflow, and whycam "
            "refuses the file there; for them: --weight-bits 7"
        )
    if found.milliseconds_all_int8 is not None:
        cost = found.milliseconds_after / found.milliseconds_all_int8
        lines.append(
            f"{kept} layers in float cost x{cost:.2f} of the time with all in INT8 "
            f"({found.milliseconds_all_int8:.2f} ms):"
        )
        lines += [f"  {each.name} ({each.kind}), gain {each.gain:.4f}" for each in found.floating]
    return "\n".join(lines)
