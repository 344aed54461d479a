"""The verbs after export that need no torch: build, half. What they need is imported when run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from ..runtime import options
from ..runtime.console import escape, out, print_json, progress
from ..runtime.engines.plan import Range
from ..runtime.errors import RequestError
from ..runtime.options import Json

if TYPE_CHECKING:
    from .build import Built
    from .half import Half

_MEGABYTE = 1e6


def build(
    model: Annotated[
        Path, typer.Argument(help="A file made by whycam export, half or calibrate int8.")
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="The plan to write, FILE.plan.")],
    engine: Annotated[
        str,
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
        str | None,
        typer.Option(
            help="fp32, fp16, bf16 or int8: the file's, or what a float file is converted to "
            "first; INT8 files are made by whycam calibrate int8 [default: the file's]."
        ),
    ] = None,
    batch: Annotated[
        str | None,
        typer.Option(
            metavar="MIN:OPT:MAX",
            help="Pictures at once; MAX alone means 1:1:MAX [default: 1:1:16, or 1:1:4 for graphs "
            "that sweep thresholds themselves].",
        ),
    ] = None,
    targets: Annotated[
        str | None,
        typer.Option(
            metavar="MIN:OPT:MAX",
            help="Classes explained at once; MAX alone means 1:1:MAX [default: 1:1:5, or 1 for "
            "graphs that sweep thresholds themselves].",
        ),
    ] = None,
    picture_size: Annotated[
        str | None,
        typer.Option(
            metavar="MIN:OPT:MAX",
            help="For graphs that take pictures of any size: three times HxW "
            "[default: 32x32:480x640:1088x1920].",
        ),
    ] = None,
    workspace: Annotated[
        int | None,
        typer.Option(help="Memory that kernels may use besides, in MB [default: all there is]."),
    ] = None,
    timing_cache: Annotated[
        Path | None,
        typer.Option(help="For tensorrt: a file that makes the next build faster; made if absent."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Build a TensorRT plan, and the sidecar that says what it is."""
    from .build import to_plan
    from .build_request import LIBRARIES, PRECISIONS

    with progress("reading the graph", None, as_json) as advance:
        made = to_plan(
            model,
            output,
            library=options.one_of("--engine", engine, LIBRARIES),  # type: ignore[arg-type]
            compute=None if compute is None else capabilities(compute),
            precision=options.one_of("--precision", precision, PRECISIONS),  # type: ignore[arg-type]
            batch=None if batch is None else span("--batch", batch),
            classes=None if targets is None else span("--targets", targets),
            pictures=None if picture_size is None else areas("--picture-size", picture_size),
            workspace=workspace,
            timing_cache=timing_cache,
            tick=advance,
            total=advance.total,
        )
    if as_json:
        print_json(
            {
                "path": str(made.path),
                "sidecar": str(made.sidecar),
                "bytes": made.size,
                "seconds": made.seconds,
                "converted": made.converted,
                "rewritten": made.rewritten,
                **{
                    name: msgspec.to_builtins(value)
                    for name, value in msgspec.structs.asdict(made.plan).items()
                    if name != "manifest"  # labels and all: that is in the sidecar
                },
                "precision": made.plan.manifest.precision,
            }
        )
        return
    out.print(escape(build_lines(made)), soft_wrap=True)
    out.print(f"next: whycam explain {made.path} PICTURE -o maps", soft_wrap=True)


def half(
    model: Annotated[Path, typer.Argument(help="A float file made by whycam export.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The ONNX file to write.")],
    precision: Annotated[
        str, typer.Option(help="fp16, or bf16: the range of float32 with three digits.")
    ] = "fp16",
    as_json: Json = False,
) -> None:
    """Convert a file's trunk to half precision, and prove it; everything after it stays float32."""
    from .half import to_half

    with progress(f"converting to {precision}", None, as_json):
        made = to_half(
            model,
            output,
            options.one_of("--precision", precision, ("fp16", "bf16")),  # type: ignore[arg-type]
        )
    if as_json:
        print_json(
            {
                "path": str(made.path),
                "precision": made.manifest.precision,
                "opset": made.manifest.opset,
                "digest": made.manifest.digest,
                "operations": made.operations,
                "bytes": made.size,
                "bytes_before": made.size_before,
                "seconds": made.seconds,
                "check": msgspec.to_builtins(made.check),
            }
        )
        return
    out.print(escape(half_lines(made)), soft_wrap=True)
    out.print(f"next: whycam build {made.path} -o {made.path.with_suffix('.plan')}", soft_wrap=True)


