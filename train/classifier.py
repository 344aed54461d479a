"""Fine-tune the last stage of a pretrained network on a folder of images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
import torch
import torch.nn.functional as F

from ..export.classifier import replace_classifier
from ..export.preprocessing import Overrides
from ..export.resolve import resolve
from ..export.saved_model import save_model
from ..runtime.errors import DataError, ExportError
from ..runtime.timing import Tick, Total
from .cache import Cache
from .class_accuracy import Prediction
from .classifier_result import ClassifierResult
from .data import Batches, check_exclusive, split_data
from .loop import Losses, Plan, count_steps, fit
from .network import TunableNetwork
from .prepare import RowComputer, layout
from .run import Machines, claim_folder, describe_model, fingerprint
from .training_page import write_classifier_page

PLAN = Plan(epochs=6, batch=32, lr=1e-3)
SMOOTHING = 0.1


class ClassifierLosses(Losses):
    """Cross-entropy with smoothed labels, which keeps probabilities short of certainty."""

    names = ("loss",)

    def __init__(self, tunable: TunableNetwork) -> None:
        super().__init__()
        self.tunable = tunable

    def trained(self) -> dict[str, torch.nn.Parameter]:
        """Return w1 and w2."""
        return self.tunable.tuned()

    def forward(self, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Compute the losses of a batch with ``features`` and ``label``, [1]."""
        logits = self.tunable(batch["features"])[1]
        return F.cross_entropy(logits, batch["label"], label_smoothing=SMOOTHING)[None]


def train_classifier(
    model: str,
    data: str | Path,
    folder: str | Path,
    *,
    held_out: str | Path | None = None,
    weights: str = "default",
    overrides: Overrides | None = None,
    plan: Plan = PLAN,
    machines: Machines | None = None,
    checkpoint_minutes: float = 5.0,
    tick: Tick | None = None,
    total: Total | None = None,
) -> ClassifierResult | None:
    """Give a pretrained network the classes of a data set, and fine-tune its last stage.

    The layers below the last stage stay frozen and are computed once for each image. An
    interrupted run resumes when started again with the same arguments.

    Args:
        model: as ``whycam export`` takes it.
        data: a folder with a subfolder for each class (see ``open_dataset``).
        folder: of the run.
        held_out: images to evaluate on; else those in ``data``'s ``val``, or a tenth.
        weights: of the model.
        overrides: preprocessing that differs from the model's own.
        plan: of the training.
        machines: where to train.
        checkpoint_minutes: between checkpoints.
        tick: called with (text, steps done).
        total: called with the number of steps.

    Returns:
        What was made; None on all processes but the first.

    Raises:
        ExportError: the model cannot be loaded, or has no last layer that can be replaced.
        DataError: fewer than two classes, several labels of an image, or images to evaluate on with
            unknown ones.
        TrainingError: the folder holds another run, or the loss is no longer a number.
    """
    place = Path(folder)
    parts = split_data(data, held_out, plan.seed, labelled=True)
    check_exclusive(parts)
    labels = parts.train.labels()
    if len(labels) < 2:
        raise DataError(f"{data} has {len(labels)} classes; a classifier needs two or more")
    untrained = sorted(set(parts.held_out.labels()) - set(labels))
    if untrained:
        raise DataError(
            f"the held-out images have classes that are not trained: {', '.join(untrained[:5])}"
        )
    fabric = (machines or Machines()).launch()
    source = resolve(
        model,
        weights,
        overrides=overrides,
        example=f"whycam train classifier {model} ... --preprocess imagenet",
    )
    torch.manual_seed(plan.seed)
    spec = source.preprocess
    replace_classifier(source.model, len(labels), spec.size, spec.channels)
    settings = {"training": "classifier", "model": model, "weights": weights} | msgspec.to_builtins(
        plan
    )
    both = {"train": parts.train, "held out": parts.held_out}
    key = fingerprint(source, both, settings)
    claim_folder(place, key, settings, fabric)
    tunable = TunableNetwork(source.model, spec.size, channels=spec.channels)
    if tunable.task != "softmax":
        raise ExportError(
            "the model ends in a sigmoid, and a classifier is trained for classes that exclude "
            "each other: return what goes into the sigmoid"
        )
    tunable.to(fabric.device)
    maker = RowComputer(tunable, spec, fabric.device)
    samples = [*parts.train.samples, *parts.held_out.samples]
    paths = [sample.path for sample in samples]
    cache = Cache(place / "cache" / key, len(samples), layout(tunable, spec, ["features"]))
    if total is not None:
        an_epoch, _ = count_steps(plan, len(parts.train.samples), fabric.world_size)
        total(len(samples) // fabric.world_size + an_epoch * plan.epochs)
    cache.check_space()
    maker.fill(cache, paths, (fabric.global_rank, fabric.world_size), tick)
    fabric.barrier()
    errors = cache.errors()
    first = len(parts.train.samples)
    trained_items = [i for i in range(first) if i not in errors]
    others = [i for i in range(first, len(samples)) if i not in errors]
    if not trained_items or not others:
        raise DataError(f"no image of {data} can be read: {next(iter(errors.values()))}")
    index = {label: number for number, label in enumerate(labels)}
    truth = [index[sample.label or ""] for sample in samples]
    batches = Batches(cache, maker, paths, truth, ["features"])
    fit(
        ClassifierLosses(tunable),
        batches,
        trained_items,
        plan,
        fabric,
        place,
        key,
        checkpoint_minutes,
        tick,
    )
    predictions = _predict(tunable, batches, others, truth)
    accuracy = sum(one.after == one.label for one in predictions) / len(predictions)
    unreadable = {samples[i].name: why for i, why in errors.items()}
    if fabric.is_global_zero:
        entry: dict[str, object] = {
            **settings,
            "images": len(trained_items),
            "held_out": len(others),
            "accuracy": accuracy,
        }
        save_model(
            place,
            describe_model(model, source, len(labels), labels, entry),
            source.model.state_dict(),
        )
        cache.remove()
    if not fabric.is_global_zero:
        return None
    done = ClassifierResult(
        place,
        labels,
        accuracy,
        (accuracy * (1 - accuracy) / len(predictions)) ** 0.5,
        len(trained_items),
        len(others),
        unreadable,
    )
    write_classifier_page(done, model, predictions)
    return done


@torch.no_grad()
def _predict(
    tunable: TunableNetwork, batches: Batches, items: Sequence[int], truth: Sequence[int]
) -> list[Prediction]:
    """Predict the class of each item."""
    predictions: list[Prediction] = []
    for start in range(0, len(items), 64):
        chosen = items[start : start + 64]
        best = tunable(batches(chosen, 0)["features"])[1].argmax(-1)
        predictions += [
            Prediction(truth[item], int(index)) for item, index in zip(chosen, best, strict=True)
        ]
    return predictions
