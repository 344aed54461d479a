"""The verb export."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from ..runtime.cam import METHODS, Score
from ..runtime.errors import RequestError
from ..runtime.input_format import Color, Interpolation, Layout
from ..runtime.manifest import OUTPUTS, Task
from . import parse
from .console import out, print_json, say
from .options import (
    ImageSize,
    Json,
    Labels,
    NumClasses,
    Preprocess,
    ReadingOptions,
    TargetLayer,
    Weights,
    complete,
)
from .progress import progress
from .tables import colored, table

if TYPE_CHECKING:
    from ..export import Comparison, ExportResult, Layer, Overrides


@dataclass(frozen=True)
class PreprocessOptions:
    """How images are prepared for the network."""

    preprocess: Preprocess = None
    image_size: ImageSize = None
    resize: Annotated[
        int | None,
        typer.Option(
            help="Shorter side before the centre crop; 0: straight to the input's size "
            "[default: the model's]."
        ),
    ] = None
    interpolation: Annotated[
        Interpolation | None, typer.Option(help="Of the resize [default: the model's].")
    ] = None
    mean: Annotated[
        str | None,
        typer.Option(help="A number a channel, for [0, 1] pixels, as 0.485,0.456,0.406."),
    ] = None
    std: Annotated[str | None, typer.Option(help="A number a channel, as 0.229,0.224,0.225.")] = (
        None
    )
    color: Annotated[
        Color | None, typer.Option(help="The network's channel order; L for grey.")
    ] = None
    layout: Annotated[
        Layout | None, typer.Option(help="Of an ONNX file's input [default: from its shape].")
    ] = None

    def overrides(self) -> Overrides:
        """Return what ``to_onnx`` takes."""
        from ..export import Overrides

        return Overrides(
            preprocess=self.preprocess,
            image_size=parse.size("--image-size", self.image_size),
            resize=self.resize,
            interpolation=self.interpolation,
            mean=parse.per_channel("--mean", self.mean),
            std=parse.per_channel("--std", self.std),
            color=self.color,
            layout=self.layout,
        )


@dataclass(frozen=True)
class SearchOptions(ReadingOptions):
    """How the file reads TFT, and how many thresholds its graph tries."""

    forwards: Annotated[
        int | None,
        typer.Option(
            help="With the output tft: try so few thresholds, chosen one after the other by what "
            "--search holds [default: all of them]."
        ),
    ] = None
    search: Annotated[
        Path | None,
        typer.Option(
            help="What whycam calibrate thresholds learnt: its thresholds.json, or the ONNX file "
            "that it stored it in."
        ),
    ] = None


@dataclass(frozen=True)
class OutputOptions:
    """What the graph returns."""

    method: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,...",
            help=f"What the file must support, of: {', '.join(METHODS)}. "
            "[default: all but ablation, which makes every call do more]",
            autocompletion=complete(METHODS),
        ),
    ] = None
    map_method: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,...",
            help="Whose maps the graph finishes, the first one's also for tft [default: all "
            "methods but scorecam; Grad-CAM alone without raw].",
            autocompletion=complete(METHODS),
        ),
    ] = None
    outputs: Annotated[
        str,
        typer.Option(
            metavar="NAME,...",
            help="What the graph returns besides probabilities, one or more of: raw (activations "
            "and gradients), map (finished maps), tft (the first method's map, cut at the "
            "threshold that a sweep inside the graph finds).",
            autocompletion=complete(OUTPUTS),
        ),
    ] = "raw,map"
    score: Annotated[
        Score | None,
        typer.Option(
            help="What gradients and Ablation-CAM are taken of "
            "[default: as published, logit and prob]."
        ),
    ] = None
    top: Annotated[
        int | None,
        typer.Option(
            help="Explain the K most probable classes: the graph then takes images alone, as the "
            "file that it replaces [default: an input says which classes]."
        ),
    ] = None
    fuse: Annotated[
        str | None,
        typer.Option(
            help="With the outputs map or tft: earlier layers whose Layer-CAM maps are fused with "
            "the target layer's, for finer detail; see --list-layers."
        ),
    ] = None
    embed_preprocess: Annotated[
        bool,
        typer.Option(
            "--embed-preprocess",
            help="Feed the graph uint8 images; it resizes, crops and normalises them itself.",
        ),
    ] = False
    source_size: Annotated[
        str | None,
        typer.Option(
            help="With --embed-preprocess: HxW of the images as they come [default: any size]."
        ),
    ] = None

    def arguments(self) -> dict[str, Any]:
        """Return these options as ``to_onnx`` takes them."""
        return {
            "methods": parse.methods(self.method),
            "map_methods": parse.methods(self.map_method),
            "outputs": parse.names(self.outputs),
            "score": self.score,
            "top": self.top,
            "fused_layers": () if self.fuse is None else parse.names(self.fuse),
            "embed_preprocess": self.embed_preprocess,
            "source_size": parse.size("--source-size", self.source_size),
        }


def export(
    model: Annotated[
        str,
        typer.Argument(
            help="FILE.onnx, torchvision/NAME, timm/NAME, package.module:factory, file.py:factory, "
            "or the folder of a training."
        ),
    ],
    images: PreprocessOptions,
    graph: OutputOptions,
    tft: SearchOptions,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="The ONNX file to write.")
    ] = None,
    weights: Weights = "default",
    weights_key: Annotated[
        str | None,
        typer.Option(help="Which of several sets of weights in that file, as state_dict_ema."),
    ] = None,
    labels: Labels = None,
    task: Annotated[
        Task | None,
        typer.Option(
            help="What the outputs mean: sigmoid is independent labels, binary one logit, none "
            "values [default: what the graph's last operator says]."
        ),
    ] = None,
    output_name: Annotated[
        str | None,
        typer.Option("--output-name", help="Which of several outputs to explain, name or number."),
    ] = None,
    num_classes: NumClasses = None,
    target_layer: TargetLayer = None,
    list_layers: Annotated[
        bool, typer.Option("--list-layers", help="Show where the model can be cut, and stop.")
    ] = False,
    straight_through: Annotated[
        bool,
        typer.Option(
            "--straight-through",
            help="Pass gradients through quantisation after the target layer.",
        ),
    ] = False,
    check: Annotated[
        list[Path] | None,
        typer.Option(help="An image of yours, on which the file's own outputs are compared too."),
    ] = None,
    triton: Annotated[
        Path | None,
        typer.Option(help="Write a Triton model repository here, with or without -o."),
    ] = None,
    opset: Annotated[int, typer.Option(help="ONNX operator set.")] = 18,
    as_json: Json = False,
) -> None:
    """Turn a classifier into one ONNX file that classifies and explains, and check it."""
    from ..export import list_layers as layers_of
    from ..export import to_onnx
    from ..export.onnx import STEPS
    from ..export.triton import model_path, repository_name, write_repository
    from ..runtime.priors import read_priors
    from ..runtime.tft import Tft

    overrides = images.overrides()
    if list_layers:
        with progress("reading the graph", None, as_json):
            layers, chosen = layers_of(
                model,
                # Weights do not matter for this: do not download any.
                weights="none" if weights == "default" else weights,
                num_classes=num_classes,
                overrides=overrides,
                task=task,
                output=output_name,
            )
        _show_layers(layers, chosen, as_json)
        return
    if output is None and triton is None:
        raise RequestError("say where to write the file: -o FILE.onnx")
    if tft.forwards is not None and tft.search is None:
        raise RequestError("--forwards needs what was learnt of thresholds: --search FILE")
    path = output or model_path(triton or "", repository_name(model))
    with progress("starting", len(STEPS), as_json) as advance:
        made = to_onnx(
            model,
            path,
            weights=weights,
            weights_key=weights_key,
            labels=labels,
            num_classes=num_classes,
            overrides=overrides,
            task=task,
            output=output_name,
            target_layer=target_layer,
            tft=tft.reading(Tft(), tft.forwards),
            priors=() if tft.search is None else read_priors(tft.search),
            straight_through=straight_through,
            check=check or (),
            opset=opset,
            step=lambda name: advance(name, 1),
            **graph.arguments(),
        )
    home = None if triton is None else write_repository(path, triton, repository_name(model))
    if as_json:
        print_json({**export_document(made), "triton": None if home is None else str(home)})
        return
    say(export_text(made))
    say(f"next: {_next_command(made, home)}")


def _next_command(made: ExportResult, repository: Path | None) -> str:
    if repository is not None:
        return f"tritonserver --model-repository {repository.parent.absolute()}"
    manifest = made.manifest
    can_mask = "tft" in manifest.outputs or not (
        manifest.embedded_preprocess or manifest.task == "none" or manifest.image_type == "uint8"
    )
    return f"whycam explain {made.path} IMAGE -o maps{' --tft' if can_mask else ''}"


def _show_layers(layers: Sequence[Layer], chosen: Layer | None, as_json: bool) -> None:
    marked = [(chosen is not None and layer.value is chosen.value, layer) for layer in layers]
    if as_json:
        print_json(
            [
                {"name": layer.name, "op": layer.op, "shape": layer.shape, "chosen": is_chosen}
                for is_chosen, layer in marked
            ]
        )
        return
    out.print(layers_table(marked))
    say(f"-> is found by itself: {chosen.name}" if chosen else "none would be chosen by itself")


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
    from .manifest_text import input_line, outputs_line, preprocess_line

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
