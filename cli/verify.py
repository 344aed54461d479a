"""The verb verify."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import typer
from rich.table import Table

from ..runtime.errors import RequestError
from .console import out, print_error, print_json, print_ok, say
from .options import EngineOptions, Json, Model
from .progress import progress
from .tables import table

if TYPE_CHECKING:
    from ..runtime.comparison import Comparison, Tolerances
    from ..runtime.explainer import Explainer


def verify(model: Model, engine: EngineOptions, as_json: Json = False) -> None:
    """Check that the engine here gives the export's answers.

    The file holds the reference answers.
    """
    from ..runtime.engines.plan import is_plan
    from ..runtime.engines.selftest import check, method_of, tolerances_of
    from ..runtime.onnxfile import check_digest, read_manifest
    from ..runtime.prompts import prompts_or_examples

    with progress("digest", 3, as_json) as advance:
        if not is_plan(model):  # a plan's is compared when it is loaded
            check_digest(model, read_manifest(model))
        advance("loading", 1)
        if read_manifest(model).detector is not None:
            explainer = engine.load(model, takes_detectors=True, check=False)
            advance("test patterns", 1)
            allowed = tolerances_of(explainer.manifest, engine.precision)
            _verify_detector(model, explainer, allowed, as_json)
            return
        examples = prompts_or_examples(read_manifest(model))
        explainer = engine.load(model, check=False, prompts=examples)  # the check is what follows
        advance("test patterns", 1)
        allowed = tolerances_of(explainer.manifest, engine.precision)
        references = check(explainer.engine, explainer.manifest, allowed)
        problems = [text for reference in references if (text := reference.complaint)]
    if as_json:
        print_json(
            {
                "model": str(model),
                "engine": explainer.engine.description,
                "ok": not problems,
                "problems": problems,
                "references": msgspec.to_builtins(references),
            }
        )
    else:
        say(explainer.engine.description)
        out.print(references_table(references, method_of(explainer.manifest)))
        say(
            f"allowed: probability {allowed['probabilities']:g}, map {allowed['maps']:g} (file "
            f"{explainer.manifest.precision}, arithmetic {engine.precision})"
        )
    for problem in problems:
        print_error(problem)
    if problems:
        raise typer.Exit(2)
    if not as_json:
        print_ok("this engine gives the export's reference answers")


def _verify_detector(model: Path, explainer: Explainer, allowed: Tolerances, as_json: bool) -> None:
    """Compare a detector with its reference answers, and say how it went.

    Raises:
        RequestError: the file holds none.
        typer.Exit: the engine answers wrongly.
    """
    from ..runtime.engines.detection_selftest import find_problem

    detector = explainer.manifest.detector
    if detector is None or not detector.references:
        raise RequestError(
            f"{model} holds no reference answers, so nothing can be compared: export it again"
        )
    problem = find_problem(explainer.engine.run, explainer.manifest, allowed)
    count = len(detector.references)
    if as_json:
        problems = [] if problem is None else [problem]
        about = {"model": str(model), "engine": explainer.engine.description}
        print_json({**about, "ok": problem is None, "problems": problems, "references": count})
    else:
        say(explainer.engine.description)
    if problem is not None:
        print_error(problem)
        raise typer.Exit(2)
    if not as_json:
        print_ok(f"this engine gives the export's reference answers of {count} detections")


def references_table(references: Sequence[Comparison], method: str) -> Table:
    """Lay out how far an engine is from the export's answers, one line a test pattern."""
    return table(
        ["pattern", "same class", "probability differs", f"{method} map differs"],
        [
            (
                str(pattern),
                "yes" if worst["lead"] < 1e-5 else f"another leads by {worst['lead']:.1e}",
                f"{worst['probabilities']:.1e}",
                f"{worst['maps']:.1e}",
            )
            for pattern, worst in enumerate(reference.worst for reference in references)
        ],
    )
