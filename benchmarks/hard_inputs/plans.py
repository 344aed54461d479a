"""TensorRT plans and their sidecars, as far as they can be read without a GPU."""

from __future__ import annotations

import hashlib
import json
from functools import cache
from typing import Any

import msgspec

import whycam
from whycam.runtime.engines.plan import Plan, Range, Tensor, read_plan, sidecar_of
from whycam.runtime.manifest import parse

from . import damage, trees
from .command import command
from .rules import ANSWERED, Case, quiet, refusal, whole

PLAN = b"ptrt" + bytes(range(256)) * 8  # TensorRT reads no further without a GPU


@cache
def _sidecar(manifest: str) -> str:
    one = Range(1, 1, 8)
    plan = Plan(
        manifest=parse(manifest, "manifest"),
        digest="sha256:" + hashlib.sha256(PLAN).hexdigest(),
        library="tensorrt-rtx",
        library_version="1.7.0",
        compute=("8.6",),
        batch=one,
        classes=one,
        inputs=(Tensor("image", "float32", (-1, 3, 8, 8)), Tensor("target", "int64", (-1, -1))),
        outputs=(Tensor("probabilities", "float32", (-1, 7)),),
    )
    return msgspec.json.encode(plan).decode()


def run(case: Case) -> str:
    """Read a plan's sidecar, load the plan, or ask the command line about it."""
    chance = case.chance
    tree: Any = json.loads(_sidecar(case.material.manifest))
    path = case.folder / chance.choice(["model.plan", "model.engine", "model", "model.onnx.plan"])
    if not case.odds(0.05):
        path.write_bytes(damage.bytes_of(chance, PLAN) if case.odds(0.3) else PLAN)
    side = sidecar_of(path)
    if case.odds(0.05):
        chance.choice([lambda: side.mkdir(), lambda: None, lambda: side.symlink_to(side)])()
    else:
        side.write_bytes(trees.mutated(chance, tree))
    if case.odds(0.3):
        verb = chance.choice(["info", "info", "verify", "explain"])
        images = [str(case.folder / "none.png")] if verb == "explain" else []
        return command(case, [verb, str(path), *images, *(["--json"] if case.odds(0.4) else [])])
    try:
        with quiet():
            read_plan(path)
            if case.odds(0.5):
                whycam.load(path, chance.choice(["auto", "tensorrt", "onnxruntime"]))
    except whycam.WhyCamError as error:
        return refusal(str(error))
    finally:
        whole(case.out)
    return ANSWERED
