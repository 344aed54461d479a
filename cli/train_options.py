"""Options that both trainings take."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from . import parse
from .options import ImageSize, Preprocess, Weights

TrainedModel = Annotated[
    str,
    typer.Argument(
        help="torchvision/NAME, timm/NAME, package.module:factory, file.py:factory, or the folder "
        "of an earlier training."
    ),
]
TrainingData = Annotated[
    Path,
    typer.Argument(
        help="A folder with a subfolder for each class (or with train and val, each like that), a "
        "CSV file of image and label, or a Pascal VOC folder.",
    ),
]
RunFolder = Annotated[
    Path,
    typer.Option("-o", "--output", help="Folder of the run; an interrupted run resumes from it."),
]
Epochs = Annotated[int, typer.Option(help="Passes over the images.")]
Batch = Annotated[int, typer.Option(help="Images in each step.")]


@dataclass(frozen=True)
class TrainingOptions:
    """The network before the training, the images held out, and where and how to train."""

    held_out: Annotated[
        Path | None,
        typer.Option(help="Images to evaluate on [default: DATA's val, or a tenth of each class]."),
    ] = None
    weights: Weights = "default"
    preprocess: Preprocess = None
    image_size: ImageSize = None
    lr: Annotated[float, typer.Option("--lr", help="Highest learning rate.")] = 1e-3
    weight_decay: Annotated[float, typer.Option(help="Weight decay of AdamW.")] = 0.0
    seed: Annotated[int, typer.Option(help="Seed of image order and initialisation.")] = 0
    checkpoint_minutes: Annotated[
        float,
        typer.Option(
            "--checkpoint-minutes", help="Minutes between checkpoints; 0: after every step."
        ),
    ] = 5.0

    accelerator: Annotated[
        Literal["auto", "cpu", "cuda", "mps"], typer.Option(help="Kind of device to train on.")
    ] = "auto"
    devices: Annotated[str, typer.Option(help="Processes on each machine, or auto.")] = "1"
    nodes: Annotated[
        int, typer.Option("--num-nodes", help="Machines; all must see the folder -o.")
    ] = 1
    strategy: Annotated[
        Literal["auto", "ddp"], typer.Option(help="How several processes train together.")
    ] = "auto"
    precision: Annotated[
        Literal["fp32", "bf16", "fp16"],
        typer.Option(help="Of the arithmetic; weights stay float32."),
    ] = "fp32"

    def arguments(self, epochs: int, batch: int) -> dict[str, Any]:
        """Return these options as keywords of the trainings."""
        from ..export import Overrides
        from ..train.loop import Plan
        from ..train.run import Machines

        size = parse.size("--image-size", self.image_size)
        machines = Machines(
            accelerator=self.accelerator,
            devices=int(self.devices) if self.devices.isdigit() else self.devices,
            nodes=self.nodes,
            strategy=self.strategy,
            precision=self.precision,
        )
        return {
            "held_out": self.held_out,
            "weights": self.weights,
            "overrides": Overrides(preprocess=self.preprocess, image_size=size),
            "plan": Plan(
                epochs=epochs,
                batch=batch,
                lr=self.lr,
                weight_decay=self.weight_decay,
                seed=self.seed,
            ),
            "machines": machines,
            "checkpoint_minutes": self.checkpoint_minutes,
        }


def is_quiet(as_json: bool) -> bool:
    """Tell whether this process shows no progress: of several, one alone does."""
    return as_json or any(os.environ.get(name, "0") != "0" for name in ("RANK", "LOCAL_RANK"))
