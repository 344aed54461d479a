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
        typer.Option(help="bf16 has the range of float32 with three digits."),
    ] = "fp16",
    as_json: Json = False,
) -> None:
    """Convert a file's backbone to half precision, and prove it; what follows stays float32."""
    from ..export import to_half

    with progress(f"converting to {precision}", None, as_json):
        made = to_half(model, output, precision)
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
    say(half_text(made))
    say(f"next: whycam build {made.path} -o {made.path.with_suffix('.plan')}")


def half_text(made: HalfResult) -> str:
    """Say what was converted, and how far it is from the float file."""
    check = made.check.worst
    activations = (
        f", activations {check['activations']:.1e} of their norm" if "activations" in check else ""
    )
    return (
        f"saved as {made.path} ({made.size / 1e6:.1f} MB, before "
        f"{made.size_before / 1e6:.1f}), in {made.seconds:.1f} s\n"
        f"{made.operations} operations of the backbone compute in {made.manifest.precision}; what "
        "comes after it, inputs and outputs are float32\n"
        f"against the float file, every result rounded, {made.check.inputs} inputs: probabilities "
        f"differ by {check['probabilities']:.1e}{activations}, maps by {check['correlation']:.1e} "
        "(1 - correlation)"
    )
