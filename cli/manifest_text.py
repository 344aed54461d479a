"""Describe a model file's manifest and a TensorRT plan in words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.table import Table

from ..runtime.engines.plan import Plan
from ..runtime.engines.registry import Candidate
from ..runtime.input_format import Preprocess, describe_images
from ..runtime.manifest import Manifest
from ..runtime.search import Prior
from .tables import colored, facts, table


def manifest_table(path: Path, manifest: Manifest) -> Table:
    """Lay out the manifest of a model file."""
    return facts(_facts(path, manifest))


_TASKS = {
    "softmax": "probabilities by softmax, one class an image",
    "sigmoid": "probabilities by sigmoid, independent labels",
    "binary": "probabilities by sigmoid of one logit",
    "none": "no probabilities",
    "heads": "probabilities of several heads",
    "detect": "objects with boxes",
}


def _facts(path: Path, manifest: Manifest) -> Iterator[tuple[str, str]]:
    yield "model", f"{manifest.model}, weights {manifest.weights}"
    named = "with names" if manifest.labels else "without names"
    what = "values" if manifest.task == "none" else "classes"
    if manifest.class_embeddings is None:
        yield what, f"{manifest.num_classes}, {named}; {_TASKS[manifest.task]}"
    else:
        length = manifest.class_embeddings
        yield what, f"an input, embeddings [C, {length}] (--prompts); {_TASKS[manifest.task]}"
    for one in manifest.heads:
        yield f"head {one.name}", f"{one.num_classes} classes; {_TASKS[one.task]}"
    shape = " x ".join(map(str, manifest.activations))
    reason = f": {manifest.target_layer_reason}" if manifest.target_layer_reason else ""
    yield "target layer", f"{manifest.target_layer} ({shape}){reason}"
    if manifest.attention is not None:
        heads, height, width = manifest.attention.shape
        yield "attention", f"{manifest.attention.name} ({heads} heads, {height} x {width} places)"
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
    """Lay out what a TensorRT plan was built for."""
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
        rows.append(("images", " high, ".join(sides) + " wide"))
    if plan.prompts is not None:
        rows.append(("prompts", f"{plan.prompts.least} to {plan.prompts.most}"))
    return facts(rows)


def engines_table(engines: Sequence[Candidate]) -> Table:
    """List the engines considered for a file; ``auto`` takes the first usable one."""
    chosen = next((engine.name for engine in engines if engine.usable), None)
    rows = [
        (
            engine.name,
            colored("chosen", "green")
            if engine.name == chosen
            else "usable"
            if engine.usable
            else "no",
            engine.why,
        )
        for engine in engines
    ]
    return table(["engine here", "auto", "why"], rows)


def input_line(manifest: Manifest) -> str:
    """Describe the graph's image input."""
    shape = ["N", *("any" if side is None else str(side) for side in manifest.image_shape)]
    if manifest.embedded_preprocess:
        return f"images, uint8 [{', '.join(shape)}] RGB; the graph preprocesses them itself"
    if manifest.batch is not None:
        shape[0] = str(manifest.batch)
    how = "resized" if manifest.image_type == "uint8" else "preprocessed"
    return f"{manifest.image_type} [{', '.join(shape)}] ({manifest.layout}), {how}"


def outputs_line(manifest: Manifest) -> str:
    """Describe the graph's outputs."""
    layers = [layer.name for layer in manifest.fused_layers]
    fused = f" of {', '.join(layers)} and {manifest.target_layer} fused" if layers else ""
    first, *others = manifest.map_methods or (None,)
    listed = ", ".join([f"{first}{fused}", *others])
    descriptions = {
        "raw": "raw (activations, gradients)",
        "map": f"map ({listed})",
        "tft": f"tft ({first}{fused}, {tft_line(manifest)})",
    }
    if "tft" in manifest.outputs and others and "map" not in manifest.outputs:
        descriptions["tft"] += f", map ({', '.join(others)})"
    line = ", ".join(descriptions[name] for name in manifest.outputs)
    if manifest.top is not None:
        line += f"; of the {manifest.top} most probable classes"
    if manifest.own_outputs:
        line += f"; and the original ones: {', '.join(manifest.own_outputs)}"
    return line


def tft_line(manifest: Manifest) -> str:
    """Describe the file's reading of TFT."""
    tft = manifest.tft
    searched = "" if tft.evaluations is None else f", a search of {tft.evaluations} evaluations"
    return f"{tft.reading}{searched}"


def priors_line(priors: Sequence[Prior]) -> str:
    """Describe for which methods and readings thresholds were learnt."""
    readings: dict[str, list[str]] = {}
    for prior in priors:
        readings.setdefault(f"mask {prior.mask}, by {prior.thresholds}", []).append(prior.method)
    listed = "; ".join(f"{', '.join(methods)} ({reading})" for reading, methods in readings.items())
    counts = sorted({prior.images for prior in priors})
    return f"learnt for {listed}; from {' or '.join(map(str, counts))} images"


def preprocess_line(manifest: Manifest) -> str:
    """Describe the preprocessing of images."""
    spec, free = manifest.preprocess, manifest.dynamic_size
    if free is not None:
        return (
            f"own resolution, sides from {free.least} to {free.most} in steps of {free.step} "
            f"pixels, {spec.interpolation}, mean {list(spec.mean)}, std {list(spec.std)}, "
            f"{spec.color}"
        )
    resize = "x".join(map(str, spec.resize)) or "none"
    size = f"{spec.size[0]}x{spec.size[1]}"
    fit = f"resize {resize} {spec.interpolation}, crop {size}"
    if spec.letterbox is not None:
        box = spec.letterbox
        fit = f"letterbox {size} {spec.interpolation}, {box.anchor}, padding {box.value}"
    if not spec.antialias:
        fit += ", no antialias"
    return f"{fit}, mean {list(spec.mean)}, std {list(spec.std)}, {spec.color}{_images(spec)}"


def _images(spec: Preprocess) -> str:
    if spec.color == "L" and spec.accepts_rgb:
        return "; colour images are converted to grey"
    return "" if spec.accepts_rgb else f"; {describe_images(spec)}"
