"""The verbs of ``whycam train``. Torch is imported when one runs, not before."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..export.requirements import require_torch
from ..runtime import options
from ..runtime.cam import METHODS
from ..runtime.console import out, print_json, progress
from ..runtime.errors import RequestError
from ..runtime.options import Json, Weights
from ..runtime.tft import Tft

if TYPE_CHECKING:
    from .aft import Tuned
    from .loop import Plan
    from .run import Machines

app = typer.Typer(
    name="train",
    help="Train on your own photographs: a classifier, or cleaner maps for one (AFT).",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
Model = Annotated[
    str,
    typer.Argument(
        help="torchvision/NAME, timm/NAME, package.module:factory, file.py:factory, or the folder "
        "of an earlier training."
    ),
]
Data = Annotated[
    Path,
    typer.Option(
        "--data",
        help="A folder with a subfolder for each class (or with train and val, each like that), a "
        "CSV file of picture and label, or a Pascal VOC folder.",
    ),
]
HeldOut = Annotated[
    Path | None,
    typer.Option(help="Photographs to judge by [default: --data's val, or a tenth of each class]."),
]
Output = Annotated[
    Path, typer.Option("-o", "--output", help="Folder of the run; a killed run goes on there.")
]
Seed = Annotated[int, typer.Option(help="Of order and initialisation.")]
Devices = Annotated[str, typer.Option(help="Processes on each machine, or auto.")]
Nodes = Annotated[int, typer.Option("--num-nodes", help="Machines; all must see the folder -o.")]
Strategy = Annotated[str, typer.Option(help="auto or ddp.")]
Accelerator = Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")]
Precision = Annotated[str, typer.Option(help="32-true, bf16-mixed or 16-mixed.")]
Checkpoints = Annotated[
    float, typer.Option("--checkpoint-minutes", help="Between checkpoints; 0: after every step.")
]
ImageSize = Annotated[
    str | None, typer.Option(help="Side of the network input, or HxW [default: the model's].")
]
PreprocessOption = Annotated[
    str | None,
    typer.Option(
        "--preprocess",
        help="How images are prepared, where the model does not say: imagenet, tf, caffe, "
        "zero-one, raw, or a JSON file (whycam export --help tells what each means).",
    ),
]


@app.command(
    epilog="Example: whycam train classifier torchvision/resnet50 --data photographs/ -o run/"
)
def classifier(
    model: Model,
    data: Data,
    output: Output,
    held_out: HeldOut = None,
    weights: Weights = "default",
    preprocess: PreprocessOption = None,
    image_size: ImageSize = None,
    epochs: Annotated[int, typer.Option(help="Passes over the photographs.")] = 6,
    batch: Annotated[int, typer.Option(help="Photographs a step.")] = 32,
    lr: Annotated[float, typer.Option(help="Highest learning rate.")] = 1e-3,
    weight_decay: Annotated[float, typer.Option(help="Of AdamW.")] = 0.0,
    seed: Seed = 0,
    accelerator: Accelerator = "auto",
    devices: Devices = "1",
    nodes: Nodes = 1,
    strategy: Strategy = "auto",
    precision: Precision = "32-true",
    checkpoint_minutes: Checkpoints = 5.0,
    as_json: Json = False,
) -> None:
    """Fine-tune the last stage of a pretrained network on your own classes."""
    require_torch("training", "train")
    from ..export import Overrides
    from .classifier import train_classifier

    with progress("starting", None, _quiet(as_json)) as advance:
        done = train_classifier(
            model,
            data,
            output,
            held_out=held_out,
            weights=weights,
            overrides=Overrides(
                preprocess=preprocess, image_size=options.size("--image-size", image_size)
            ),
            plan=_plan(epochs, batch, lr, weight_decay, seed),
            machines=_machines(accelerator, devices, nodes, strategy, precision),
            checkpoint_minutes=checkpoint_minutes,
            tick=advance,
            total=advance.total,
        )
    if done is None:  # not the first process
        return
    if as_json:
        print_json(
            {
                "folder": str(done.folder),
                "labels": list(done.labels),
                "accuracy": done.accuracy,
                "accuracy_standard_error": done.standard_error,
                "trained_on": done.trained_on,
                "held_out": done.held_out,
                "unreadable": done.unreadable,
            }
        )
        return
    out.print(
        f"{len(done.labels)} classes, {done.trained_on} photographs; accuracy on {done.held_out} "
        f"others {done.accuracy:.4f} ± {done.standard_error:.4f}"
    )
    _say_unreadable(done.unreadable)
    out.print(f"next: whycam export {output} -o model.onnx", soft_wrap=True)
    out.print(f"  or: whycam train aft {output} --data {data} -o {output}-aft", soft_wrap=True)


@app.command(epilog="Example: whycam train aft run/ --data photographs/ --method gradcam -o tuned/")
def aft(
    model: Model,
    data: Data,
    output: Output,
    method: Annotated[
        str,
        typer.Option(help=f"Whose maps, of: {', '.join(m for m in METHODS if m != 'scorecam')}."),
    ] = "gradcam",
    variant: Annotated[
        str,
        typer.Option(
            help="What pulls the maps, one or more with commas: faithful (the masked image must "
            "still be classified), aligned (the map is pulled toward TFT's mask), tuner (the "
            "paper's equation 8)."
        ),
    ] = "faithful",
    weight: Annotated[
        str | None,
        typer.Option(
            help="lambda of each variant, with commas [default: faithful 2, aligned 10, tuner 10]."
        ),
    ] = None,
    distillation: Annotated[
        float | None,
        typer.Option(help="Weight of agreement with the network before [default: 4]."),
    ] = None,
    classification: Annotated[
        float, typer.Option(help="Weight of the cross-entropy with the labels.")
    ] = 1.0,
    mask: Annotated[str, typer.Option(help="TFT of the masks: soft or binary.")] = "soft",
    thresholds: Annotated[str, typer.Option(help="TFT of the masks: rank or value.")] = "rank",
    held_out: HeldOut = None,
    classes: Annotated[
        Path | None,
        typer.Option(help="CSV: the data's label, the network's class (index or name)."),
    ] = None,
    weights: Weights = "default",
    labels: Annotated[
        str | None, typer.Option(help="imagenet, or a file: one name a line or a JSON list.")
    ] = None,
    num_classes: Annotated[
        int | None, typer.Option(help="Classes, where the weights have another number than usual.")
    ] = None,
    preprocess: PreprocessOption = None,
    image_size: ImageSize = None,
    target_layer: Annotated[
        str | None, typer.Option(help="The layer to tune and explain [default: found].")
    ] = None,
    epochs: Annotated[int, typer.Option(help="Passes over the photographs.")] = 4,
    batch: Annotated[int, typer.Option(help="Photographs a step.")] = 16,
    lr: Annotated[float, typer.Option(help="Highest learning rate.")] = 1e-3,
    weight_decay: Annotated[float, typer.Option(help="Of AdamW.")] = 0.0,
    seed: Seed = 0,
    cache: Annotated[
        str,
        typer.Option(
            help="What does not change is kept on disk: auto, if it fits; off; or a folder for it."
        ),
    ] = "auto",
    flip: Annotated[
        bool, typer.Option("--flip", help="Mirror half of the photographs; nothing is cached then.")
    ] = False,
    accelerator: Accelerator = "auto",
    devices: Devices = "1",
    nodes: Nodes = 1,
    strategy: Strategy = "auto",
    precision: Precision = "32-true",
    checkpoint_minutes: Checkpoints = 5.0,
    as_json: Json = False,
) -> None:
    """Tune a classifier so that its plain maps need no clean-up, and measure what came of it."""
    require_torch("training", "train")
    from ..export import Overrides
    from .aft import train_aft
    from .objective import DISTILLATION, Objective

    terms = _terms(variant, weight)
    with progress("starting", None, _quiet(as_json)) as advance:
        tuned = train_aft(
            model,
            data,
            output,
            objective=Objective(
                method=method,  # type: ignore[arg-type]
                terms=terms,  # type: ignore[arg-type]
                classification=classification,
                distillation=DISTILLATION if distillation is None else distillation,
                tft=options.reading(mask, thresholds, Tft()),
            ),
            held_out=held_out,
            names=classes,
            weights=weights,
            labels=labels,
            num_classes=num_classes,
            overrides=Overrides(
                preprocess=preprocess, image_size=options.size("--image-size", image_size)
            ),
            target_layer=target_layer,
            plan=_plan(epochs, batch, lr, weight_decay, seed),
            machines=_machines(accelerator, devices, nodes, strategy, precision),
            cache=cache,
            flip=flip,
            checkpoint_minutes=checkpoint_minutes,
            tick=advance,
            total=advance.total,
        )
    if tuned is None:  # not the first process
        return
    if as_json:
        print_json(tuned.to_dict())
        return
    _say_tuned(tuned)
    out.print(f"next: whycam explain {output}/after.onnx PICTURE -o maps", soft_wrap=True)
    out.print(f"  or: whycam export {output} -o model.onnx --outputs map", soft_wrap=True)


def _terms(variant: str, weight: str | None) -> dict[str, float]:
    from .objective import VARIANTS, WEIGHTS

    names = options.names(variant)
    unknown = [name for name in names if name not in VARIANTS]
    if unknown:
        raise RequestError(
            f"there is no variant {', '.join(unknown)}; choose from: {', '.join(VARIANTS)}"
        )
    if weight is None:
        return {name: WEIGHTS[name] for name in names}  # type: ignore[index]
    try:
        numbers = [float(number) for number in options.names(weight)]
    except ValueError as error:
        raise RequestError(f"--weight must be numbers with commas, not '{weight}'") from error
    if len(numbers) != len(names):
        raise RequestError(f"--weight has {len(numbers)} numbers for {len(names)} variants")
    return dict(zip(names, numbers, strict=True))


def _quiet(as_json: bool) -> bool:
    """One process alone shows progress."""
    return as_json or any(os.environ.get(name, "0") != "0" for name in ("RANK", "LOCAL_RANK"))


def _plan(epochs: int, batch: int, lr: float, weight_decay: float, seed: int) -> Plan:
    from .loop import Plan

    return Plan(epochs=epochs, batch=batch, lr=lr, weight_decay=weight_decay, seed=seed)


def _machines(
    accelerator: str, devices: str, nodes: int, strategy: str, precision: str
) -> Machines:
    from .run import Machines

    count: int | str = int(devices) if devices.isdigit() else devices
    return Machines(
        accelerator=accelerator,
        devices=count,
        nodes=nodes,
        strategy=strategy,
        precision=precision,
    )


def _say_tuned(tuned: Tuned) -> None:
    from .report import before_after_table

    out.print(before_after_table(tuned.rows()))
    before, after = tuned.before, tuned.after
    if before.accuracy is not None and after.accuracy is not None:
        out.print(
            f"accuracy {before.accuracy:.4f} before, {after.accuracy:.4f} after "
            f"(± {after.accuracy_standard_error:.4f}, {after.labelled} photographs)"
        )
    _say_unreadable(tuned.unreadable)
    for note in tuned.notes:
        out.print(f"note: {note}", soft_wrap=True)


def _say_unreadable(unreadable: dict[str, Any]) -> None:
    if unreadable:
        shown = "; ".join(list(unreadable.values())[:3])
        out.print(f"{len(unreadable)} photographs left out: {shown}", soft_wrap=True)
