"""Write the page of a training: learning curve, accuracy, measures, and maps before and after."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from ..calibrate.comparison_page import add_compared
from ..calibrate.dataset import Classes, Dataset, Sample
from ..calibrate.evaluation_page import MOST_IMAGES, choose_evenly, select_confusion
from ..calibrate.fidelity import Compared, compare
from ..calibrate.rows import read_rows
from ..runtime.explainer import Explainer
from ..runtime.report.document import About, Report
from ..runtime.report.facts import describe_time, describe_unreadable
from ..runtime.timing import Tick
from .aft_result import PAGE, AftResult
from .class_accuracy import Prediction, compare_accuracy, count_confusion
from .classifier_result import ClassifierResult
from .learning_curve import read_learning_curve
from .objective import Objective


def write_aft_page(
    tuned: AftResult,
    explainers: tuple[Explainer, Explainer],
    data: Dataset,
    objective: Objective,
    classes: str | Path | None,
    tick: Tick | None = None,
) -> Path:
    """Write ``report.html`` of activation fine-tuning to the run's folder.

    Args:
        tuned: the result, whose evaluations left their rows in ``before`` and ``after``.
        explainers: of the network before and after.
        data: the images held out. Of more than 1,000, those whose probabilities changed most are
            shown and others at even steps.
        objective: that was minimised.
        classes: see ``Classes``.
        tick: called with (text, images done).

    Returns:
        Where the page is.

    Raises:
        OutputError: the folder cannot be read or written.
    """
    pairs = [
        (_Answer.of(one), _Answer.of(other))
        for one, other in zip(*map(read_rows, _rows_of(tuned.folder)), strict=True)
        if "predicted" in one and "predicted" in other
    ]
    samples = {sample.name: sample for sample in data.samples}
    shown = [samples[name] for name in _select(pairs)]
    manifest = explainers[0].manifest
    lookup = Classes(manifest.labels, manifest.num_classes, classes)
    with Report(tuned.folder / PAGE, len(shown)) as report:

        def collect(sample: Sample, compared: Compared) -> None:
            add_compared(report, lookup, manifest.labels, sample, compared)
            if tick is not None:
                tick("writing the report", 1)

        fidelity = compare(*explainers, shown, [objective.method], collect=collect)
        predictions = [
            Prediction(one.label, other.predicted, one.predicted)
            for one, other in pairs
            if one.label is not None
        ]
        for index in {one.label for one in predictions}:
            report.name_class(index, manifest.label(index))
        sections: dict[str, Any] = {
            "training": {
                "curve": msgspec.to_builtins(read_learning_curve(tuned.folder)),
                "weights": {
                    "classification": objective.classification,
                    "distillation": objective.distillation,
                    **objective.terms,
                },
                "rows": {name: msgspec.to_builtins(row) for name, row in tuned.rows().items()},
                "classes": [msgspec.to_builtins(one) for one in compare_accuracy(predictions)],
                "labels": _pair_labels(tuned),
            }
        }
        similarity = fidelity.maps[objective.method].pearson
        facts = [
            ("model", tuned.before.model),
            ("method", objective.method),
            ("terms", ", ".join(f"{name} {value:g}" for name, value in objective.terms.items())),
            ("trained on", f"{tuned.trained_on:,} images"),
            ("held out", f"{tuned.after.images:,} images"),
            ("maps before and after correlate by", f"{similarity:.3f} (median)"),
            ("engine", tuned.after.engine),
            ("written", describe_time()),
        ]
        notes = [
            "Maps are of the class that was most probable before training, unless you choose "
            "another.",
            *tuned.notes,
            *describe_unreadable(len(tuned.unreadable), tuned.unreadable.values()),
        ]
        if len(shown) < len(pairs):
            notes.append(
                f"{len(shown):,} of {len(pairs):,} images are shown below: those whose "
                "probabilities changed most, and others at even steps. All figures are of all "
                "images."
            )
        return report.write(
            About(
                kind="train",
                title=f"{Path(tuned.before.model).stem}: maps before and after training",
                sources=("before", "after"),
                facts=tuple(facts),
                notes=tuple(notes),
                task=manifest.task,
                sections=sections,
            )
        )


def write_classifier_page(
    done: ClassifierResult, model: str, predictions: Sequence[Prediction]
) -> Path:
    """Write ``report.html`` of a classifier's training to the run's folder, without images.

    Args:
        done: the result.
        model: that was fine-tuned.
        predictions: of the images held out.

    Returns:
        Where the page is.

    Raises:
        OutputError: the folder cannot be read or written.
    """
    figures = compare_accuracy(predictions)
    with Report(done.folder / PAGE, 0) as report:
        for index, label in enumerate(done.labels):
            report.name_class(index, label)
        return report.write(
            About(
                kind="train",
                title=f"{Path(model).stem}: training on {done.trained_on:,} images",
                sources=(model,),
                facts=(
                    ("model", model),
                    ("classes", str(len(done.labels))),
                    ("trained on", f"{done.trained_on:,} images"),
                    ("held out", f"{done.held_out:,} images"),
                    ("accuracy", f"{done.accuracy:.1%} ± {done.standard_error:.1%}"),
                    ("written", describe_time()),
                ),
                notes=describe_unreadable(len(done.unreadable), done.unreadable.values()),
                sections={
                    "training": {
                        "curve": msgspec.to_builtins(read_learning_curve(done.folder)),
                        "classes": [msgspec.to_builtins(one) for one in figures],
                    },
                    "matrix": select_confusion(count_confusion(predictions)),
                },
            )
        )


@dataclass(frozen=True)
class _Answer:
    """What a network answered about an image.

    Attributes:
        name: of the image.
        label: its class, if that is known.
        predicted: the most probable class.
        probabilities: of the classes explained.
    """

    name: str
    label: int | None
    predicted: int
    probabilities: dict[int, float]

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> _Answer:
        """Take it from a row of the evaluation."""
        probabilities = {one["target"]: one["probability"] for one in row["explained"]}
        return cls(row["name"], row["label"], row["predicted"], probabilities)


def _rows_of(folder: Path) -> tuple[Path, Path]:
    return folder / "before", folder / "after"


def _select(pairs: Sequence[tuple[_Answer, _Answer]]) -> list[str]:
    """Choose the images to show, in the order of the rows: all, or most of those that changed."""
    places = range(len(pairs))
    if len(pairs) <= MOST_IMAGES:
        return [one.name for one, _ in pairs]
    chosen = set(sorted(places, key=lambda place: -_change(*pairs[place]))[: MOST_IMAGES // 2])
    others = [place for place in places if place not in chosen]
    chosen.update(choose_evenly(others, MOST_IMAGES - len(chosen)))
    return [pairs[place][0].name for place in sorted(chosen)]


def _change(before: _Answer, after: _Answer) -> float:
    """Tell by how much probabilities changed; more than 1 where another class is predicted."""
    changes = [
        abs(value - after.probabilities.get(target, 0.0))
        for target, value in before.probabilities.items()
    ]
    return max(changes, default=0.0) + 2.0 * (before.predicted != after.predicted)


def _pair_labels(tuned: AftResult) -> list[dict[str, Any]]:
    """Pair the figures of independent labels before and after."""
    return [
        {
            "index": one.index,
            "label": one.label,
            "present": one.present,
            "images": one.images,
            "precision_before": one.average_precision,
            "precision_after": other.average_precision,
            "accuracy_before": one.accuracy,
            "accuracy_after": other.accuracy,
        }
        for one, other in zip(tuned.before.labels, tuned.after.labels, strict=True)
    ]
