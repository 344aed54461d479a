"""Layers and finished exports, for people and for machines."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from rich.table import Table

from ..runtime.console import escape
from ..runtime.report import input_line, outputs_line, preprocess_line
from .layer import Layer
from .onnx import Export
from .verify import Verification


def layers_table(found: Sequence[Layer], chosen: Layer | None) -> Table:
    """Where a model can be cut, with an arrow at the layer that export would choose."""
    table = Table("", "layer", "operation", "channels x height x width")
    for layer in found:
        mark = "[green]->[/green]" if layer == chosen else ""
        table.add_row(mark, escape(layer.name), layer.op, " x ".join(map(str, layer.shape)))
    return table


def layers_document(found: Sequence[Layer], chosen: Layer | None) -> list[dict[str, Any]]:
    """The same for machines."""
    return [
        {"name": layer.name, "op": layer.op, "shape": layer.shape, "chosen": layer == chosen}
        for layer in found
    ]


def export_document(made: Export) -> dict[str, Any]:
    """What an export made, for machines."""
    errors = asdict(made.verification)
    del errors["inputs"]
    return {
        "path": str(made.path),
        "bytes": made.size,
        "seconds": round(made.seconds, 2),
        "notes": made.notes,
        "errors": errors,
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
        f"against PyTorch in float64: {', '.join(_errors(made.verification))}",
    ]
    return "\n".join([*lines, *(f"[yellow]note:[/yellow] {escape(note)}" for note in made.notes)])


def _errors(errors: Verification) -> Iterator[str]:
    yield f"probabilities {errors.probabilities:.1e}"
    yield f"activations {errors.activations:.1e}"
    yield f"gradients {errors.gradients:.1e} relative"
    if errors.ablation is not None:
        yield f"ablation {errors.ablation:.1e} relative"
    if errors.earlier is not None:
        yield f"gradients at fused layers {errors.earlier:.1e} relative"
    if errors.maps is not None:
        yield f"finished maps {errors.maps:.1e}"
    if errors.tft is not None:
        yield f"masked probabilities {errors.tft:.1e}"
    if errors.pixels is not None:
        yield f"preprocessing {errors.pixels:.1f} of 255 (Pillow)"
