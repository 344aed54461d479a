"""Time the stages of one explanation: decode, preprocess, engine, map, sweep, overlay."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from ..box_drawing import draw_detections
from ..detect import detect_prepared, find_boxes
from ..detection_plan import DetectionPlan
from ..explainer import Explainer
from ..explanation import Explanation
from ..pipeline import classify, prepare
from ..pixels import read_pixels
from ..request import RequestPlan

STAGES = ("decode", "preprocess", "engine", "map", "sweep", "overlay")
# ANSWER: from the prepared input to the finished map, or to the probabilities; networks, engines
# and other tools are compared by it. WHOLE: from the image file to the overlay.
ANSWER, WHOLE = "answer", "whole"
# Stages by the names of the steps in ``pipeline``.
_STEPS = {"infer": "engine", "map": "map", "threshold": "sweep"}


class _Stopwatch:
    """Measures stages that follow one another; ``seconds`` holds each stage's time."""

    def __init__(self) -> None:
        self._last = time.perf_counter()
        self.seconds: dict[str, float] = {}

    def mark(self, stage: str) -> None:
        """Record the time since the stage before as this stage's."""
        now = time.perf_counter()
        self.seconds[stage] = now - self._last
        self._last = now

    def total(self, *stages: str) -> float:
        """Sum the seconds of some stages, or of all."""
        return sum(self.seconds[stage] for stage in stages or self.seconds)


def explain_in_stages(
    explainer: Explainer, sources: Sequence[Any], plan: RequestPlan
) -> tuple[dict[str, float], list[Explanation]]:
    """Explain the most probable class of images by the steps that ``explain`` takes, timed.

    Args:
        explainer: runs the network.
        sources: images, as ``read_pixels`` takes them.
        plan: of one method, with TFT or without.

    Returns:
        Seconds of each of ``STAGES`` but ``sweep`` without TFT, of ``ANSWER`` and ``WHOLE``; and
        the explanations. A sweep inside the graph is part of ``engine``.
    """
    watch = _Stopwatch()
    images = [read_pixels(source, explainer.manifest.preprocess) for source in sources]
    watch.mark("decode")
    prepared = prepare(images, explainer.manifest)
    watch.mark("preprocess")
    results = explainer.explain_prepared(
        prepared, [[-1]] * len(images), plan, mark=lambda step: watch.mark(_STEPS[step])
    )
    explanations = [one for by_method in results for (one,) in by_method.values()]
    for one in explanations:
        one.overlay()
    watch.mark("overlay")
    answer = watch.total("engine", "map", "sweep")
    whole = watch.total()
    if all(one.settings is None for one in plan.methods):
        del watch.seconds["sweep"]
    return {**watch.seconds, ANSWER: answer, WHOLE: whole}, explanations


def detect_in_stages(
    explainer: Explainer, sources: Sequence[Any], plan: DetectionPlan
) -> dict[str, float]:
    """Detect and explain by the steps that ``Explainer.detect`` takes, timed.

    Args:
        explainer: of a detector.
        sources: images, as ``read_pixels`` takes them.
        plan: of one method, with TFT or without.

    Returns:
        Seconds as ``explain_in_stages`` returns them; the overlay has all boxes.
    """
    watch = _Stopwatch()
    images = [read_pixels(source, explainer.manifest.preprocess) for source in sources]
    watch.mark("decode")
    prepared = prepare(images, explainer.manifest)
    watch.mark("preprocess")
    found = detect_prepared(explainer.model, prepared, plan, lambda step: watch.mark(_STEPS[step]))
    for one in found:
        for detections in one.by_method.values():
            draw_detections(one.image, detections)
    watch.mark("overlay")
    answer, whole = watch.total("engine", "map", "sweep"), watch.total()
    if all(one.settings is None for one in plan.request.methods):
        del watch.seconds["sweep"]
    return {**watch.seconds, ANSWER: answer, WHOLE: whole}


def classify_in_stages(explainer: Explainer, sources: Sequence[Any]) -> dict[str, float]:
    """Time plain classification, or detection: seconds by stage, ``ANSWER`` and ``WHOLE``."""
    watch = _Stopwatch()
    images = [read_pixels(source, explainer.manifest.preprocess) for source in sources]
    watch.mark("decode")
    prepared = prepare(images, explainer.manifest)
    watch.mark("preprocess")
    if explainer.manifest.detector is None:
        classify(explainer.model, prepared.inputs)
    else:
        find_boxes(explainer.model, prepared.inputs)
    watch.mark("engine")
    return {**watch.seconds, ANSWER: watch.total("engine"), WHOLE: watch.total()}
