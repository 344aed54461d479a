"""Layers and finished exports, for people and for machines."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from rich.table import Table

from ..runtime.console import escape
from ..runtime.report import input_line, outputs_line, preprocess_line
from .layers import Layer
from .onnx import Export
from .verify import Verification


def layers_table(found: Sequence[Layer], chosen: Layer | None) -> Table:
    """Where a model can be cut, with an arrow at the layer that export would choose."""
    table = Table("", "layer", "operation", "channels x height x width")
    for layer in found:
        mark = "[green]->[/green]" if chosen is not None and layer.value is chosen.value else ""
        table.add_row(mark, escape(layer.name), layer.op, " x ".join(map(str, layer.shape)))
    return table


def layers_document(found: Sequence[Layer], chosen: Layer | None) -> list[dict[str, Any]]:
    """The same for machines."""
    return [
        {
            "name": layer.name,
            "op": layer.op,
            "shape": layer.shape,
            "chosen": chosen is not None and layer.value is chosen.value,
        }
        for layer in found
    ]


def export_document(made: Export) -> dict[str, Any]:
    """What an export made, for machines."""
    return {
        "path": str(made.path),
        "bytes": made.size,
        "seconds": round(made.seconds, 2),
        "notes": made.notes,
        "against": made.verification.against,
        "errors": made.verification.errors,
        "nodes": made.nodes,
        "rules": made.rules,
        "manifest": json.loads(made.manifest.to_json()),
    }


def export_lines(made: Export) -> str:
    """What an export made, for people; rich markup."""
    manifest = made.manifest
    shape = " x ".join(map(str, manifest.activations))
    lines = [
        f"[green]saved[/green] {escape(str(made.path))} "
        f"({made.size / 1e6:.1f} MB, {made.seconds:.0f} s)",
        f"target layer   {escape(manifest.target_layer)} ({shape})",
        f"input          {escape(input_line(manifest))}",
        f"outputs        {escape(outputs_line(manifest))}",
        f"methods        {', '.join(manifest.methods)}",
        f"preprocessing  {escape(preprocess_line(manifest))}",
        f"task           {manifest.task}",
        f"added          {made.nodes} nodes; gradient through {', '.join(made.rules) or 'nothing'}",
        f"against {made.verification.against}: {', '.join(_errors(made.verification))}",
    ]
    return "\n".join([*lines, *(f"[yellow]note:[/yellow] {escape(note)}" for note in made.notes)])


_SAID = {
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


def _errors(verification: Verification) -> Iterator[str]:
    errors = verification.errors
    for name, said in _SAID.items():
        if name in errors:
            exact = name == "own_outputs" and errors[name] == 0
            yield said.format("bit for bit" if exact else f"{errors[name]:.1e}")
    if "pixels" in errors:
        yield f"preprocessing {errors['pixels']:.1f} of 255 (Pillow)"
