"""Report an export, and the layers at which a model can be cut, as text and tables."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from .manifest_text import input_line, outputs_line, preprocess_line
from .tables import colored, table

if TYPE_CHECKING:
    from ..export import Comparison, ExportResult, Layer


def layers_table(marked: Sequence[tuple[bool, Layer]]) -> Table:
    """List where a model can be cut, with an arrow at the layer that export would choose."""
    return table(
        ["", "layer", "operation", "channels x height x width"],
        [
            (
                colored("->", "green") if is_chosen else "",
                layer.name,
                layer.op,
                " x ".join(map(str, layer.shape)),
            )
            for is_chosen, layer in marked
        ],
    )


def export_document(made: ExportResult) -> dict[str, Any]:
    """Return what an export made, as JSON has it."""
    return {
        "path": str(made.path),
        "bytes": made.size,
        "seconds": round(made.seconds, 2),
        "notes": made.notes,
        "against": made.verification.reference,
        "errors": made.verification.worst,
        "nodes": made.nodes,
        "rules": made.rules,
        "manifest": json.loads(made.manifest.to_json()),
    }


def export_text(made: ExportResult) -> Text:
    """Say what an export made and how far it is from the network itself."""
    manifest = made.manifest
    shape = " x ".join(map(str, manifest.activations))
    lines = [
        f" {made.path} ({made.size / 1e6:.1f} MB, {made.seconds:.0f} s)",
        f"target layer   {manifest.target_layer} ({shape})",
        f"input          {input_line(manifest)}",
        f"outputs        {outputs_line(manifest)}",
        f"methods        {', '.join(manifest.methods)}",
        f"preprocessing  {preprocess_line(manifest)}",
        f"task           {manifest.task}",
        f"added          {made.nodes} nodes; gradient through {', '.join(made.rules) or 'nothing'}",
        f"against {made.verification.reference}: {', '.join(_errors(made.verification))}",
    ]
    text = Text.assemble(("saved", "green"), "\n".join(lines))
    for note in made.notes:
        text.append_text(Text.assemble("\n", ("note:", "yellow"), f" {note}"))
    return text


_ERRORS = {
    "own_outputs": "own outputs {}",
    "fusing": "which in the original ONNX Runtime's fusing changes by {}",
    "probabilities": "probabilities {}",
    "activations": "activations {}",
    "gradients": "gradients {} relative",
    "differences": "gradients {} of central differences",
    "ablation": "ablation {} relative",
    "earlier": "gradients at fused layers {} relative",
    "maps": "finished maps {}",
    "tft": "masked probabilities {}",
}


def _errors(verification: Comparison) -> Iterator[str]:
    errors = verification.worst
    for name, text in _ERRORS.items():
        if name in errors:
            exact = name == "own_outputs" and errors[name] == 0
            yield text.format("bit for bit" if exact else f"{errors[name]:.1e}")
    if "pixels" in errors:
        yield f"preprocessing {errors['pixels']:.1f} of 255 (Pillow)"
