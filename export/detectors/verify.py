"""Compare an explaining detector with its original network: outputs, gradients, maps, choice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...runtime import cam
from ...runtime.boxes import overlaps
from ...runtime.comparison import (
    EXPORT,
    EXPORT_OF_HALF,
    Comparison,
    Tolerances,
    describe_excess,
    summarise,
)
from ...runtime.errors import ExportError, TargetLayerError, VerificationError
from ...runtime.manifest import Manifest
from ...runtime.manifest_parts import EDGES, Detector
from ...runtime.similarity import relative_difference
from ..graph_runner import GraphRunner
from ..original_model import OriginalModel
from ..verify import FUSING, compare_original_outputs
from ..verify_subject import draw_natural_images
from .reference import DetectorReference

_DRAWS, _DIRECTIONS = 6, 3
_FLAT = 0.1  # as a share of the summed terms: flatter maps are compared less strictly
_SMALLEST = 1e-30  # gradients of saturated scores that float32 rounds to zero
_CROSSED = 0.05  # share of boxes whose edges may be crossed
_FARTHEST = 1000  # sides of the input that an edge may lie from its corner


@dataclass(frozen=True)
class DetectorSubject:
    """An explaining detector, and what it is compared with.

    Attributes:
        runner: the graph, with activations and gradients of each level.
        manifest: of the file.
        reference: the network from its levels on; its outputs are what class gradients begin at,
            the scores and the boxes.
        original: the network before anything was added.
    """

    runner: GraphRunner
    manifest: Manifest
    reference: DetectorReference
    original: OriginalModel

    @property
    def detector(self) -> Detector:
        """How the graph detects."""
        assert self.manifest.detector is not None
        return self.manifest.detector


def verify_detector(
    subject: DetectorSubject, check: Sequence[NDArray[Any]] | None = None
) -> Comparison:
    """Compare on random images, one and two at once, with one and three detections each.

    Args:
        subject: the graph and its reference.
        check: further images, as the graph takes them, on which own outputs are compared as well.

    Returns:
        ``own_outputs`` relative to the largest value; ``probabilities``: scores, absolute, and
        boxes, as shares of the input; ``differences``: gradients of all levels against central
        differences in float64, relative to their norm; ``maps``, absolute.

    Raises:
        VerificationError: something differs too much.
        ExportError: the boxes are none.
        TargetLayerError: all gradients are zero.
    """
    rng = np.random.default_rng(0)
    samples, is_lively = [], False
    for batch, count in ((1, 1), (2, 3)):
        errors, has_terms = _measure_stable(subject, rng, batch, count)
        is_lively = is_lively or has_terms
        samples.append(errors)
        _raise_on_problems(subject, errors, f"batch {batch}, {count} detections")
    if not is_lively:
        names = ", ".join(level.name for level in subject.detector.levels)
        raise TargetLayerError(
            f"on all test images the gradients at the layers {names} are zero, so that all maps "
            "would be empty: name others with --target-layer (--list-layers shows them)"
        )
    for image in check or ():
        samples.append(compare_original_outputs(subject.original, subject.runner, image))
        _raise_on_problems(subject, samples[-1], "an image of yours")
    fusing = {"fusing": max(sample.get("fusing", 0.0) for sample in samples)}
    return summarise("the original file", samples, _limits(subject, fusing))


def _limits(subject: DetectorSubject, errors: Mapping[str, float]) -> Tolerances:
    allowed = EXPORT if subject.manifest.precision == "fp32" else EXPORT_OF_HALF
    fusing = FUSING * errors.get("fusing", 0.0)
    return {**allowed, "own_outputs": max(allowed["own_outputs"], fusing)}


def _raise_on_problems(subject: DetectorSubject, errors: Mapping[str, float], where: str) -> None:
    problems = describe_excess(errors, _limits(subject, errors))
    if problems:
        raise VerificationError(
            f"the exported graph is wrong: {'; '.join(problems)} ({where}). No file was written"
        )


def _measure_stable(
    subject: DetectorSubject, rng: np.random.Generator, batch: int, count: int
) -> tuple[dict[str, float], bool]:
    """Measure on the first drawn image whose gradients do not jump, or on the last one."""
    for _ in range(_DRAWS):
        errors, is_lively = _measure(subject, rng, batch, count)
        if not describe_excess(errors, _limits(subject, errors)):
            break
    return errors, is_lively


def _measure(
    subject: DetectorSubject, rng: np.random.Generator, batch: int, count: int
) -> tuple[dict[str, float], bool]:
    manifest, detector = subject.manifest, subject.detector
    image = draw_natural_images(rng, batch, manifest)
    feeds, _ = subject.reference.run(image)
    ends = subject.reference.head(feeds)
    target = _choose_targets(ends[1], rng, count)
    names = list(subject.runner.tensors)
    outputs = subject.runner.run({"image": image, "target": target}, names)
    if not np.array_equal(outputs["detections"], target):
        raise VerificationError(
            "the exported graph is wrong: it explains other candidates than requested. No file "
            "was written"
        )
    _check_boxes(ends[2], manifest)
    side = float(max(manifest.preprocess.size))
    scale = max(side, float(np.abs(ends[2]).max()))
    errors = {
        "probabilities": float(
            np.maximum(
                np.abs(outputs["candidate_scores"] - ends[1]).max(),
                np.abs(outputs["candidate_boxes"] - ends[2]).max() / scale,
            )
        ),
        "differences": _compare_gradients(subject, feeds, target, outputs, rng),
        "maps": _compare_maps(subject, outputs),
    }
    if detector.ranks:
        _check_ranks(subject, image, outputs)
    errors |= compare_original_outputs(subject.original, subject.runner, image)
    levels = range(len(detector.levels))
    return errors, any(outputs[f"gradients_{index}"].any() for index in levels)


def _choose_targets(
    scores: NDArray[Any], rng: np.random.Generator, count: int
) -> NDArray[np.int64]:
    """Choose the best candidate of each image with its best class, and others at random."""
    batch, candidates, classes = scores.shape
    best = scores.reshape(batch, -1).argmax(1)
    first = np.stack(np.divmod(best, classes), 1)[:, None]
    others = np.stack(
        [
            rng.integers(0, candidates, (batch, count - 1)),
            rng.integers(0, classes, (batch, count - 1)),
        ],
        2,
    )
    return np.concatenate([first, others], 1).astype(np.int64)


def _check_boxes(boxes: NDArray[Any], manifest: Manifest) -> None:
    height, width = manifest.preprocess.size
    crossed = float((boxes[..., 2:] < boxes[..., :2]).mean())
    largest = float(np.abs(boxes).max())
    if crossed > _CROSSED or not 2 <= largest <= _FARTHEST * max(height, width):
        assert manifest.detector is not None
        why = (
            f"{crossed:.0%} of them have edges that are crossed"
            if crossed > _CROSSED
            else f"the largest number of all of them is {largest:.2g}, in an image of {width} x "
            f"{height} pixels"
        )
        raise ExportError(
            f"read as the format {manifest.detector.format} the outputs hold no boxes in pixels: "
            f"{why}. Name the right format with --format, or export the network with decoded boxes"
        )


def _compare_gradients(
    subject: DetectorSubject,
    feeds: dict[str, NDArray[Any]],
    target: NDArray[np.int64],
    outputs: Mapping[str, NDArray[Any]],
    rng: np.random.Generator,
) -> float:
    """Compare gradients with central differences, relative to the gradient's norm."""
    detector, worst = subject.detector, 0.0
    images = np.arange(len(target))[:, None]
    levels = range(len(detector.levels))
    gradients = [np.asarray(outputs[f"gradients_{index}"], np.float64) for index in levels]
    for _ in range(_DIRECTIONS):
        directions = subject.reference.draw_direction(feeds, rng)
        if detector.score == "class":
            change = subject.reference.differentiate(feeds, directions, 0)
            expected = change[images, target[..., 0], target[..., 1]]
        else:
            change = subject.reference.differentiate(feeds, directions, 2)
            edge = EDGES.index(detector.score)
            expected = change[images, target[..., 0], edge] * (-1.0 if edge < 2 else 1.0)
        actual, squares = np.zeros(target.shape[:2]), np.zeros(target.shape[:2])
        for gradient, direction in zip(gradients, directions, strict=True):
            terms = gradient * direction[:, None]
            actual += terms.sum((2, 3, 4))
            squares += (terms**2).sum((2, 3, 4))
        scale = np.maximum(np.sqrt(squares), np.abs(expected) / 4)
        errors = np.abs(actual - expected) / np.maximum(scale, _SMALLEST)
        worst = float(np.maximum(worst, errors.max()))  # which keeps NaN
    return worst


