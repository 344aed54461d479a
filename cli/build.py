"""The verb build."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from ..runtime.engines.plan import Library, Range
from ..runtime.manifest import FilePrecision
from . import parse
from .console import print_json, say
from .options import Json, Model
from .progress import progress

if TYPE_CHECKING:
    from ..export import BuildResult


def build(
    model: Model,
    output: Annotated[Path, typer.Option("-o", "--output", help="The plan to write, FILE.plan.")],
    engine: Annotated[
        Library,
        typer.Option(
            help="tensorrt-rtx: ahead of time, without a GPU, for RTX GPUs. tensorrt: on the GPU "
            "that will run the plan."
        ),
    ] = "tensorrt-rtx",
    compute: Annotated[
        str | None,
        typer.Option(
            help="For tensorrt-rtx: compute capabilities, as 75,86,89,120 [default: 86,89,120]."
        ),
    ] = None,
    precision: Annotated[
        FilePrecision | None,
        typer.Option(
            help="What a float file is converted to first; INT8 files are made by whycam calibrate "
            "int8 [default: the file's]."
        ),
    ] = None,
    batch: Annotated[
        str | None,
        typer.Option(
            metavar="MIN:OPT:MAX",
            help="Images at once; MAX alone means 1:1:MAX [default: 1:1:16, or 1:1:4 for graphs "
            "that sweep thresholds themselves].",
        ),
    ] = None,
    classes_per_image: Annotated[
        str | None,
        typer.Option(
            metavar="MIN:OPT:MAX",
            help="Classes explained for each image; MAX alone means 1:1:MAX [default: 1:1:5, or 1 "
            "for graphs that sweep thresholds themselves].",
        ),
    ] = None,
    source_size: Annotated[
        str | None,
        typer.Option(
            metavar="MIN:OPT:MAX",
            help="Size of the images as they come, for graphs that take any: HxW, or three of them "
            "[default: the graph's own range, or 32x32:480x640:1088x1920].",
        ),
    ] = None,
    prompts: Annotated[
        str | None,
        typer.Option(
            metavar="MIN:OPT:MAX",
            help="Classes to choose among, for files that take class embeddings; MAX alone means "
            "1:1:MAX [default: 1:8:256].",
        ),
    ] = None,
    workspace: Annotated[
        int | None,
        typer.Option(help="Scratch memory that kernels may use, in MB [default: all there is]."),
    ] = None,
    timing_cache: Annotated[
        Path | None,
        typer.Option(
            help="For tensorrt: file of kernel timings, for a faster next build; made if absent."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Build a TensorRT plan.

    A sidecar file beside it holds the manifest.
    """
    from ..export import to_plan

    with progress("reading the graph", None, as_json) as advance:
        result = to_plan(
            model,
            output,
            library=engine,
            compute=None if compute is None else parse.capabilities(compute),
            precision=precision,
            batch=None if batch is None else parse.span("--batch", batch),
            classes=None
            if classes_per_image is None
            else parse.span("--classes-per-image", classes_per_image),
            source_size=None if source_size is None else parse.areas("--source-size", source_size),
            prompts=None if prompts is None else parse.span("--prompts", prompts),
            workspace=workspace,
            timing_cache=timing_cache,
            tick=advance,
            total=advance.total,
        )
    if as_json:
        plan = msgspec.to_builtins(result.plan)
        del plan["manifest"]  # labels and all: that is in the sidecar
        print_json(
            {
                "path": str(result.path),
                "sidecar": str(result.sidecar),
                "bytes": result.size,
                "seconds": result.seconds,
                "converted": result.converted,
                "rewritten": result.rewritten,
                **plan,
                "precision": result.plan.manifest.precision,
            }
        )
        return
    say(build_text(result))
    say(f"next: whycam explain {result.path} IMAGE -o maps")


def build_text(result: BuildResult) -> str:
    """Describe the plan: for which GPUs and sizes it was built."""
    plan = result.plan
    place = "" if plan.gpu is None else f" ({plan.gpu})"
    notes = []
    if result.converted:
        notes.append(f"converted to {plan.manifest.precision} first, checked against the file")
    if result.rewritten:
        notes.append(
            f"for 7.5 {result.rewritten} matrix products became convolutions or sums, checked "
            "against the file"
        )
    what = "classes" if plan.manifest.detector is None else "detections"
    sides = [f"batch {_range(plan.batch)}", f"{what} {_range(plan.classes)}"]
    if plan.height is not None and plan.width is not None:
        sides += [f"height {_range(plan.height)}", f"width {_range(plan.width)}"]
    if plan.prompts is not None:
        sides.append(f"prompts {_range(plan.prompts)}")
    return "\n".join(
        [
            f"saved as {result.path} ({result.size / 1e6:.1f} MB), with {result.sidecar}, in "
            f"{result.seconds:.1f} s",
            f"built by {plan.library} {plan.library_version} in {plan.manifest.precision} for "
            f"compute capability {', '.join(plan.compute)}{place}",
            ", ".join(sides),
            *notes,
            f"checked: {len(plan.inputs)} inputs and {len(plan.outputs)} outputs, as in the "
            "manifest",
        ]
    )


def _range(sides: Range) -> str:
    if sides.least == sides.most:
        return str(sides.most)
    return f"{sides.least} to {sides.most} (fastest at {sides.best})"
