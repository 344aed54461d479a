"""The verb train aft."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from ..export.requirements import require_torch
from ..runtime.cam import ACTIVATION_METHODS
from ..runtime.errors import RequestError
from ..runtime.manifest_parts import Task
from . import parse
from .console import out, print_json, say, say_all, unreadable_lines
from .evaluate import measure_rows
from .options import (
    ClassMap,
    Json,
    Labels,
    NumClasses,
    PaperReading,
    TargetLayer,
    complete,
)
from .progress import progress
from .tables import table
from .train_options import (
    Batch,
    Epochs,
    RunFolder,
    TrainedModel,
    TrainingData,
    TrainingOptions,
    is_quiet,
)

if TYPE_CHECKING:
    from ..calibrate.summary import Result
    from ..train.aft_result import AftResult

_TUNED = [method for method in ACTIVATION_METHODS if method != "scorecam"]


def aft(
    model: TrainedModel,
    data: TrainingData,
    output: RunFolder,
    tft: PaperReading,
    training: TrainingOptions,
    method: Annotated[
        str,
        typer.Option(
            help=f"Method whose maps are tuned, of: {', '.join(_TUNED)}.",
            autocompletion=complete(_TUNED),
        ),
    ] = "gradcam",
    variant: Annotated[
        str,
        typer.Option(
            autocompletion=complete(["faithful", "cross-asked", "guided", "aligned", "tuner"]),
            help="Loss terms for the maps, one or more with commas: faithful (the masked image "
            "must still be classified), cross-asked (by the network before tuning), guided (the "
            "map must lie on the object, see --boxes), aligned (the map must match TFT's mask), "
            "tuner (the paper's equation 8).",
        ),
    ] = "faithful",
    weight: Annotated[
        str | None,
        typer.Option(
            help="lambda of each variant, with commas [default: faithful 2, cross-asked 2, guided "
            "3, aligned 10, tuner 10]."
        ),
    ] = None,
    distillation: Annotated[
        float | None,
        typer.Option(help="Weight of agreement with the original network [default: 4]."),
    ] = None,
    classification: Annotated[
        float, typer.Option(help="Weight of the cross-entropy with the labels.")
    ] = 1.0,
    classes: ClassMap = None,
    labels: Labels = None,
    num_classes: NumClasses = None,
    task: Annotated[
        Task | None,
        typer.Option(
            help="What the outputs mean: sigmoid is independent labels, binary one logit "
            "[default: what the graph says]."
        ),
    ] = None,
    target_layer: TargetLayer = None,
    fuse: Annotated[
        str | None,
        typer.Option(
            help="Earlier layers that are tuned together with the target layer, for --method "
            "layercam, whose map is fused of all."
        ),
    ] = None,
    tuned_layers: Annotated[
        int,
        typer.Option(
            help="How many convolutions and linear layers up to the target layer are trained, "
            "besides the head; residual blocks as a whole."
        ),
    ] = 1,
    epochs: Epochs = 4,
    batch: Batch = 16,
    cache: Annotated[
        str,
        typer.Option(
            help="Cache of the frozen layers' outputs: auto (on disk, if they fit), off, or a "
            "folder."
        ),
    ] = "auto",
    boxes: Annotated[
        str,
        typer.Option(
            metavar="auto|FILE.json|FOLDER",
            help="Where objects are, for guided: the data's own boxes (Pascal VOC), a COCO JSON "
            "file, or a folder of masks named as the images. Some of the images are enough.",
        ),
    ] = "auto",
    avoid: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.json|FOLDER",
            help="Regions that must not matter, as a watermark or a ruler: a COCO JSON file or a "
            "folder of masks. Adds the terms avoiding (the map must not lie there; lambda 3) and "
            "swapping (what is there must not change the answer; 1).",
        ),
    ] = None,
    flip: Annotated[
        bool, typer.Option("--flip", help="Mirror half of the images; nothing is cached then.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Tune a classifier until its plain maps need no clean-up.

    The gain is measured.
    """
    require_torch("training", "train")
    from ..train.aft import train_aft
    from ..train.objective import DISTILLATION, WEIGHTS, Objective

    terms = _terms(variant, weight)
    if avoid is not None:
        for name in ("avoiding", "swapping"):
            terms.setdefault(name, WEIGHTS[name])
    with progress("starting", None, is_quiet(as_json)) as advance:
        tuned = train_aft(
            model,
            data,
            output,
            objective=Objective(
                method=method,  # type: ignore[arg-type]
                terms=terms,  # type: ignore[arg-type]
                classification=classification,
                distillation=DISTILLATION if distillation is None else distillation,
                tft=tft.reading(),
            ),
            classes=classes,
            labels=labels,
            num_classes=num_classes,
            target_layer=target_layer,
            fused_layers=() if fuse is None else parse.names(fuse),
            tuned_layers=tuned_layers,
            task=task,
            cache=cache,
            flip=flip,
            boxes=boxes,
            avoid=avoid,
            tick=advance,
            total=advance.total,
            **training.arguments(epochs, batch),
        )
    if tuned is None:  # not the first process
        return
    if as_json:
        print_json(tuned.to_dict())
        return
    _say_tuned(tuned)
    say(f"report: {output}/report.html")
    say(
        f"next: whycam explain {output}/after.onnx IMAGE -o maps\n"
        f"  or: whycam export {output} -o model.onnx --outputs map"
    )


def _terms(variant: str, weight: str | None) -> dict[str, float]:
    from ..train.objective import VARIANTS, WEIGHTS

    names = parse.choices("--variant", variant, VARIANTS)
    if weight is None:
        return {name: WEIGHTS[name] for name in names}  # type: ignore[index]
    numbers = parse.floats("--weight", weight)
    if len(numbers) != len(names):
        raise RequestError(f"--weight has {len(numbers)} numbers for {len(names)} variants")
    return dict(zip(names, numbers, strict=True))


def _say_tuned(tuned: AftResult) -> None:
    out.print(before_after_table(tuned.rows()))
    before, after = tuned.before, tuned.after
    if before.accuracy is not None and after.accuracy is not None:
        say(
            f"accuracy {before.accuracy:.4f} before, {after.accuracy:.4f} after "
            f"(± {after.accuracy_standard_error:.4f}, {after.labelled} images)"
        )
    if before.mean_average_precision is not None and after.mean_average_precision is not None:
        say(
            f"mean average precision {before.mean_average_precision:.4f} before, "
            f"{after.mean_average_precision:.4f} after"
        )
    say_all(unreadable_lines(tuned.unreadable))
    for note in tuned.notes:
        say(f"note: {note}")


def before_after_table(rows: Mapping[str, Result]) -> Table:
    """Lay out original, TFT and AFT as the paper's table 3, with ratios to the original."""
    return table(["measure", *rows], measure_rows(rows))
