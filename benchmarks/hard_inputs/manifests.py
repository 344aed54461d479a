"""Manifests that are damaged, or say other things than the graph that carries them."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np

import whycam
from whycam.runtime.cam import METHODS

from . import trees
from .command import command
from .rules import ENGINES, Case, answer, quiet, refusal, whole


def run(case: Case) -> str:
    """Load the file and explain an image, or ask the command line what the file says."""
    tree = json.loads(case.material.manifest)
    path = case.folder / "model.onnx"
    path.write_bytes(case.material.with_metadata(trees.mutated(case.chance, tree)))
    if case.odds(0.2):
        verb = case.chance.choice([["info"], ["info", "--labels"], ["verify", "--threads", "1"]])
        return command(case, [*verb, str(path), *(["--json"] if case.odds(0.4) else [])])
    return explained(case, path)


def explained(case: Case, path: object, engines: Sequence[str] = ENGINES) -> str:
    """What a product does with a model file."""
    chance = case.chance
    image = case.numbers.integers(0, 256, (chance.randint(1, 90), 50, 3), np.uint8)
    try:
        with quiet():
            explainer = whycam.load(str(path), chance.choice(engines), 1)
            found = explainer.explain(
                image if case.odds(0.8) else [image, image[:20]],
                chance.choice([None, -1, -2, 0]),
                chance.choice([None, None, None, *METHODS]),
                tft=chance.choice([None, None, True, whycam.Tft(evaluations=2)]),
                geometry=chance.choice(["input", "image"]),
            )
            explainer.classify(image)
            for each in found if isinstance(found, list) else [found]:
                each.overlay()
    except whycam.WhyCamError as error:
        return refusal(str(error))
    finally:
        whole(case.out)
    return answer(found, explainer.manifest.preprocess.size)
