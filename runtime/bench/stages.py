"""One explanation with a stopwatch: decode, preprocess, engine, map, sweep, overlay."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..engines.base import Engine
from ..engines.interface import Arrays
from ..explainer import Explainer
from ..explanation import Explanation
from ..images import Picture, read_picture
from ..manifest import Manifest
from ..preprocess import Placement
from ..route import Route
from ..sweep import Choice, Request, choice_of, sweep
from ..tft import Tft

STAGES = ("decode", "preprocess", "engine", "map", "sweep", "overlay")
# From the prepared input to the finished map, or to the probabilities: what networks, engines and
# other tools are compared by. And everything, from the picture file to the overlay.
ANSWER, WHOLE = "answer", "whole"


class ClockedEngine:
    """An engine that counts the seconds spent in it, ``seconds``, since it was made."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.name = engine.name
        self.description = engine.description
        self.reason = engine.reason
        self.seconds = 0.0

    def run(self, feeds: Arrays, outputs: Sequence[str]) -> dict[str, Any]:
        """See ``engine.Engine.run``."""
        begin = time.perf_counter()
        try:
            return self._engine.run(feeds, outputs)
        finally:
            self.seconds += time.perf_counter() - begin


def explain_in_stages(
    explainer: Explainer, sources: Sequence[Any], way: Route
) -> tuple[dict[str, float], list[Explanation]]:
    """Explain the most probable class of pictures as ``Explainer.explain`` does, with a stopwatch.

    Args:
        explainer: over a ``ClockedEngine``.
        sources: pictures, as ``read_picture`` takes them.
        way: from ``route``, with TFT or without.

    Returns:
        Seconds of each of ``STAGES`` but ``sweep`` without TFT, of ``ANSWER`` and ``WHOLE``; and
        the explanations. A sweep inside the graph is part of ``engine``.
    """
    engine = explainer.engine
    assert isinstance(engine, ClockedEngine)
    begin = time.perf_counter()
    pictures = [read_picture(source) for source in sources]
    decoded = time.perf_counter()
    images, placements = explainer.inputs(pictures)
    prepared = time.perf_counter()
    before = engine.seconds
    target = np.full((len(images), 1), -1, np.int64)
    own: dict[str, Any] = {}
    if way.swept:
        own = explainer.graph_outputs(images, target, way.outputs, swept=True)
        probabilities, targets = own["probabilities"], own["targets"]
        maps = own[way.maps or ""]
    else:
        probabilities, targets, by_method = explainer.maps(images, target, [way.method])
        maps = by_method[way.method]
    in_engine = engine.seconds - before
    mapped = time.perf_counter()
    layout = explainer.manifest.layout
    requests = [
        Request(
            image, maps[i, 0], int(targets[i, 0]), float(probabilities[i, targets[i, 0]]), layout
        )
        for i, image in enumerate(images)
    ]
    choices = _choices(explainer, requests, own, way)
    answered = time.perf_counter()
    explanations = [
        _explanation(explainer.manifest, way, *each)
        for each in zip(requests, choices, pictures, placements, strict=True)
    ]
    for explanation in explanations:
        explanation.overlay()
    end = time.perf_counter()
    seconds = {
        "decode": decoded - begin,
        "preprocess": prepared - decoded,
        "engine": in_engine,
        "map": mapped - prepared - in_engine,
        "sweep": answered - mapped,
        "overlay": end - answered,
        ANSWER: answered - prepared,
        WHOLE: end - begin,
    }
    if way.settings is None:
        del seconds["sweep"]
    return seconds, explanations


def classify_in_stages(explainer: Explainer, sources: Sequence[Any]) -> dict[str, float]:
    """Seconds of plain classification: the stages it has, ``ANSWER`` and ``WHOLE``."""
    begin = time.perf_counter()
    pictures = [read_picture(source) for source in sources]
    decoded = time.perf_counter()
    images, _ = explainer.inputs(pictures)
    prepared = time.perf_counter()
    explainer.probabilities(images)
    end = time.perf_counter()
    return {
        "decode": decoded - begin,
        "preprocess": prepared - decoded,
        "engine": end - prepared,
        ANSWER: end - prepared,
        WHOLE: end - begin,
    }


def _choices(
    explainer: Explainer, requests: list[Request], own: dict[str, NDArray[Any]], way: Route
) -> Sequence[Choice | None]:
    settings = way.settings
    if not isinstance(settings, Tft):
        return [None] * len(requests)
    if not way.swept:
        return sweep(explainer.probabilities, requests, settings, explainer.batch, way.prior)
    return [
        choice_of(request.map, own["rpi"][i, 0], own["masked_probabilities"][i, 0], settings)
        for i, request in enumerate(requests)
    ]


def _explanation(
    manifest: Manifest,
    way: Route,
    request: Request,
    choice: Choice | None,
    picture: Picture,
    placement: Placement,
) -> Explanation:
    """As far as an overlay needs it."""
    return Explanation(
        index=request.target,
        label=manifest.label(request.target),
        probability=request.probability,
        task=manifest.task,
        method=way.method,
        map=request.map if choice is None else choice.map,
        original_map=request.map,
        picture=picture,
        placement=placement,
        threshold=None if choice is None else choice.threshold,
        cut=0.0 if choice is None else choice.cut,
    )
