"""Choose TFT's threshold: evaluate the image masked at all thresholds, or at those of a search."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from . import search, tft
from .errors import RequestError
from .input_format import Layout
from .search import Prior
from .tft import Tft

Floats = NDArray[np.float32]
# Batch of images, as the network takes them, to probabilities [B, C].
Classify = Callable[[Floats], Floats]


@dataclass(frozen=True)
class Request:
    """One map to threshold.

    Attributes:
        image: float32 [C, H, W], or [H, W, C] with the layout NHWC; normalised.
        map: float32 [H, W] in [0, 1].
        target: the class explained.
        probability: of that class for the whole image.
        layout: of the image.
    """

    image: Floats
    map: Floats
    target: int
    probability: float
    layout: Layout = "NCHW"


@dataclass(frozen=True)
class Choice:
    """The threshold chosen for one map.

    Attributes:
        threshold: tau*, 0 if no threshold improves.
        cut: the map value at tau*; 0 if no threshold improves.
        rpi: float32 [T], relative probability increase at each threshold; NaN where it was not
            evaluated.
        improved: whether any threshold raised the probability.
        map: the map, zero below the cut.
        mask: float32 [H, W], by which the image is multiplied at tau*.
        masked_probability: of the class, for the image under that mask; None if no threshold
            improves and 0 was not evaluated.
    """

    threshold: float
    cut: float
    rpi: Floats
    improved: bool
    map: Floats
    mask: Floats
    masked_probability: float | None


def sweep(
    classify: Classify,
    requests: Sequence[Request],
    settings: Tft,
    batch: int,
    prior: Prior | None = None,
) -> list[Choice]:
    """Choose the threshold of each map (paper algorithm 1).

    Args:
        classify: runs the network.
        requests: maps; their masked images share batches of at most ``batch``.
        settings: with ``evaluations``, only that many thresholds of each map are evaluated, one
            after the other, see ``search``.
        batch: images of one run of the network, at most.
        prior: for the search; its taus are those of ``settings``.

    Raises:
        RequestError: a search without a prior, or with one for other thresholds.
    """
    if settings.evaluations is None:
        masked = masked_probabilities(classify, requests, settings, batch)
    elif prior is None or prior.taus != settings.taus:
        raise RequestError(
            f"evaluations={settings.evaluations} needs a prior for the thresholds {settings.taus}. "
            "Run: whycam calibrate thresholds"
        )
    else:
        masked = _search(classify, requests, settings, batch, prior)
    return [
        _choice(request, values, settings) for request, values in zip(requests, masked, strict=True)
    ]


def masked_probabilities(
    classify: Classify, requests: Sequence[Request], settings: Tft, batch: int
) -> list[Floats]:
    """Compute each request's probability at every threshold, float32 [T] each.

    Masks of one map are nested, so two thresholds that keep equally many pixels keep the same
    ones: such a mask is evaluated once.
    """
    cuts = [tft.cut_values(r.map, settings.taus, settings.thresholds) for r in requests]
    first_of = [_first_equal(r.map, cut) for r, cut in zip(requests, cuts, strict=True)]
    masked = [np.zeros(len(settings.taus), np.float32) for _ in requests]
    pairs = [
        (index, step)
        for index, first in enumerate(first_of)
        for step, same in enumerate(first)
        if same == step
    ]
    _evaluate(classify, requests, cuts, pairs, masked, settings, batch)
    return [values[first] for values, first in zip(masked, first_of, strict=True)]


def _search(
    classify: Classify, requests: Sequence[Request], settings: Tft, batch: int, prior: Prior
) -> list[Floats]:
    """Compute probabilities at the thresholds that a search evaluates; NaN elsewhere.

    The next evaluations of all requests share batches. A mask that keeps as many pixels as an
    earlier one of the same map is not evaluated again.
    """
    steps = len(settings.taus)
    cuts = [tft.cut_values(r.map, settings.taus, settings.thresholds) for r in requests]
    masked = [np.full(steps, np.nan, np.float32) for _ in requests]
    if not requests:
        return masked
    known: list[dict[int, int]] = [{} for _ in requests]  # pixels kept: the step that kept them
    whole = np.array([r.probability for r in requests], np.float32)
    features = [search.features(r.map, p) for r, p in zip(requests, whole, strict=True)]
    belief = search.begin(prior, np.stack(features))
    for _ in range(min(settings.evaluations or steps, steps)):
        chosen = search.next_step(belief)
        tried = [int(step) for step in chosen.argmax(-1)]
        pairs, same = [], []
        for index, step in enumerate(tried):
            pixels = int(count_kept(requests[index].map, cuts[index][step]))
            same.append(known[index].setdefault(pixels, step))
            if same[-1] == step:
                pairs.append((index, step))
        _evaluate(classify, requests, cuts, pairs, masked, settings, batch)
        for values, step, first in zip(masked, tried, same, strict=True):
            values[step] = values[first]
        measured = np.array([v[step] for v, step in zip(masked, tried, strict=True)], np.float32)
        belief = search.observe(belief, chosen, search.logit(measured) - search.logit(whole))
    return masked


def _evaluate(
    classify: Classify,
    requests: Sequence[Request],
    cuts: Sequence[Floats],
    pairs: list[tuple[int, int]],
    masked: list[Floats],
    settings: Tft,
    batch: int,
) -> None:
    """Evaluate the masked images of (request, threshold) pairs, and write into ``masked``."""
    for start in range(0, len(pairs), batch):
        chunk = pairs[start : start + batch]
        images = np.stack([mask_input(requests[i], cuts[i][step], settings) for i, step in chunk])
        for (index, step), row in zip(chunk, classify(images), strict=True):
            masked[index][step] = row[requests[index].target]


def masked_image(image: Floats, mask: Floats, layout: Layout = "NCHW") -> Floats:
    """Mask a normalised image: x^ = M * x (equation 6); masked pixels get the mean colour.

    Args:
        image: float32 [C, H, W] or [H, W, C], as ``layout`` says.
        mask: float32 [..., H, W].
        layout: of the image.

    Returns:
        float32 [..., *image.shape].
    """
    every_channel = mask[..., None] if layout == "NHWC" else mask[..., None, :, :]
    return np.asarray(image * every_channel, dtype=np.float32)


def mask_input(request: Request, cut: np.float32, settings: Tft) -> Floats:
    """Mask a request's image at one threshold, float32 of its shape."""
    thresholded = tft.threshold_map(request.map, cut)
    return masked_image(request.image, tft.mask_of(thresholded, settings.mask), request.layout)


