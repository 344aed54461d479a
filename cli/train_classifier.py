"""The verb train classifier."""

from __future__ import annotations

from ..export.requirements import require_torch
from . import parse
from .console import print_json, say, say_all, unreadable_lines
from .options import ImageSize, Json, Preprocess, Weights
from .progress import progress
from .train_options import (
    Batch,
    Checkpoints,
    Epochs,
    HeldOut,
    LearningRate,
    MachineOptions,
    RunFolder,
    Seed,
    TrainedModel,
    TrainingData,
    WeightDecay,
    is_quiet,
)


def classifier(
    model: TrainedModel,
    data: TrainingData,
    output: RunFolder,
    machines: MachineOptions,
    held_out: HeldOut = None,
    weights: Weights = "default",
    preprocess: Preprocess = None,
    image_size: ImageSize = None,
    epochs: Epochs = 6,
    batch: Batch = 32,
    lr: LearningRate = 1e-3,
    weight_decay: WeightDecay = 0.0,
    seed: Seed = 0,
    checkpoint_minutes: Checkpoints = 5.0,
    as_json: Json = False,
) -> None:
    """Fine-tune a pretrained network's last stage on your classes."""
    require_torch("training", "train")
    from ..export import Overrides
    from ..train.classifier import train_classifier
    from ..train.loop import Plan

    with progress("starting", None, is_quiet(as_json)) as advance:
        done = train_classifier(
            model,
            data,
            output,
            held_out=held_out,
            weights=weights,
            overrides=Overrides(
                preprocess=preprocess, image_size=parse.size("--image-size", image_size)
            ),
            plan=Plan(epochs=epochs, batch=batch, lr=lr, weight_decay=weight_decay, seed=seed),
            machines=machines.machines(),
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
    say(
        f"{len(done.labels)} classes, {done.trained_on} images; accuracy on {done.held_out} "
        f"others {done.accuracy:.4f} ± {done.standard_error:.4f}"
    )
    say_all(unreadable_lines(done.unreadable))
    say(
        f"next: whycam export {output} -o model.onnx\n"
        f"  or: whycam train aft {output} {data} -o {output}-aft"
    )
