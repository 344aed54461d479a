"""The verb calibrate compare."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from ..runtime.errors import RequestError
from . import parse
from .console import out, print_json, say, say_written, unreadable_lines
from .options import (
    Data,
    Json,
    Model,
    PaperMethod,
    PromptedEngineOptions,
    ReadingOptions,
    ReportFolder,
)
from .progress import progress
from .tables import table

if TYPE_CHECKING:
    from ..calibrate.fidelity import Fidelity


def compare(
    reference: Annotated[Path, typer.Argument(help="A file made by whycam export, run in fp32.")],
    model: Model,
    data: Data,
    engine: PromptedEngineOptions,
    reading: ReadingOptions,
    output: ReportFolder = None,
    images: Annotated[int, typer.Option(help="Images to compare on, at most.")] = 200,
    method: PaperMethod = None,
    tft: Annotated[
        bool,
        typer.Option(
            "--tft/--no-tft", help="Compare thresholds too; maps alone are ten times faster."
        ),
    ] = True,
    as_json: Json = False,
) -> None:
    """Check what survives another precision, file or engine.

    Compares labels, maps and thresholds.
    """
    import msgspec

    from ..calibrate.dataset import open_dataset, shuffle_samples
    from ..calibrate.fidelity import compare as run_comparison
    from ..calibrate.int8_report import write_fidelity_report
    from ..runtime.load import load

    if images < 1:
        raise RequestError(f"--images must be 1 or more, not {images}")
    methods = parse.methods(method)
    first = load(reference, threads=engine.threads, prompts=engine.prompts)
    second = engine.load(model, check=False)  # differences are measured below, not refused
    samples = shuffle_samples(open_dataset(data).samples)[:images]
    with progress("comparing", len(samples), as_json) as advance:
        advance("comparing", 0)
        fidelity = run_comparison(
            first,
            second,
            samples,
            methods,
            reading.reading(first.manifest.tft) if tft else None,
            advance,
        )
    written = [] if output is None else write_fidelity_report(fidelity, output)
    if as_json:
        document = msgspec.to_builtins(fidelity)
        print_json({**document, "written": [str(path) for path in written]})
        return
    out.print(fidelity_table(fidelity))
    say(fidelity_lines(fidelity))
    if output is not None:
        say_written(output, written)


def fidelity_table(fidelity: Fidelity) -> Table:
    """Lay out how well maps agree, a line for each method."""
    swept = ["same tau*", "average increase", "average drop"] if fidelity.mask is not None else []
    rows = []
    for method, maps in fidelity.maps.items():
        cells = [
            method,
            f"{maps.pearson:.4f}",
            f"{maps.pearson_low:.4f}",
            f"{maps.iou:.3f}",
            f"{maps.iou_low:.3f}",
        ]
        if swept:
            cells += [
                f"{maps.same_threshold:.3f}",
                f"{maps.increase_before:.3f} -> {maps.increase_after:.3f}",
                f"{maps.drop_before:.4f} -> {maps.drop_after:.4f}",
            ]
        rows.append(cells)
    return table(["method", "correlation", "5 %", "IoU of top 20 %", "5 %", *swept], rows)


def fidelity_lines(fidelity: Fidelity) -> str:
    """Describe what was compared, and the agreement of classes and probabilities."""
    lines = [
        f"{fidelity.other} against {fidelity.reference}",
        f"{fidelity.images} images: same class on {fidelity.top1:.1%}, its probability off by "
        f"{fidelity.probability:.4f} on average",
        "correlation and IoU: the median, and beside it the 5th percentile",
    ]
    if fidelity.mask is not None:
        lines.append(f"TFT: mask {fidelity.mask}, thresholds by {fidelity.thresholds}")
    return "\n".join([*lines, *unreadable_lines(fidelity.unreadable)])
