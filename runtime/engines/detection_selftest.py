"""Check a detector in an engine against the export's reference answers, with no torch at hand."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..comparison import ENGINE, Tolerances
from ..errors import EngineError
from ..manifest import Manifest
from ..manifest_parts import DetectionReference
from .selftest import PATTERNS, make_input

Run = Callable[[Mapping[str, NDArray[Any]], Sequence[str]], Mapping[str, NDArray[Any]]]
_BLOCKS = 20  # rows and columns of a map that is kept, at most
_SPREAD = 3  # candidates of a pattern, beside the best: of a pyramid, one of each level at least
_BOX = 2e-3  # by which edges may differ, as a share of the input's size
_SHAKEN = 1e-4  # change of the input, by which an answer may change by a quarter of the tolerance
_OUTPUTS = ("detections", "scores", "boxes", "maps")


def record_references(run: Run, manifest: Manifest) -> tuple[DetectionReference, ...]:
    """Record answers for the test patterns: of the best candidate, and of some from every level.

    Those that hardly any change of the image moves are kept: the others say nothing of an engine.

    Args:
        run: runs the graph, see ``Engine.run``.
        manifest: of the graph.
    """
    detector = manifest.detector
    assert detector is not None
    references = []
    for pattern in range(PATTERNS):
        image = make_input(manifest, pattern)
        anything = np.zeros((1, 1, 2), np.int64)
        found = run({"image": image, "target": anything}, ("candidate_scores",))
        scores = found["candidate_scores"][0]
        places = np.linspace(0, detector.candidates - 1, 2 * _SPREAD + 1)[1::2].astype(int)
        chosen = dict.fromkeys([int(scores.max(1).argmax()), *map(int, places)])
        target = np.array([[[place, scores[place].argmax()] for place in chosen]], np.int64)
        answers = _answers(run, image, target)
        shaken = image + np.asarray(_SHAKEN * np.sin(np.arange(image.size)), image.dtype).reshape(
            image.shape
        )
        for place, (answer, other) in enumerate(
            zip(answers, _answers(run, shaken, target), strict=True)
        ):
            limit = {name: value / 4 for name, value in ENGINE.items()}
            if max(answer[2]) > 0 and _problem(answer, other, manifest, limit, _BOX / 4) is None:
                candidate, index = map(int, target[0, place])
                references.append(DetectionReference(pattern, candidate, index, *answer))
    return tuple(references)


def targets_of(manifest: Manifest, pattern: int) -> NDArray[np.int64]:
    """List what the references of a test pattern explain, int64 [1, m, 2], or one candidate."""
    assert manifest.detector is not None
    mine = [one for one in manifest.detector.references if one.pattern == pattern]
    pairs = [[one.candidate, one.index] for one in mine] or [[0, 0]]
    return np.array([pairs], np.int64)


def find_problem(run: Run, manifest: Manifest, allowed: Tolerances = ENGINE) -> str | None:
    """Compare an engine with the reference answers; None where it reproduces them.

    Args:
        run: of the engine, see ``Engine.run``.
        manifest: of the detector.
        allowed: by which score and map may differ; boxes in proportion to the map.
    """
    detector = manifest.detector
    assert detector is not None
    for pattern in sorted({reference.pattern for reference in detector.references}):
        mine = [one for one in detector.references if one.pattern == pattern]
        target = targets_of(manifest, pattern)
        answers = _answers(run, make_input(manifest, pattern), target)
        for reference, answer in zip(mine, answers, strict=True):
            expected = reference.score, reference.box, reference.map
            edges = _BOX * allowed["maps"] / ENGINE["maps"]
            problem = _problem(answer, expected, manifest, allowed, edges)
            if problem is not None:
                return f"test pattern {pattern}, candidate {reference.candidate}: {problem}"
    return None


_Answer = tuple[float, tuple[float, float, float, float], tuple[float, ...]]


def _answers(run: Run, image: NDArray[Any], target: NDArray[np.int64]) -> list[_Answer]:
    """Return score, box and reduced map of each target."""
    found = run({"image": image, "target": target}, _OUTPUTS)
    if not all(np.isfinite(found[name]).all() for name in _OUTPUTS):
        raise EngineError("the network returned NaN or infinite values for a test pattern")
    answers: list[_Answer] = []
    for score, box, values in zip(*(found[name][0] for name in _OUTPUTS[1:]), strict=True):
        left, top, right, bottom = map(float, box)
        small = tuple(float(value) for value in _reduce(values).ravel())
        answers.append((float(score), (left, top, right, bottom), small))
    return answers


def _reduce(values: NDArray[np.float32]) -> NDArray[np.float64]:
    """Average a map [h, w] over blocks, at most ``_BLOCKS`` in each direction."""
    means = values.astype(np.float64)
    for axis, side in enumerate(values.shape):
        starts = np.linspace(0, side, min(side, _BLOCKS) + 1).astype(int)
        counts = np.diff(starts).reshape((-1, 1) if axis == 0 else (1, -1))
        means = np.add.reduceat(means, starts[:-1], axis) / counts
    return means


def _problem(
    answer: _Answer,
    expected: _Answer,
    manifest: Manifest,
    allowed: Mapping[str, float],
    edges: float,
) -> str | None:
    apart = abs(answer[0] - expected[0])
    if apart > allowed["probabilities"]:
        return f"the score differs by {apart:.1e} (at most {allowed['probabilities']:g})"
    size = max(manifest.preprocess.size)
    moved = float(np.abs(np.subtract(answer[1], expected[1])).max()) / size
    if moved > edges:
        return f"the box differs by {moved:.1e} of the input's size (at most {edges:g})"
    if len(answer[2]) != len(expected[2]):
        return "the map has another size"
    differs = float(np.abs(np.subtract(answer[2], expected[2])).max())
    if differs > allowed["maps"]:
        return f"the map differs by {differs:.1e} (at most {allowed['maps']:g})"
    return None
