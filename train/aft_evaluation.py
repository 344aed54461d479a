"""Evaluate a tuned network against the original, and write the reports of the run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from ..calibrate.evaluate import evaluate
from ..calibrate.report import write_report
from ..runtime.files import write_json
from ..runtime.timing import Tick
from .aft_result import REPORT, AftResult
from .data import DataSplit
from .engine import open_explainer
from .objective import Objective
from .training_page import write_aft_page


def evaluate_both(
    place: Path,
    files: tuple[Path, Path],
    device: torch.device,
    parts: DataSplit,
    objective: Objective,
    classes: str | Path | None,
    unreadable: Mapping[str, str],
    trained_on: int,
    notes: list[str],
    tick: Tick | None,
) -> AftResult:
    """Evaluate before and after, and write reports and the page."""
    explainers = open_explainer(files[0], device), open_explainer(files[1], device)
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
