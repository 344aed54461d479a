"""Measure on held-out images what a search of few thresholds achieves, beside all ten."""

from __future__ import annotations

import io
from collections.abc import Mapping
from csv import DictWriter
from itertools import combinations

import msgspec
import numpy as np
from numpy.typing import NDArray

from ..runtime import search
from ..runtime.cam import Method
from ..runtime.search import Prior
from ..runtime.sweep import Floats
from ..runtime.tft import Mask, Tft, Thresholds
from .thresholds_prior import SweepRecord, compute_gains, held_out_mask

EVALUATIONS = 8  # evaluations that a search is measured with, at most
_FIXED = (3, 4)  # sizes of the fixed sets that it is compared with


class Point(msgspec.Struct, frozen=True, kw_only=True):
    """What a number of evaluations achieves on the held-out images.

    Attributes:
        evaluations: evaluations of the network for each map, at most.
        taus: the thresholds, where they are the same for every map; empty for a search.
        average_increase: share of images whose masked image has the higher probability.
        average_increase_standard_error: of that share.
        increase_kept: its gain over the whole map, as a share of the gain of all ten thresholds;
            None where these gain nothing.
        mean_rpi: the largest relative probability increase, mean over the images.
        rpi_kept: that as a share of the mean of all ten thresholds; None where this is 0.
        milliseconds: median time to threshold one map; None where it was not measured.
    """

    evaluations: int
    taus: tuple[float, ...] = ()
    average_increase: float
    average_increase_standard_error: float
    increase_kept: float | None
    mean_rpi: float
    rpi_kept: float | None
    milliseconds: float | None = None


class Curve(msgspec.Struct, frozen=True, kw_only=True):
    """The results of one method in one reading of TFT, by number of evaluations.

    Attributes:
        method, mask, thresholds: the method and the reading.
        learnt_from, held_out: numbers of images.
        original_average_increase: of the whole map, without a threshold.
        every: all ten thresholds of ``Tft``.
        search: a search with 1, 2, ... evaluations.
        fixed: the best three and four thresholds of the images learnt from, for every map.
    """

    method: Method
    mask: Mask
    thresholds: Thresholds
    learnt_from: int
    held_out: int
    original_average_increase: float
    every: Point
    search: tuple[Point, ...]
    fixed: tuple[Point, ...]


def format_csv(curves: tuple[Curve, ...]) -> str:
    """Format curves as CSV, one line a point; ``tried`` is ``search``, ``fixed`` or ``every``."""
    text = io.StringIO()
    names = [name for name in Point.__struct_fields__ if name != "taus"]
    writer = DictWriter(text, ["method", "mask", "thresholds", "tried", *names, "taus"])
    writer.writeheader()
    for curve in curves:
        key = {"method": curve.method, "mask": curve.mask, "thresholds": curve.thresholds}
        kinds = {"search": curve.search, "fixed": curve.fixed, "every": (curve.every,)}
        for kind, points in kinds.items():
            for point in points:
                row = msgspec.structs.asdict(point)
                row["taus"] = " ".join(f"{tau:g}" for tau in point.taus)
                writer.writerow({**key, "tried": kind, **row})
    return text.getvalue()


def replay(prior: Prior, features: Floats, probability: Floats, masked: Floats) -> NDArray[np.intp]:
    """Replay a search of 8 evaluations on known probabilities.

    Args:
        prior: what it starts from.
        features: of N maps, [N, F].
        probability: of the whole images, [N].
        masked: under each threshold's mask, [N, T].

    Returns:
        Indices of the thresholds in the order of their evaluation, int [N, 8].
    """
    gains = compute_gains(probability, masked)
    belief = search.begin(prior, features)
    tried = []
    for _ in range(min(EVALUATIONS, len(prior.taus))):
        step = search.next_step(belief)
        tried.append(step.argmax(-1))
        belief = search.observe(belief, step, (gains * step).sum(-1))
    return np.stack(tried, axis=-1)


def measure_curve(record: SweepRecord, prior: Prior, milliseconds: Mapping[int, float]) -> Curve:
    """Measure search, fixed sets and all ten thresholds on the held-out images.

    Args:
        record: sweeps over ``prior.taus``, whose first is 0.
        prior: fitted to the other images.
        milliseconds: median time to threshold a map, by number of evaluations.
    """
    features, probability, masked = record.arrays()
    held_out = held_out_mask(len(probability))
    p, m = probability[held_out], masked[held_out]
    tried = replay(prior, features[held_out], p, m)
    tenths = [prior.taus.index(tau) for tau in Tft().taus]
    measure = _Measure(p, m, tenths)
    sets = [_best_set(probability[~held_out], masked[~held_out], size) for size in _FIXED]
    return Curve(
        method=prior.method,
        mask=prior.mask,
        thresholds=prior.thresholds,
        learnt_from=prior.images,
        held_out=len(p),
        original_average_increase=float((m[:, 0] > p).mean()),
        every=measure.point(m[:, tenths], milliseconds.get(len(tenths))),
        search=tuple(
            measure.point(np.take_along_axis(m, tried[:, :k], 1), milliseconds.get(k))
            for k in range(1, tried.shape[1] + 1)
        ),
        fixed=tuple(
            measure.point(m[:, list(places)], None, tuple(prior.taus[i] for i in places))
            for places in sets
        ),
    )


class _Measure:
    """Compares the masked probabilities of some thresholds, [N, k], with those of all ten.

    The first threshold is 0, which leaves the map whole.
    """

    def __init__(self, probability: Floats, masked: Floats, tenths: list[int]) -> None:
        self._p = probability
        self._original = masked[:, 0] > probability
        best = masked[:, tenths].max(1)
        self._gain = float((best > probability).mean() - self._original.mean())
        self._rpi = self._mean_rpi(best)

    def _mean_rpi(self, best: Floats) -> float:
        return float((np.maximum(best - self._p, 0) / np.maximum(self._p, 1e-30)).mean())

    def point(
        self, masked: Floats, milliseconds: float | None, taus: tuple[float, ...] = ()
    ) -> Point:
        best = masked.max(1)
        # Where no threshold improves, the map stays whole.
        increase = (best > self._p) | self._original
        share, rpi = float(increase.mean()), self._mean_rpi(best)
        gained = share - float(self._original.mean())
        return Point(
            evaluations=masked.shape[1],
            taus=taus,
            average_increase=share,
            average_increase_standard_error=float(np.sqrt(share * (1 - share) / len(best))),
            increase_kept=gained / self._gain if self._gain > 0 else None,
            mean_rpi=rpi,
            rpi_kept=rpi / self._rpi if self._rpi > 0 else None,
            milliseconds=milliseconds,
        )


def _best_set(probability: Floats, masked: Floats, size: int) -> tuple[int, ...]:
    """Find the fixed set of thresholds with the largest average increase, then mean rpi."""
    above = masked > probability[:, None]
    rpi = np.maximum(masked - probability[:, None], 0) / np.maximum(probability[:, None], 1e-30)

    def worth(places: tuple[int, ...]) -> tuple[float, float]:
        chosen = list(places)
        increase = above[:, chosen].any(1) | above[:, 0]
        return float(increase.mean()), float(rpi[:, chosen].max(1).mean())

    return max(combinations(range(masked.shape[1]), size), key=worth)
