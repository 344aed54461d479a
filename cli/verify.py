"""The verb verify."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import typer
from rich.table import Table

from .console import out, print_error, print_json, print_ok, say
from .options import EngineOptions, Json, Model
from .progress import progress
from .tables import table

if TYPE_CHECKING:
    from ..runtime.engines.selftest import Agreement


def verify(model: Model, engine: EngineOptions, as_json: Json = False) -> None:
    """Check a file, and the engine here, against the export's reference answers."""
    from ..runtime.engines.plan import is_plan
    from ..runtime.engines.selftest import check, method_of, tolerance_of
    from ..runtime.onnxfile import check_digest, read_manifest

    with progress("digest", 3, as_json) as advance:
        if not is_plan(model):  # a plan's is compared when it is loaded
            check_digest(model, read_manifest(model))
        advance("loading", 1)
        explainer = engine.load(model, check=False)  # the check is what follows
        advance("test patterns", 1)
        agreements = check(explainer.engine, explainer.manifest)
        tolerance = tolerance_of(explainer.manifest, engine.precision)
        problems = [text for each in agreements if (text := each.problem(tolerance))]
    if as_json:
        print_json(
            {
                "model": str(model),
                "engine": explainer.engine.description,
                "ok": not problems,
                "problems": problems,
                "agreements": [agreement.to_dict() for agreement in agreements],
            }
        )
    else:
        say(explainer.engine.description)
        out.print(agreements_table(agreements, method_of(explainer.manifest)))
        say(
            f"allowed: probability {tolerance.probability:g}, map {tolerance.map:g} (file "
            f"{explainer.manifest.precision}, arithmetic {engine.precision})"
        )
    for problem in problems:
        print_error(problem)
    if problems:
        raise typer.Exit(2)
    if not as_json:
        print_ok("this engine gives the export's reference answers")


def agreements_table(agreements: Sequence[Agreement], method: str) -> Table:
    """Lay out how far an engine is from the export's answers, one line a test pattern."""
    return table(
        ["pattern", "same class", "probability differs", f"{method} map differs"],
        [
            (
                str(agreement.pattern),
                "yes" if agreement.lead < 1e-5 else f"another leads by {agreement.lead:.1e}",
                f"{agreement.probability:.1e}",
                f"{agreement.map:.1e}",
            )
            for agreement in agreements
        ],
    )
