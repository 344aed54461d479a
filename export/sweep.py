"""Record TFT in a graph: a sweep of all thresholds, or a search (paper section 4.1)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ..runtime.search import Prior, begin, features, logit, next_step, observe
from ..runtime.tft import (
    Tft,
    best,
    cut_values,
    mask_of,
    rank_positions,
    relative_probability_increase,
    threshold_map,
)
from .recorder import Namespace
from .tensors import Tensor

# Masks [N, k, T, H, W] to the class's probability under each, [N, k, T].
Evaluate = Callable[[Tensor], Tensor]

_HALVINGS = 28  # 2 / 2^28 is less than what float32 tells apart above 1/16


def record_sweep(maps: Tensor, probability: Tensor, tft: Tft, evaluate: Evaluate) -> list[Tensor]:
    """Record algorithm 1 of the paper: try every threshold.

    Args:
        maps: finished, [N, k, H, W].
        probability: of the explained classes, [N, k].
        tft: the settings.
        evaluate: runs the network on masked images.

    Returns:
        Thresholded maps [N, k, H, W], tau* [N, k], rpi and p_c of the masked images [N, k, T].
    """
    cuts = cut_values(maps, tft.taus, tft.thresholds, by_bisection)
    cut_maps = threshold_map(maps[:, :, None], cuts)
    masked = evaluate(mask_of(cut_maps, tft.mask))
    rpi = relative_probability_increase(masked, probability)
    threshold, cut = best(rpi, cuts, tft.taus)
    return [threshold_map(maps, cut), threshold, rpi, masked]


def record_search(
    maps: Tensor, probability: Tensor, tft: Tft, prior: Prior, evaluate: Evaluate
) -> list[Tensor]:
    """Record a search, which tries some thresholds one after the other; outputs NaN elsewhere."""
    steps = len(tft.taus)
    belief = begin(prior, features(maps, probability))
    masked = cuts = 0.0 * belief.mean
    for _ in range(min(tft.evaluations or steps, steps)):
        step = next_step(belief)  # one-hot [N, k, T]
        cut = _cut_of(maps, step, tft)
        mask = mask_of(threshold_map(maps, cut), tft.mask)
        probability_masked = evaluate(mask[:, :, None])[..., 0]
        masked, cuts = masked + step * probability_masked[..., None], cuts + step * cut[..., None]
        belief = observe(belief, step, logit(probability_masked) - logit(probability))
    return _tried_outputs(maps, cuts, masked, probability, belief.tried, tft)


def _tried_outputs(
    maps: Tensor, cuts: Tensor, masked: Tensor, probability: Tensor, tried: Tensor, tft: Tft
) -> list[Tensor]:
    """Record the outputs of a sweep for the thresholds tried; NaN for the others."""
    xp: Namespace = maps.recorder.xp
    rpi = xp.where(tried, relative_probability_increase(masked, probability), -1.0)
    threshold, cut = best(rpi, cuts, tft.taus)
    untried = [xp.where(tried, values, float("nan")) for values in (rpi, masked)]
    return [threshold_map(maps, cut), threshold, *untried]


def _cut_of(maps: Tensor, step: Tensor, tft: Tft) -> Tensor:
    """Record the cut value of one threshold a map: [N, k, H, W], one-hot [N, k, T] to [N, k]."""
    constant = maps.recorder.constant
    if tft.thresholds == "value":
        return (step * constant(np.asarray(tft.taus, np.float32))).sum(-1)
    pixels = maps.shape[-2] * maps.shape[-1]
    assert isinstance(pixels, int)
    positions = constant(np.asarray(rank_positions(tft.taus, pixels), np.float32))
    position = (step * positions).sum(-1, keepdims=True)
    return _order_statistics(maps.reshape((*maps.shape[:-2], pixels)), position)[..., 0]


def by_bisection(values: Tensor, positions: Sequence[int]) -> Tensor:
    """Record ``runtime.tft.by_sorting`` for values in [0, 1], without sorting."""
    position = values.recorder.constant(np.asarray(list(positions), np.float32))
    return _order_statistics(values, position)


def _order_statistics(values: Tensor, position: Tensor) -> Tensor:
    """Record the values at positions of the sorted order: [..., P], [..., T] to [..., T].

    TensorRT sorts at most 3840 numbers, so this bisects: halve the interval in which the
    value lies until only neighbouring numbers are left, then take the smallest
    value in it.
    """
    xp: Namespace = values.recorder.xp
    low = 0.0 * values[..., :1] + 0.0 * position
    high = low + 2.0
    for _ in range(_HALVINGS):
        middle = 0.5 * (low + high)
        below = xp.astype(values[..., None, :] < middle[..., None], values.dtype).sum(-1)
        enough = below <= position
        low, high = xp.where(enough, middle, low), xp.where(enough, high, middle)
    within = xp.where(values[..., None, :] >= low[..., None], values[..., None, :], 2.0)
    return xp.min(within, axis=-1)
