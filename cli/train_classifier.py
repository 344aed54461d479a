"""The verb train classifier."""

from __future__ import annotations

from ..export.requirements import require_torch
from .console import print_json, say, say_all, unreadable_lines
from .options import Json
from .progress import progress
from .train_options import (
    Batch,
    Epochs,
    RunFolder,
    TrainedModel,
    TrainingData,
    TrainingOptions,
    is_quiet,
)


def classifier(
    model: TrainedModel,
    data: TrainingData,
    output: RunFolder,
    training: TrainingOptions,
    epochs: Epochs = 6,
    batch: Batch = 32,
    as_json: Json = False,
) -> None:
    """Fine-tune a pretrained network's last stage on your classes."""
    require_torch("training", "train")
    from ..train.classifier import train_classifier

    with progress("starting", None, is_quiet(as_json)) as advance:
        done = train_classifier(
            model,
            data,
            output,
            tick=advance,
            total=advance.total,
            **training.arguments(epochs, batch),
        )
    if done is None:  # not the first process
        return
    if as_json:
        print_json(
            {
                "folder": str(done.folder),
                "report": str(done.folder / "report.html"),
                "labels": list(done.labels),
                "accuracy": done.accuracy,
                "accuracy_standard_error": done.standard_error,
                "trained_on": done.trained_on,
                "held_out": done.held_out,
                "unreadable": done.unreadable,
            }
        )
        return
    say(
        f"{len(done.labels)} classes, {done.trained_on} images; accuracy on {done.held_out} "
        f"others {done.accuracy:.4f} ± {done.standard_error:.4f}"
    )
    say_all(unreadable_lines(done.unreadable))
    say(f"report: {output}/report.html")
    say(
        f"next: whycam export {output} -o model.onnx\n"
        f"  or: whycam train aft {output} {data} -o {output}-aft"
    )
