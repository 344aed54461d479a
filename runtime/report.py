"""Manifests, explanations and agreements as tables for people."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from .console import escape
from .engines.plan import Plan
from .engines.registry import Candidate
from .engines.selftest import Agreement
from .explanation import format_probability
from .manifest import Manifest
from .search import Prior


def manifest_table(path: Path, manifest: Manifest) -> Table:
    """What a model file says about itself."""
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in _facts(path, manifest):
        table.add_row(f"[bold]{name}[/bold]", escape(value))
    return table


_TASKS = {
    "softmax": "probabilities by softmax, one class a picture",
    "sigmoid": "probabilities by sigmoid, independent labels",
    "binary": "probabilities by sigmoid of one logit",
    "none": "no probabilities",
}


def _facts(path: Path, manifest: Manifest) -> Iterator[tuple[str, str]]:
    yield "model", f"{manifest.model}, weights {manifest.weights}"
    named = "with names" if manifest.labels else "without names"
    what = "values" if manifest.task == "none" else "classes"
    yield what, f"{manifest.num_classes}, {named}; {_TASKS[manifest.task]}"
    shape = " x ".join(map(str, manifest.activations))
    yield "target layer", f"{manifest.target_layer} ({shape})"
    head = "global average pooling and one linear layer" if manifest.pooled_linear else "other"
    yield "head", head
    yield "input", input_line(manifest)
    yield "outputs", outputs_line(manifest)
    yield "methods", ", ".join(manifest.methods)
    yield (
        "scores",
        f"gradients of the {manifest.gradient_score}, ablation of the {manifest.ablation_score}",
    )
    yield "preprocessing", preprocess_line(manifest)
    yield (
        "TFT",
        f"{tft_line(manifest)}, thresholds {', '.join(f'{t:g}' for t in manifest.tft.taus)}",
    )
    if manifest.priors:
        yield "threshold search", priors_line(manifest.priors)
    yield "precision", f"{manifest.precision}, opset {manifest.opset}"
    yield "file", f"{path.stat().st_size / 1e6:.1f} MB, {manifest.digest}"
    yield "made with", ", ".join(f"{tool} {number}" for tool, number in manifest.tools.items())


def plan_table(plan: Plan) -> Table:
    """What a TensorRT plan was built for."""
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    rows = [
        ("plan", f"{plan.library} {plan.library_version}, {plan.digest}"),
        ("GPUs", f"compute capability {', '.join(plan.compute)}"),
        ("batch", f"{plan.batch.least} to {plan.batch.most}, best at {plan.batch.best}"),
        ("targets", f"{plan.classes.least} to {plan.classes.most} classes at once"),
    ]
    if plan.gpu is not None:
        rows[1] = ("GPUs", f"{rows[1][1]}; built on {plan.gpu}")
    if plan.height is not None and plan.width is not None:
        sides = (f"{s.least} to {s.most} pixels" for s in (plan.height, plan.width))
        rows.append(("pictures", " high, ".join(sides) + " wide"))
    for name, value in rows:
        table.add_row(f"[bold]{name}[/bold]", escape(value))
    return table


def engines_table(found: Sequence[Candidate]) -> Table:
    """Engines considered for a file, the first usable one being what ``auto`` takes."""
    table = Table("engine here", "auto", "why")
    chosen = next((each.name for each in found if each.usable), None)
    for each in found:
        said = "[green]chosen[/green]" if each.name == chosen else "usable" if each.usable else "no"
        table.add_row(each.name, said, escape(each.why))
    return table


def input_line(manifest: Manifest) -> str:
    """What the graph is fed."""
    shape = ["N", *("any" if side is None else str(side) for side in manifest.image_shape)]
    if manifest.embedded_preprocess:
        return f"pictures, uint8 [{', '.join(shape)}] RGB; the graph preprocesses them itself"
    if manifest.batch is not None:
        shape[0] = str(manifest.batch)
    how = "resized" if manifest.image_type == "uint8" else "preprocessed"
    return f"{manifest.image_type} [{', '.join(shape)}] ({manifest.layout}), {how}"


def outputs_line(manifest: Manifest) -> str:
    """What the graph returns."""
    layers = [layer.name for layer in manifest.fused_layers]
    fused = f" of {', '.join(layers)} and {manifest.target_layer} fused" if layers else ""
    first, *others = manifest.map_methods or (None,)
    listed = ", ".join([f"{first}{fused}", *others])
    said = {
        "raw": "raw (activations, gradients)",
        "map": f"map ({listed})",
        "tft": f"tft ({first}{fused}, {tft_line(manifest)})",
    }
    if "tft" in manifest.outputs and others and "map" not in manifest.outputs:
        said["tft"] += f", map ({', '.join(others)})"
    line = ", ".join(said[name] for name in manifest.outputs)
    if manifest.top is not None:
        line += f"; of the {manifest.top} most probable classes"
    if manifest.own_outputs:
        line += f"; and those it had before: {', '.join(manifest.own_outputs)}"
    return line


def tft_line(manifest: Manifest) -> str:
    """The file's reading of TFT."""
    own = manifest.tft
    searched = "" if own.forwards is None else f", a search of {own.forwards} forwards"
    twice = "" if own.again is None else f", the best {own.again} tried again"
    return f"mask {own.mask}, thresholds by {own.thresholds}{searched}{twice}"


