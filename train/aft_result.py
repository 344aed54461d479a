"""Keep the result of activation fine-tuning: evaluations before and after."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from ..calibrate.summary import Evaluation, Result
from ..runtime.errors import TrainingError

BEFORE, AFTER, REPORT = "before.onnx", "after.onnx", "aft.json"
PAGE = "report.html"


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
            "mean_average_precision_before": self.before.mean_average_precision,
            "mean_average_precision_after": self.after.mean_average_precision,
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
