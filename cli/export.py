"""The verb export."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..runtime.errors import RequestError
from ..runtime.manifest_parts import ExportTask
from . import parse
from .console import out, print_json, say
from .export_options import (
    DetectorOptions,
    OutputOptions,
    PreprocessOptions,
    SearchOptions,
    ZeroShotOptions,
)
from .export_report import export_document, layers_table, print_export
from .options import Json, Labels, NumClasses, TargetLayer, Weights
from .progress import progress

if TYPE_CHECKING:
    from ..export import ExportResult, Layer


def export(
    model: Annotated[
        str,
        typer.Argument(
            help="FILE.onnx, torchvision/NAME, timm/NAME, open_clip/NAME/TAG, "
            "transformers/OWNER/NAME, package.module:factory, file.py:factory, or a folder written "
            "by whycam train or by transformers."
        ),
    ],
    images: PreprocessOptions,
    graph: OutputOptions,
    text: ZeroShotOptions,
    boxes: DetectorOptions,
    tft: SearchOptions,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="The ONNX file to write.")
    ] = None,
    weights: Weights = "default",
    weights_key: Annotated[
        str | None,
        typer.Option(
            help="Key of the weights in that file, where it holds several, as state_dict_ema."
        ),
    ] = None,
    labels: Labels = None,
    task: Annotated[
        ExportTask | None,
        typer.Option(
            help="What the outputs mean: sigmoid is independent labels, binary one logit, none "
            "values, detect a detector's boxes [default: what the graph says]."
        ),
    ] = None,
    head: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,...",
            help="Outputs of the model to explain, where there are several: names or numbers. Of "
            "several heads the classes are called HEAD:CLASS.",
        ),
    ] = None,
    num_classes: NumClasses = None,
    target_layer: TargetLayer = None,
    list_layers: Annotated[
        bool, typer.Option("--list-layers", help="List the layers that can be explained, and stop.")
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
        typer.Option(
            help="An image to compare the file's own outputs on as well; repeat for more."
        ),
    ] = None,
    triton: Annotated[
        Path | None,
        typer.Option(help="Write a Triton model repository here, with or without -o."),
    ] = None,
    opset: Annotated[int, typer.Option(help="ONNX operator set.")] = 18,
    as_json: Json = False,
) -> None:
    """Turn a network into one ONNX file that explains itself.

    The file answers as before, which is checked before it is written.
    """
    from ..export import list_layers as layers_of
    from ..export import to_onnx
    from ..export.onnx import STEPS
    from ..export.triton import (
        model_path,
        refuse_class_input,
        repository_name,
        write_repository,
    )
    from ..runtime.priors import read_priors
    from ..runtime.tft import Tft

    overrides = images.overrides()
    heads = None if head is None else parse.names(head)
    if list_layers:
        with progress("reading the graph", None, as_json):
            layers, chosen = layers_of(
                model,
                # Weights do not matter for this: do not download any.
                weights="none" if weights == "default" else weights,
                num_classes=num_classes,
                overrides=overrides,
                task=task,
                head=heads,
                is_encoder=text.classes is not None,
                format=boxes.format,
                activation=boxes.activation,
                labels=labels,
            )
        _show_layers(layers, chosen, as_json)
        return
    if output is None and triton is None:
        raise RequestError("no output file was named: add -o FILE.onnx")
    if tft.evaluations is not None and tft.search is None:
        raise RequestError(
            "--evaluations needs what whycam calibrate thresholds learnt: add --search FILE"
        )
    if triton is not None:
        refuse_class_input(text.classes)
    path = output or model_path(triton or "", repository_name(model))
    with progress("starting", len(STEPS), as_json) as advance:
        result = to_onnx(
            model,
            path,
            weights=weights,
            weights_key=weights_key,
            labels=labels,
            num_classes=num_classes,
            overrides=overrides,
            task=task,
            head=heads,
            target_layer=None if target_layer is None else parse.names(target_layer),
            tft=tft.reading(Tft(), tft.evaluations),
            priors=() if tft.search is None else read_priors(tft.search),
            straight_through=straight_through,
            check=check or (),
            opset=opset,
            show_bands=parse.show_bands(images.show_bands) or (),
            step=lambda name: advance(name, 1),
            classes=text.classes,
            logit_scale=text.logit_scale,
            logit_bias=text.logit_bias,
            **graph.arguments(),
            **boxes.arguments(),
        )
    home = None if triton is None else write_repository(path, triton, repository_name(model))
    if as_json:
        print_json({**export_document(result), "triton": None if home is None else str(home)})
        return
    print_export(result)
    if result.manifest.class_embeddings is not None:
        say(f"next: whycam prompts WORD WORD --model {_text_encoder_of(model)} -o FILE.npz")
    say(f"next: {_next_command(result, home)}")


def _text_encoder_of(model: str) -> str:
    """Return what to name for prompts: the same model, unless only its author knows."""
    return "file.py:factory" if ":" in model and not Path(model).exists() else model


def _next_command(result: ExportResult, repository: Path | None) -> str:
    if repository is not None:
        return f"tritonserver --model-repository {repository.parent.absolute()}"
    manifest = result.manifest
    can_mask = "tft" in manifest.outputs or not (
        manifest.embedded_preprocess or manifest.task == "none" or manifest.image_type == "uint8"
    )
    prompts = "" if manifest.class_embeddings is None else " --prompts FILE.npz"
    return f"whycam explain {result.path} IMAGE -o maps{prompts}{' --tft' if can_mask else ''}"


def _show_layers(layers: Sequence[Layer], chosen: Sequence[Layer], as_json: bool) -> None:
    reasons = {layer.value: layer.reason for layer in chosen}
    marked = [(layer.value in reasons, layer) for layer in layers]
    if as_json:
        print_json(
            [
                {
                    "name": layer.name,
                    "op": layer.op,
                    "shape": layer.shape,
                    "chosen": is_chosen,
                    "reason": reasons.get(layer.value, ""),
                }
                for is_chosen, layer in marked
            ]
        )
        return
    out.print(layers_table(marked))
    if not chosen:
        say("there is no default: --target-layer NAME")
    elif len(chosen) == 1:
        say(f"-> is the default: {chosen[0].name}, {chosen[0].reason}")
    else:
        say("-> are the default, one for each level: " + ", ".join(each.name for each in chosen))
