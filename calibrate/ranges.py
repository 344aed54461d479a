"""Choose the range of each activation from a histogram over many images, in constant memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from ..runtime.errors import RequestError

Calibrator = Literal["minmax", "percentile", "entropy"]
CALIBRATORS: tuple[Calibrator, ...] = get_args(Calibrator)
_BINS = 2048
_LEVELS = 128  # of a symmetric INT8 magnitude


class Histogram:
    """How often a tensor's magnitudes occur, in 2048 equal bins from 0.

    The bins double in width when a larger value comes, so images can be added one after another.

    Attributes:
        counts: int64 [2048].
        top: the upper edge of the last bin.
        largest: the largest magnitude added.
    """

    def __init__(self) -> None:
        self.counts: NDArray[np.int64] = np.zeros(_BINS, np.int64)
        self.top = 0.0
        self.largest = 0.0

    def add(self, values: NDArray[np.float32]) -> None:
        """Take in a tensor of any shape; it must be finite."""
        magnitudes = np.abs(values).reshape(-1)
        largest = float(magnitudes.max(initial=0.0))
        if largest > self.top:
            self._grow(largest)
        self.largest = max(self.largest, largest)
        scale = _BINS / self.top if self.top > 0 else 0.0
        places = (magnitudes * np.float64(scale)).astype(np.int64)
        self.counts += np.bincount(np.minimum(places, _BINS - 1), minlength=_BINS)

    def _grow(self, largest: float) -> None:
        if self.top == 0:
            # Zeros seen before stay in the first bin, whatever its width.
            self.top = largest
        while self.top < largest:
            self.top *= 2
            halves = self.counts.reshape(-1, 2).sum(1)
            self.counts = np.concatenate([halves, np.zeros(_BINS // 2, np.int64)])

    @property
    def edges(self) -> NDArray[np.float64]:
        """Return the upper edge of each bin."""
        return np.arange(1, _BINS + 1, dtype=np.float64) * (self.top / _BINS)


def magnitude(histogram: Histogram, calibrator: Calibrator, percentile: float = 99.99) -> float:
    """Choose the magnitude that INT8's 127 stands for; larger ones are clipped.

    Args:
        histogram: of the tensor.
        calibrator: ``minmax``: the largest; ``percentile``: of the magnitudes; ``entropy``:
            least Kullback-Leibler divergence of the clipped distribution from the whole (Migacz,
            8-bit inference with TensorRT, 2017).
        percentile: in (50, 100].

    Raises:
        RequestError: an unknown calibrator, or a percentile outside.
    """
    if calibrator not in CALIBRATORS:
        raise RequestError(
            f"there is no calibrator '{calibrator}'; choose from: {', '.join(CALIBRATORS)}"
        )
    if not 50 < percentile <= 100:
        raise RequestError(f"percentile must be above 50 and at most 100, not {percentile}")
    if histogram.largest == 0:
        return 1.0  # always zero: any scale represents it
    return _RULES[calibrator](histogram, percentile)


def root_mean_square(histogram: Histogram) -> float:
    """Estimate the root mean square of a tensor's values from the bins; 0 where all are 0."""
    middles = histogram.edges - histogram.top / (2 * _BINS)
    counts = histogram.counts
    return float(np.sqrt((counts * middles**2).sum() / max(1, counts.sum())))


def _minmax(histogram: Histogram, _: float) -> float:
    return histogram.largest


def _percentile(histogram: Histogram, percentile: float) -> float:
    below = np.cumsum(histogram.counts) / histogram.counts.sum()
    place = int(np.searchsorted(below, percentile / 100 - 1e-12))
    return min(float(histogram.edges[min(place, _BINS - 1)]), histogram.largest)


def _entropy(histogram: Histogram, _: float) -> float:
    counts = histogram.counts.astype(np.float64)
    # Exact zeros say nothing of the range, and most tensors behind a ReLU are mostly zeros.
    counts[0] = 0
    if not counts.any():
        return histogram.largest
    tries = range(_LEVELS, _BINS + 1, _LEVELS // 8)
    best = min(tries, key=lambda bins: _divergence(counts, bins))
    return min(float(histogram.edges[best - 1]), histogram.largest)


def _divergence(counts: NDArray[np.float64], bins: int) -> float:
    """Compute KL(p || q): p is the first ``bins``, the rest in the last; q is p in 128 steps."""
    p = counts[:bins].copy()
    p[-1] += counts[bins:].sum()
    steps = np.arange(bins) * _LEVELS // bins
    filled = counts[:bins] > 0
    held = np.bincount(steps, counts[:bins], _LEVELS)
    shared = np.bincount(steps, filled, _LEVELS)
    q = np.where(filled, held[steps] / np.maximum(shared[steps], 1), 0.0)
    if not q.any():
        return float("inf")
    # Where p has counts that q lost, the divergence would be infinite; it is very large instead.
    p, q = p / p.sum(), np.maximum(q / q.sum(), 1e-12)
    some = p > 0
    return float((p[some] * np.log(p[some] / q[some])).sum())


_RULES: dict[Calibrator, Callable[[Histogram, float], float]] = {
    "minmax": _minmax,
    "percentile": _percentile,
    "entropy": _entropy,
}