def _compare_maps(subject: DetectorSubject, outputs: Mapping[str, NDArray[Any]]) -> float:
    """Compare maps with the runtime's formulas on the graph's activations and gradients."""
    manifest, detector, worst = subject.manifest, subject.detector, 0.0
    pairs = [
        (outputs[f"activations_{index}"], outputs[f"gradients_{index}"])
        for index in range(len(detector.levels))
    ]
    for method in manifest.map_methods:
        raws = [cam.raw_map(method, a, g) for a, g in pairs]
        total = cam.add_levels(raws)
        maps = outputs[manifest.map_output(method) or ""]
        differences = np.abs(maps - cam.finish(total, detector.map_size)).max((-2, -1))
        terms = [cam.resize(np.abs(g * a[:, None]).sum(2), detector.map_size) for a, g in pairs]
        largest = np.maximum(sum(terms).max((-2, -1)), np.finfo(np.float32).tiny)
        share = np.ptp(total, axis=(-2, -1)) / largest
        scaled = differences * np.minimum(1.0, share / _FLAT)
        worst = float(np.maximum(worst, scaled.max()))
    return worst


def _check_ranks(
    subject: DetectorSubject, image: NDArray[Any], outputs: Mapping[str, NDArray[Any]]
) -> None:
    """Compare the scores of the best detections with suppression outside the graph."""
    detector, count = subject.detector, 3
    ranks = np.full((len(image), count, 2), -1, np.int64)
    found = subject.runner.run({"image": image, "target": ranks}, ["detections", "scores"])
    for row, (scores, boxes) in enumerate(
        zip(outputs["candidate_scores"], outputs["candidate_boxes"], strict=True)
    ):
        best = scores.max(1)
        chosen = _suppress(best, scores.argmax(1), boxes.astype(np.float64), detector, count)
        expected = np.zeros(count, np.float32)
        expected[: len(chosen)] = best[chosen]
        if relative_difference(found["scores"][row], expected) > EXPORT["probabilities"]:
            raise VerificationError(
                f"the exported graph is wrong: its best detections have the scores "
                f"{found['scores'][row].tolist()}, and suppression outside it {expected.tolist()}. "
                "No file was written"
            )


def _suppress(
    best: NDArray[Any], classes: NDArray[Any], boxes: NDArray[Any], detector: Detector, count: int
) -> list[int]:
    """Choose the best candidates one after the other, each unless it overlaps a chosen one."""
    chosen: list[int] = []
    for index in np.argsort(-best, kind="stable"):
        if best[index] <= detector.min_score or len(chosen) == count:
            break
        same = boxes[[other for other in chosen if classes[other] == classes[index]]]
        if detector.iou is None or not (overlaps(boxes[index][None], same) > detector.iou).any():
            chosen.append(int(index))
    return chosen
