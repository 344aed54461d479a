"""The TFT sweep: every threshold's masked image through the network, as few batches as fit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from . import tft
from .tft import Tft

Floats = NDArray[np.float32]
# Batch of images [B, 3, H, W] to probabilities [B, C].
Classify = Callable[[Floats], Floats]


@dataclass(frozen=True)
class Request:
    """One map to threshold.

    Attributes:
        image: float32 [3, H, W], normalised.
        map: float32 [H, W] in [0, 1].
        target: the class explained.
        probability: of that class for the whole image.
    """

    image: Floats
    map: Floats
    target: int
    probability: float


@dataclass(frozen=True)
class Choice:
    """What the sweep found for one map.

    Attributes:
        threshold: tau*, 0 if no threshold improves.
        cut: the map value at tau*; 0 if no threshold improves.
        rpi: float32 [T], relative probability increase at each threshold.
        improved: whether any threshold raised the probability.
        map: the map, zero below the cut.
        mask: float32 [H, W], what multiplies the image at tau*.
        masked_probability: of the class, for the image under that mask; None if no threshold
            improves and 0 was not among those tried.
    """

    threshold: float
    cut: float
    rpi: Floats
    improved: bool
    map: Floats
    mask: Floats
    masked_probability: float | None


def sweep(
    classify: Classify, requests: Sequence[Request], settings: Tft, batch: int
) -> list[Choice]:
    """Choose the threshold of each map (paper algorithm 1).

    The masked images of all requests share batches of at most ``batch``. Masks of one map are
    nested, so two thresholds that keep equally many pixels keep the same ones: such a mask is
    evaluated once.
    """
    cuts = [tft.cut_values(r.map, settings.taus, settings.thresholds) for r in requests]
    first_of = [_first_equal(r.map, cut) for r, cut in zip(requests, cuts, strict=True)]
    masked = [np.zeros(len(settings.taus), np.float32) for _ in requests]
    wanted = [
        (index, step)
        for index, first in enumerate(first_of)
        for step, same in enumerate(first)
        if same == step
    ]
    for chunk in _chunks(wanted, batch):
        images = np.stack([_masked(requests[i], cuts[i][step], settings) for i, step in chunk])
        for (index, step), row in zip(chunk, classify(images), strict=True):
            masked[index][step] = row[requests[index].target]
    return [
        _choice(request, values[first], settings)
        for request, values, first in zip(requests, masked, first_of, strict=True)
    ]


def masked_image(image: Floats, mask: Floats) -> Floats:
    """x^ = M * x (equation 6), on the normalised image: what is masked gets the mean colour."""
    return np.asarray(image * mask, dtype=np.float32)


def _chunks(items: list[tuple[int, int]], size: int) -> Iterator[list[tuple[int, int]]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _masked(request: Request, cut: np.float32, settings: Tft) -> Floats:
    thresholded = tft.threshold_map(request.map, cut)
    return masked_image(request.image, tft.mask_of(thresholded, settings.mask))


def _first_equal(values: Floats, cuts: Floats) -> NDArray[np.intp]:
    """For each threshold the first one that leaves the same thresholded map."""
    # A pixel of value 0 is 0 whether kept or muted.
    kept = np.array([np.count_nonzero((values >= cut) & (values != 0)) for cut in cuts])
    _, first, inverse = np.unique(kept, return_index=True, return_inverse=True)
    return np.asarray(first[inverse], dtype=np.intp)


def _choice(request: Request, masked: Floats, settings: Tft) -> Choice:
    probability = np.asarray(request.probability, np.float32)
    rpi = tft.relative_probability_increase(masked, probability)
    return choice_of(request.map, rpi, masked, settings)


def choice_of(values: Floats, rpi: Floats, masked: Floats, settings: Tft) -> Choice:
    """The choice that a sweep's numbers amount to.

    Args:
        values: the map, float32 [H, W].
        rpi, masked: relative probability increase and probability at each threshold, float32 [T].
        settings: the sweep's.
    """
    improved = bool(tft.improves(rpi))
    index = int(tft.choose(rpi)) if improved else 0
    cut = np.float32(0)
    if improved:
        cut = tft.cut_values(values, settings.taus[index : index + 1], settings.thresholds)[0]
    thresholded = tft.threshold_map(values, cut)
    tried = improved or settings.taus[0] == 0
    return Choice(
        threshold=float(settings.taus[index]) if improved else 0.0,
        cut=float(cut),
        rpi=rpi,
        improved=improved,
        map=thresholded,
        mask=tft.mask_of(thresholded, settings.mask),
        masked_probability=float(masked[index]) if tried else None,
    )
