"""Report an export, and the layers at which a model can be cut, as text and tables."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from .console import out, say
from .manifest_text import input_line, outputs_line, preprocess_line
from .tables import colored, facts, table

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


def print_export(result: ExportResult) -> None:
    """Describe the exported file and how far its outputs are from the network's."""
    manifest = result.manifest
    shape = " x ".join(map(str, manifest.activations))
    size = f" {result.path} ({result.size / 1e6:.1f} MB, {result.seconds:.0f} s)"
    say(Text.assemble(("saved", "green"), size))
    reason = manifest.target_layer_reason
    explained = [(f"{manifest.target_layer} ({shape})")]
    if manifest.detector is not None:
        explained = [
            f"{level.name} ({' x '.join(map(str, level.activations))})"
            for level in manifest.detector.levels
        ]
    plural = "s" if len(explained) > 1 else ""
    rows = [
        (f"target layer{plural}", ", ".join(explained) + (f": {reason}" if reason else "")),
        ("input", input_line(manifest)),
        ("outputs", outputs_line(manifest)),
        ("methods", ", ".join(manifest.methods)),
        ("preprocessing", preprocess_line(manifest)),
        ("task", manifest.task),
        ("added", f"{result.nodes} nodes; gradient through {', '.join(result.rules) or 'nothing'}"),
    ]
    out.print(facts(rows))
    say(f"against {result.verification.reference}: {', '.join(_errors(result.verification))}")
    for note in result.notes:
        say(Text.assemble(("note:", "yellow"), f" {note}"))


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
