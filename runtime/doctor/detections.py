"""Let a detector answer for images, as ``job.answers`` lets classifiers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import cam
from ..bench.stages import ANSWER, classify_in_stages, detect_in_stages
from ..cam import Method
from ..detection_plan import plan_detection
from ..explainer import Explainer
from ..pipeline import prepare
from ..pixels import Pixels
from ..timing import run_interleaved


def explain_candidates(
    explainer: Explainer, images: Sequence[Pixels], targets: Sequence[int] | None
) -> tuple[tuple[int, ...], dict[str, NDArray[Any]]]:
    """Explain one candidate of each image, by every method of the file.

    Args:
        explainer: of a detector.
        images: from ``read_pixels``.
        targets: for each image a number of ``scores.ravel()``; None: the best one.

    Returns:
        These numbers; and ``probabilities``, the scores of all candidates and classes, and
        ``map.METHOD``, each as ``<image>.<name>``.
    """
    manifest, run = explainer.manifest, explainer.engine.run
    arrays: dict[str, NDArray[Any]] = {}
    chosen = []
    for index, image in enumerate(images):
        inputs = prepare([image], manifest).inputs
        feeds = {"image": inputs, "target": np.zeros((1, 1, 2), np.int64)}
        scores = run(feeds, ["candidate_scores"])["candidate_scores"][0]
        number = int(scores.argmax()) if targets is None else targets[index]
        feeds["target"] = np.array([[_pair(number, manifest.num_classes)]], np.int64)
        outputs = {method: str(manifest.map_output(method)) for method in manifest.methods}
        found = run(feeds, list(outputs.values()))
        size = manifest.size_of(inputs.shape)
        arrays[f"{index}.probabilities"] = scores.ravel()
        for method, name in outputs.items():
            arrays[f"{index}.map.{method}"] = np.asarray(cam.finish(found[name], size))[0, 0]
        chosen.append(number)
    return tuple(chosen), arrays


def time_detections(
    explainer: Explainer, image: Pixels, target: int, method: Method, rounds: int, warm_up: int
) -> dict[str, tuple[float, ...]]:
    """Measure detection, and one detection explained, in turn: milliseconds of each run."""
    pair = _pair(target, explainer.manifest.num_classes)
    plan = plan_detection(explainer.manifest, pair, method, None)
    calls: dict[str, Callable[[], dict[str, float]]] = {
        "classification": lambda: classify_in_stages(explainer, [image]),
        "explanation": lambda: detect_in_stages(explainer, [image], plan),
    }
    samples = run_interleaved(calls, rounds, warm_up)
    return {name: tuple(1e3 * one[ANSWER] for one in runs) for name, runs in samples.items()}


def _pair(number: int, classes: int) -> tuple[int, int]:
    """Return candidate and class of a number."""
    return number // classes, number % classes
