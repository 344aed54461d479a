"""TFT inside the graph: the sweep of all thresholds, or a search (paper section 4.1)."""

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
from .recorder import Tensor

# Masks [N, k, T, H, W] to the class's probability under each, [N, k, T].
Evaluate = Callable[[Tensor], Tensor]

_HALVINGS = 28  # 2 / 2^28 is less than what float32 tells apart above 1/16


def record_sweep(maps: Tensor, probability: Tensor, tft: Tft, evaluate: Evaluate) -> list[Tensor]:
    """Algorithm 1 of the paper.

    Args:
        maps: finished, [N, k, H, W].
        probability: of the explained classes, [N, k].
        tft: the reading.
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
    """The same of the thresholds that a search tries, one after the other; NaN elsewhere."""
    steps = len(tft.taus)
    belief = begin(prior, features(maps, probability))
    masked = cuts = 0.0 * belief.mean
    for _ in range(min(tft.forwards or steps, steps)):
        step = next_step(belief)  # one-hot [N, k, T]
        cut = _cut_of(maps, step, tft)
        mask = mask_of(threshold_map(maps, cut), tft.mask)
        seen = evaluate(mask[:, :, None])[..., 0]
        masked, cuts = masked + step * seen[..., None], cuts + step * cut[..., None]
        belief = observe(belief, step, logit(seen) - logit(probability))
    return _of_tried(maps, cuts, masked, probability, belief.tried, tft)


def _of_tried(
    maps: Tensor, cuts: Tensor, masked: Tensor, probability: Tensor, tried: Tensor, tft: Tft
) -> list[Tensor]:
    """The outputs of a sweep where only some thresholds count; NaN for the others."""
    xp = maps.recorder.xp
    rpi = xp.where(tried, relative_probability_increase(masked, probability), -1.0)
    threshold, cut = best(rpi, cuts, tft.taus)
    untried = [xp.where(tried, values, float("nan")) for values in (rpi, masked)]
    return [threshold_map(maps, cut), threshold, *untried]


def _cut_of(maps: Tensor, step: Tensor, tft: Tft) -> Tensor:
    """Where one threshold of each map cuts it: maps [N, k, H, W], one-hot [N, k, T] to [N, k]."""
    constant = maps.recorder.constant
    if tft.thresholds == "value":
        return (step * constant(np.asarray(tft.taus, np.float32))).sum(-1)
    pixels = maps.shape[-2] * maps.shape[-1]
    assert isinstance(pixels, int)
    positions = constant(np.asarray(rank_positions(tft.taus, pixels), np.float32))
    wanted = (step * positions).sum(-1, keepdims=True)
    return _order_statistics(maps.reshape((*maps.shape[:-2], pixels)), wanted)[..., 0]


def by_bisection(values: Tensor, positions: Sequence[int]) -> Tensor:
    """As ``runtime.tft.by_sorting`` for values in [0, 1], without sorting."""
    wanted = values.recorder.constant(np.asarray(list(positions), np.float32))
    return _order_statistics(values, wanted)


def _order_statistics(values: Tensor, wanted: Tensor) -> Tensor:
    """The values at some positions in increasing order: [..., P], positions [..., T] to [..., T].

    TensorRT sorts at most 3840 numbers. Here counting does it: halve the interval in which the
    wanted value lies until neighbouring numbers are all that is left, then take the smallest
    value in it.
    """
    xp = values.recorder.xp
    low = 0.0 * values[..., :1] + 0.0 * wanted
    high = low + 2.0
    for _ in range(_HALVINGS):
        middle = 0.5 * (low + high)
        below = xp.astype(values[..., None, :] < middle[..., None], values.dtype).sum(-1)
        enough = below <= wanted
        low, high = xp.where(enough, middle, low), xp.where(enough, high, middle)
    within = xp.where(values[..., None, :] >= low[..., None], values[..., None, :], 2.0)
    return xp.min(within, axis=-1)
