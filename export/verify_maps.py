"""Compare an explaining graph's finished maps, thresholds and preprocessing with the runtime's."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..runtime import cam
from ..runtime.engines import selftest
from ..runtime.manifest import Manifest
from ..runtime.preprocess import crop_resized, normalise
from ..runtime.search import begin, expected_improvement, features, logit, observe, prior_for
from ..runtime.sweep import Classify, Request, make_choice, masked_probabilities
from ..runtime.tft import LEAST_PROBABILITY
from .reference_scores import compute_probabilities
from .verify_subject import OUTPUTS_OF_ATTENTION, Subject

# Maps whose range is a smaller share of the summed terms are compared less strictly, for min-max
# normalisation magnifies their rounding.
_FLAT = 0.1


def measure_maps(subject: Subject, outputs: Mapping[str, NDArray[Any]]) -> float:
    """Compare the file's maps with the runtime's formulas on the file's raw outputs."""
    manifest = subject.manifest
    worst = 0.0
    for method in manifest.map_methods:
        raw, terms = _raw_map(subject, method, outputs)
        maps = outputs[manifest.map_output(method) or ""]
        differences = np.abs(maps - cam.finish(raw, subject.size)).max((-2, -1))
        largest = np.maximum(terms.max((-2, -1)), np.finfo(np.float32).tiny)
        share = np.ptp(raw, axis=(-2, -1)) / largest
        worst = max(worst, float((differences * np.minimum(1.0, share / _FLAT)).max()))
    return worst


def _raw_map(
    subject: Subject, method: cam.Method, outputs: Mapping[str, NDArray[Any]]
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Compute a method's raw map, and its summed absolute terms, [N, k, h, w] each.

    A map's rounding error is proportional to the summed terms, which may cancel, as where a head
    ignores the scale of its activations.
    """
    if method == "legrad":
        assert subject.attention is not None
        relevance = cam.attention_relevance(outputs[OUTPUTS_OF_ATTENTION[1]])
        raw = subject.attention.attention.take(relevance)
        return raw, raw
    weights = outputs.get("ablation_weights") if method == "ablation" else None
    raw = cam.raw_map(method, outputs["activations"], outputs["gradients"], weights)
    if subject.earlier and method == subject.manifest.map_method:
        names = [name_outputs_of_layer(index) for index in range(len(subject.earlier))]
        before = [cam.raw_map(method, outputs[a], outputs[g]) for a, g in names]
        fused = cam.fuse([*before, raw])
        return fused, fused
    terms = selftest.absolute_map(method, outputs["activations"], outputs["gradients"], weights)
    return raw, terms


def name_outputs_of_layer(index: int) -> tuple[str, str]:
    """Name the outputs with a fused layer's activations and gradients."""
    return f"activations_{index}", f"gradients_{index}"


def measure_sweep(
    subject: Subject, view: NDArray[Any], outputs: Mapping[str, NDArray[Any]]
) -> float:
    """Compare the file's sweep with the runtime's on the original network and the file's maps.

    Returns the largest difference of a probability; infinite where thresholds or thresholded maps
    do not follow from the file's outputs.
    """
    manifest = subject.manifest
    classes = outputs["targets"]

    def classify(images: NDArray[np.float32]) -> NDArray[np.float32]:
        _, raw = subject.reference.forward32(images)
        return compute_probabilities(raw, manifest.output_heads).astype(np.float32)

    worst = 0.0
    for i, j in np.ndindex(*classes.shape):
        probability = float(outputs["probabilities"][i, classes[i, j]])
        request = Request(
            view[i],
            outputs["original_maps"][i, j],
            int(classes[i, j]),
            probability,
            manifest.layout,
        )
        rpi, masked = outputs["rpi"][i, j], outputs["masked_probabilities"][i, j]
        worst = max(worst, compare_masked_probabilities(classify, request, rpi, masked, manifest))
        choice = make_choice(request.map, rpi, masked, manifest.tft)
        same = np.float32(choice.threshold) == outputs["thresholds"][i, j]
        if not same or not np.array_equal(choice.map, outputs["maps"][i, j]):
            return math.inf
    return worst


def measure_pixels(images: NDArray[np.uint8], view: NDArray[Any], manifest: Manifest) -> float:
    """Compare preprocessing in the graph with Pillow's, in units of 1/255, but for 0.1 % of pixels.

    Those may round either way, or lie where Pillow resizes in the other order.
    """
    spec = manifest.preprocess
    cropped = np.stack([crop_resized(image, spec)[0] for image in images])
    expected = normalise(cropped, spec, manifest.layout)
    step = np.asarray(spec.std, np.float32) * 255
    if manifest.layout == "NCHW":
        step = step[:, None, None]
    return float(np.quantile(np.abs(view - expected) * step, 0.999))


_SWEEP_BATCH = 16


_NEAR_TIE = 1e-3  # of expected improvements, in logits: float32 leaves as much of a logit


def compare_masked_probabilities(
    classify: Classify,
    request: Request,
    rpi: NDArray[np.float32],
    masked: NDArray[np.float32],
    manifest: Manifest,
) -> float:
    """Compute the largest difference of one map's masked probabilities.

    Args:
        classify: runs the original network.
        request: the image, map and class.
        rpi, masked: the graph's outputs, [T]; NaN where it tried no threshold.
        manifest: of the file.

    Returns:
        The difference; infinite where the graph tried other thresholds than it should.
    """
    tried = ~np.isnan(rpi)
    (expected,) = masked_probabilities(classify, [request], manifest.tft, _SWEEP_BATCH)
    if not np.array_equal(tried, ~np.isnan(masked)) or not _are_expected(
        tried, request, masked, manifest
    ):
        return math.inf
    increase = np.maximum(expected - np.float32(request.probability), 0)
    related = max(request.probability, LEAST_PROBABILITY)
    by_rpi = np.abs(rpi * related - increase)[tried].max()
    return float(max(by_rpi, np.abs(masked - expected)[tried].max()))


def _are_expected(
    tried: NDArray[np.bool_],
    request: Request,
    masked: NDArray[np.float32],
    manifest: Manifest,
) -> bool:
    """Tell whether a search on the graph's answers tries these thresholds, but for near ties."""
    tft = manifest.tft
    if tft.evaluations is None:
        return bool(tried.all())
    if tried.sum() != min(tft.evaluations, len(tried)):
        return False
    assert manifest.map_method is not None
    prior = prior_for(manifest.priors, manifest.map_method, tft)
    whole = np.asarray(request.probability, np.float32)
    belief = begin(prior, features(request.map, whole))
    for _ in range(int(tried.sum())):
        promised = expected_improvement(belief)
        step = int(np.where(tried, promised, -np.inf).argmax())
        if promised.max() - promised[step] > _NEAR_TIE * (1 + abs(promised.max())):
            return False
        one_hot = np.eye(len(tried), dtype=np.float32)[step]
        belief = observe(belief, one_hot, logit(masked[step]) - logit(whole))
    return True