def build_lines(made: Built) -> str:
    """What was built, for people."""
    plan = made.plan
    place = "" if plan.gpu is None else f" ({plan.gpu})"
    notes = []
    if made.converted:
        notes.append(f"converted to {plan.manifest.precision} first, checked against the file")
    if made.rewritten:
        notes.append(
            f"for 7.5 {made.rewritten} matrix products became convolutions or sums, checked "
            "against the file"
        )
    sides = [f"batch {_said(plan.batch)}", f"classes {_said(plan.classes)}"]
    if plan.height is not None and plan.width is not None:
        sides += [f"height {_said(plan.height)}", f"width {_said(plan.width)}"]
    return "\n".join(
        [
            f"saved as {made.path} ({made.size / _MEGABYTE:.1f} MB), with {made.sidecar}, in "
            f"{made.seconds:.1f} s",
            f"built by {plan.library} {plan.library_version} in {plan.manifest.precision} for "
            f"compute capability {', '.join(plan.compute)}{place}",
            ", ".join(sides),
            *notes,
            f"read back from the network, as the manifest has them: {len(plan.inputs)} inputs, "
            f"{len(plan.outputs)} outputs",
        ]
    )


def half_lines(made: Half) -> str:
    """What was converted, for people."""
    check = made.check
    activations = (
        "" if check.activations is None else f", activations {check.activations:.1e} of their norm"
    )
    return (
        f"saved as {made.path} ({made.size / _MEGABYTE:.1f} MB, before "
        f"{made.size_before / _MEGABYTE:.1f}), in {made.seconds:.1f} s\n"
        f"{made.operations} operations of the trunk compute in {made.manifest.precision}; what "
        "comes after it, inputs and outputs are float32\n"
        f"against the float file, every result rounded, {check.inputs} inputs: probabilities "
        f"differ by {check.probabilities:.1e}{activations}, maps by {check.maps:.1e} "
        "(1 - correlation)"
    )


def _said(sides: Range) -> str:
    if sides.least == sides.most:
        return str(sides.most)
    return f"{sides.least} to {sides.most} (fastest at {sides.best})"


def span(option: str, text: str) -> Range:
    """``MIN:OPT:MAX``; ``MAX`` alone is 1:1:MAX."""
    parts = text.split(":")
    try:
        numbers = [int(part) for part in (["1", "1", *parts] if len(parts) == 1 else parts)]
        least, best, most = numbers
        return Range(least, best, most)
    except ValueError as error:
        raise RequestError(
            f"{option} must be MAX or MIN:OPT:MAX, whole numbers that do not fall and begin at 1 "
            f"or more, as 1:8:16; not '{text}'"
        ) from error


def areas(option: str, text: str) -> tuple[Range, Range]:
    """``HxW:HxW:HxW``, or one HxW for all three: ranges of height and of width."""
    parts = text.split(":")
    sizes = [options.size(option, part) for part in (parts * 3 if len(parts) == 1 else parts)]
    try:
        least, best, most = (size for size in sizes if size is not None)
        height, width = (Range(*sides) for sides in zip(least, best, most, strict=True))
    except ValueError as error:
        raise RequestError(
            f"{option} must be HxW or three of them that do not fall, as "
            f"32x32:480x640:1088x1920; not '{text}'"
        ) from error
    return height, width


def capabilities(text: str) -> list[str]:
    """``75,8.6,120`` as 7.5, 8.6, 12.0."""
    found = []
    for part in options.names(text):
        digits = part.replace(".", "", 1)
        if not digits.isdecimal() or len(digits) < 2 or ("." in part and part[-2] != "."):
            raise RequestError(
                f"--compute must be compute capabilities with commas, as 75,86,89,120; not '{text}'"
            )
        found.append(f"{digits[:-1]}.{digits[-1]}")
    return found
