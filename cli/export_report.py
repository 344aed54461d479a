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
    """List the layers a model can be explained at, with an arrow at the default one."""
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


def export_document(result: ExportResult) -> dict[str, Any]:
    """Return the result of an export, ready for JSON."""
    return {
        "path": str(result.path),
        "bytes": result.size,
        "seconds": round(result.seconds, 2),
        "notes": result.notes,
        "against": result.verification.reference,
        "errors": result.verification.worst,
        "nodes": result.nodes,
        "rules": result.rules,
        "manifest": json.loads(result.manifest.to_json()),
    }


def export_text(result: ExportResult) -> Text:
    """Describe the exported file and how far its outputs are from the network's."""
    manifest = result.manifest
    shape = " x ".join(map(str, manifest.activations))
    lines = [
        f" {result.path} ({result.size / 1e6:.1f} MB, {result.seconds:.0f} s)",
        f"target layer   {manifest.target_layer} ({shape})",
        *([f"chosen as      {why}"] if (why := manifest.target_layer_reason) else []),
        f"input          {input_line(manifest)}",
        f"outputs        {outputs_line(manifest)}",
        f"methods        {', '.join(manifest.methods)}",
        f"preprocessing  {preprocess_line(manifest)}",
        f"task           {manifest.task}",
        f"added          {result.nodes} nodes; gradient through "
        f"{', '.join(result.rules) or 'nothing'}",
        f"against {result.verification.reference}: {', '.join(_errors(result.verification))}",
    ]
    text = Text.assemble(("saved", "green"), "\n".join(lines))
    for note in result.notes:
        text.append_text(Text.assemble("\n", ("note:", "yellow"), f" {note}"))
    return text


_ERRORS = {
    "own_outputs": "own outputs {}",
    "fusing": "(ONNX Runtime's fusing alone changes the original's by {})",
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
