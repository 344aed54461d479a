"""Compare the threshold sweep inside a graph with the runtime's."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from ..runtime.manifest import Manifest
from ..runtime.search import begin, expected_improvement, features, logit, observe, prior_for
from ..runtime.sweep import Classify, Request, masked_probabilities
from ..runtime.tft import LEAST_PROBABILITY

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