def _first_equal(values: Floats, cuts: Floats) -> NDArray[np.intp]:
    """Find for each threshold the first one that leaves the same thresholded map."""
    pixels = np.array([count_kept(values, cut) for cut in cuts])
    _, first, inverse = np.unique(pixels, return_index=True, return_inverse=True)
    return np.asarray(first[inverse], dtype=np.intp)


def count_kept(values: Floats, cut: np.float32) -> np.intp:
    """Count the pixels that a threshold leaves; equal counts of one map mean equal masks."""
    # A pixel of value 0 is 0 whether it is kept or not.
    return np.count_nonzero((values >= cut) & (values != 0))


def mute_lowest(request: Request, share: float) -> Choice:
    """Set the lowest ``share`` of the pixels to 0, without evaluating the network."""
    cut = tft.cut_values(request.map, (share,), "rank")[0]
    values = tft.threshold_map(request.map, cut)
    return Choice(
        threshold=share,
        cut=float(cut),
        rpi=np.zeros(0, np.float32),
        improved=False,
        map=values,
        mask=tft.mask_of(values, "binary"),
        masked_probability=None,
    )


def _choice(request: Request, masked: Floats, settings: Tft) -> Choice:
    probability = np.asarray(request.probability, np.float32)
    rpi = tft.relative_probability_increase(masked, probability)
    return make_choice(request.map, rpi, masked, settings)


def hold_threshold(values: Floats, index: int | None, settings: Tft) -> Choice:
    """Cut a map at a threshold that was chosen for another one, without evaluating the network.

    Args:
        values: the map, float32 [H, W].
        index: of the threshold in ``settings.taus``; None: none improved the other map.
        settings: of the sweep.

    Returns:
        ``improved`` as for the other map; rpi is NaN throughout.
    """
    cut = np.float32(0)
    if index is not None:
        cut = tft.cut_values(values, settings.taus[index : index + 1], settings.thresholds)[0]
    thresholded = tft.threshold_map(values, cut)
    return Choice(
        threshold=0.0 if index is None else float(settings.taus[index]),
        cut=float(cut),
        rpi=np.full(len(settings.taus), np.nan, np.float32),
        improved=index is not None,
        map=thresholded,
        mask=tft.mask_of(thresholded, settings.mask),
        masked_probability=None,
    )


def make_choice(values: Floats, rpi: Floats, masked: Floats, settings: Tft) -> Choice:
    """Choose the threshold with the largest rpi.

    Args:
        values: the map, float32 [H, W].
        rpi, masked: relative probability increase and probability at each threshold, float32 [T];
            NaN where it was not evaluated.
        settings: the sweep's.
    """
    improved = bool(tft.improves(rpi))
    index = int(tft.choose(rpi)) if improved else 0
    cut = np.float32(0)
    if improved:
        cut = tft.cut_values(values, settings.taus[index : index + 1], settings.thresholds)[0]
    thresholded = tft.threshold_map(values, cut)
    tried = improved or (settings.taus[0] == 0 and not np.isnan(masked[0]))
    return Choice(
        threshold=float(settings.taus[index]) if improved else 0.0,
        cut=float(cut),
        rpi=rpi,
        improved=improved,
        map=thresholded,
        mask=tft.mask_of(thresholded, settings.mask),
        masked_probability=float(masked[index]) if tried else None,
    )