def priors_line(priors: Sequence[Prior]) -> str:
    """What a search of thresholds can be asked for: methods, by reading."""
    readings: dict[str, list[str]] = {}
    for prior in priors:
        readings.setdefault(f"mask {prior.mask}, by {prior.thresholds}", []).append(prior.method)
    listed = "; ".join(f"{', '.join(methods)} ({said})" for said, methods in readings.items())
    pictures = sorted({prior.pictures for prior in priors})
    return f"learnt for {listed}; from {' or '.join(map(str, pictures))} photographs"


def preprocess_line(manifest: Manifest) -> str:
    """From picture to network input."""
    spec = manifest.preprocess
    resize = "x".join(map(str, spec.resize)) or "none"
    return (
        f"resize {resize} {spec.interpolation}, crop {spec.size[0]}x{spec.size[1]}, "
        f"mean {list(spec.mean)}, std {list(spec.std)}, {spec.color}"
    )


def explanations_table(rows: Sequence[dict[str, Any]], tft: bool) -> Table:
    """One line an explanation; ``rows`` as ``Explanation.to_dict`` gives them, with ``file``."""
    values = any(row.get("task") == "none" for row in rows)
    table = Table("picture", "method", "class", "value" if values else "probability")
    if tft:
        for column in ("tau*", "rpi", "p masked"):
            table.add_column(column, justify="right")
    for row in rows:
        if "error" in row:
            table.add_row(escape(Path(row["file"]).name), "", "[red]unreadable[/red]")
            continue
        cells = [
            escape(Path(row["file"]).name),
            row["method"],
            escape(f"{row['label']} ({row['index']})"),
            format_probability(row["probability"], row["task"], 4),
        ]
        if tft:
            # A search knows thresholds between the tenths.
            tau = f"{row['threshold']:.2f}".removesuffix("0")
            if row["improved"]:
                rpi = max(value for value in row["rpi"] if value is not None)
                cells += [tau, f"{rpi:.3f}", f"{row['masked_probability']:.4f}"]
            else:
                cells += [tau, "-", f"{row['probability']:.4f}"]
        table.add_row(*cells)
    return table


def agreements_table(agreements: Sequence[Agreement], method: str) -> Table:
    """An engine's answers against the export's, one line a test pattern."""
    table = Table("pattern", "same class", "probability differs", f"{method} map differs")
    for agreement in agreements:
        table.add_row(
            str(agreement.pattern),
            "yes" if agreement.lead < 1e-5 else f"another leads by {agreement.lead:.1e}",
            f"{agreement.probability:.1e}",
            f"{agreement.map:.1e}",
        )
    return table
