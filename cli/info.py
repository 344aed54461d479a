"""The verb info."""

from __future__ import annotations

from typing import Annotated

import typer

from ..runtime.errors import RequestError
from .console import print_json, say_all
from .options import Json, Model


def info(
    model: Model,
    labels: Annotated[
        bool, typer.Option("--labels", help="Print the class names alone, one a line.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Show what a model file holds, and which engines can run it."""
    import msgspec

    from ..runtime.engines.base import EngineSettings
    from ..runtime.engines.plan import is_plan, read_plan
    from ..runtime.engines.registry import candidates
    from ..runtime.onnxfile import read_manifest
    from .manifest_text import engines_table, manifest_table, plan_table

    manifest = read_manifest(model)
    engines = candidates(manifest, EngineSettings(), model)
    plan = read_plan(model) if is_plan(model) else None
    if labels:
        if not manifest.labels:
            raise RequestError(f"{model} holds no class names: it was exported without --labels")
        print("\n".join(manifest.labels))
        return
    if as_json:
        built = None if plan is None else msgspec.to_builtins(plan)
        if built is not None:
            del built["manifest"]
        document = msgspec.to_builtins(manifest) | {"plan": built}
        print_json(document | {"engines": [msgspec.to_builtins(each) for each in engines]})
        return
    parts = [manifest_table(model, manifest), engines_table(engines)]
    if plan is not None:
        parts.insert(1, plan_table(plan))
    say_all(parts)
