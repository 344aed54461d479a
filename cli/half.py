"""The verb half."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from ..export.half import HalfPrecision
from .console import print_json, say
from .options import Json, Model
from .progress import progress

if TYPE_CHECKING:
    from ..export import HalfResult


def half(
    model: Model,
    output: Annotated[Path, typer.Option("-o", "--output", help="The ONNX file to write.")],
    precision: Annotated[
        HalfPrecision,
        typer.Option(help="Format: fp16, or bf16 (float32's range, about three digits)."),
    ] = "fp16",
    as_json: Json = False,
) -> None:
    """Convert a file's backbone to half precision, and check it.

    The head stays float32.
    """
    from ..export import to_half

    with progress(f"converting to {precision}", None, as_json):
        result = to_half(model, output, precision)
    if as_json:
        print_json(
            {
                "path": str(result.path),
                "precision": result.manifest.precision,
                "opset": result.manifest.opset,
                "digest": result.manifest.digest,
                "operations": result.operations,
                "bytes": result.size,
                "bytes_before": result.size_before,
                "seconds": result.seconds,
                "check": msgspec.to_builtins(result.check),
            }
        )
        return
    say(half_text(result))
    say(f"next: whycam build {result.path} -o {result.path.with_suffix('.plan')}")


def half_text(result: HalfResult) -> str:
    """Describe the converted file, and how far its outputs are from the float file's."""
    check = result.check.worst
    boxes = f", boxes by {check['boxes']:.1e} of the input" if "boxes" in check else ""
    activations = (
        f", activations {check['activations']:.1e} of their norm" if "activations" in check else ""
    )
    return (
        f"saved as {result.path} ({result.size / 1e6:.1f} MB, before "
        f"{result.size_before / 1e6:.1f}), in {result.seconds:.1f} s\n"
        f"{result.operations} operations of the backbone compute in "
        f"{result.manifest.precision}; head, inputs and outputs are float32\n"
        f"against the float file, on {result.check.inputs} inputs: probabilities differ by "
        f"{check['probabilities']:.1e}{activations}{boxes}, maps by {check['correlation']:.1e} "
        "(1 - correlation)"
    )
