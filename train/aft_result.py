"""Evaluate a tuned network against the original, and keep the result of the run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from ..calibrate.evaluate import evaluate
from ..calibrate.report import write_report
from ..calibrate.summary import Evaluation, Result
from ..runtime.errors import TrainingError
from ..runtime.files import write_json
from ..runtime.load import load
from ..runtime.timing import Tick
from .data import DataSplit
from .objective import Objective
from .training_page import PAGE, write_aft_page

BEFORE, AFTER, REPORT = "before.onnx", "after.onnx", "aft.json"
# Whatever else is installed: its answers do not depend on how images are batched, so a run that was
# resumed or shared among processes finds the same masks.
ENGINE = "onnxruntime"


@dataclass(frozen=True)
class AftResult:
    """The tuned network, and evaluations before and after.

    Attributes:
        folder: a model for ``whycam export``, with ``after.onnx`` exported already.
        before, after: evaluations of the network on the images held out.
        trained_on: images.
        unreadable: images left out, and why.
        notes: for people.
    """

    folder: Path
    before: Evaluation
    after: Evaluation
    trained_on: int
    unreadable: dict[str, str]
    notes: tuple[str, ...]

    def rows(self) -> dict[str, Result]:
        """Return the columns of the paper's table 3: original, TFT, AFT."""
        method = self.before.results[0].method
        return {
            "original": self.before.result(method, "original"),
            "tft": self.before.result(method, "tft"),
            "aft": self.after.result(method, "original"),
        }

    def to_dict(self) -> dict[str, Any]:
        """Return the result ready for JSON."""
        rows = {name: msgspec.to_builtins(row) for name, row in self.rows().items()}
        return {
            "folder": str(self.folder),
            "report": str(self.folder / PAGE),
            "rows": rows,
            "accuracy_before": self.before.accuracy,
            "accuracy_after": self.after.accuracy,
            "trained_on": self.trained_on,
            "held_out": self.after.images,
            "unreadable": self.unreadable,
            "notes": list(self.notes),
        }


def note_labels(known: list[int | None], labels: list[str | None]) -> list[str]:
    """Note how many images train without a label, for people."""
    without = sum(index is None for index in known)
    if not without:
        return []
    example = next(
        (label for label, i in zip(labels, known, strict=True) if label and i is None), ""
    )
    hint = f" ('{example}' is no class of the network; see --classes)" if example else ""
    return [
        f"{without} of {len(known)} images have no label of the network's{hint}: on these "
        "only distillation preserves the classifier"
    ]


def evaluate_both(
    place: Path,
    files: tuple[Path, Path],
    parts: DataSplit,
    objective: Objective,
    classes: str | Path | None,
    unreadable: Mapping[str, str],
    trained_on: int,
    notes: list[str],
    tick: Tick | None,
) -> AftResult:
    """Evaluate before and after, and write reports and the page."""
    explainers = load(files[0], ENGINE), load(files[1], ENGINE)
    evaluations = []
    for explainer, name in zip(explainers, ("before", "after"), strict=True):
        count = None if tick is None else lambda _, n, name=name: tick(f"evaluating {name}", n)
        evaluation = evaluate(
            explainer,
            parts.held_out,
            methods=[objective.method],
            variants=("original", "tft"),
            tft=objective.tft,
            classes=classes,
            folder=place / name,
            tick=count,
            asked=explainers[0],  # the network before: it has not learned to like masks
        )
        write_report(evaluation, place / name)
        evaluations.append(evaluation)
    tuned = AftResult(
        place, evaluations[0], evaluations[1], trained_on, dict(unreadable), tuple(notes)
    )
    write_aft_page(tuned, explainers, parts.held_out, objective, classes, tick)
    write_json(place / REPORT, tuned.to_dict())  # last: with it the run is done
    return tuned


def read_result(place: Path) -> AftResult:
    """Read the result of a finished run."""
    try:
        document = json.loads((place / REPORT).read_text())
        before, after = (
            msgspec.json.decode((place / name / "report.json").read_bytes(), type=Evaluation)
            for name in ("before", "after")
        )
        return AftResult(
            place,
            before,
            after,
            document["trained_on"],
            document["unreadable"],
            tuple(document["notes"]),
        )
    except (OSError, ValueError, KeyError, msgspec.MsgspecError) as error:
        raise TrainingError(f"cannot read the finished run in {place}: {error}") from error
