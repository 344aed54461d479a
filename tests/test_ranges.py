"""Histograms that grow while images stream, and the ranges taken from them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from whycam.calibrate.ranges import CALIBRATORS, Histogram, magnitude
from whycam.runtime.errors import RequestError


def histogram_of(*batches: np.ndarray) -> Histogram:
    found = Histogram()
    for batch in batches:
        found.add(batch.astype(np.float32))
    return found


@given(
    st.lists(st.floats(1e-3, 1e4), min_size=1, max_size=6),
    st.integers(0, 2**31),
    st.sampled_from([99.0, 99.9, 99.99, 100.0]),
)
def test_percentile_is_numpys_up_to_a_bin_however_images_come(scales, seed, wanted):
    rng = np.random.default_rng(seed)
    batches = [scale * rng.normal(size=500) for scale in scales]
    found = histogram_of(*batches)
    values = np.abs(np.concatenate(batches).astype(np.float32))
    ordered = np.sort(values)
    place = round(wanted / 100 * values.size)  # that many lie at or below
    below, above = ordered[max(place - 2, 0)], ordered[min(place, values.size - 1)]
    width = 1.001 * found.top / len(found.counts)
    assert found.counts.sum() == values.size
    assert below - width <= magnitude(found, "percentile", wanted) <= above + width
    assert magnitude(found, "minmax") == values.max()


def test_outliers_move_the_largest_but_not_the_percentile():
    rng = np.random.default_rng(0)
    plain = rng.normal(size=100_000)
    clean, spoilt = histogram_of(plain), histogram_of(plain, np.array([1000.0]))
    assert magnitude(spoilt, "minmax") == 1000
    assert magnitude(spoilt, "percentile", 99.9) == pytest.approx(
        magnitude(clean, "percentile", 99.9), abs=1000 * 2 / 2048 * 2
    )


def test_entropy_clips_a_long_tail_and_keeps_a_flat_one():
    rng = np.random.default_rng(0)
    tail = histogram_of(np.concatenate([rng.normal(size=200_000), 100 + rng.normal(size=5)]))
    assert magnitude(tail, "entropy") < 20
    flat = histogram_of(rng.uniform(0, 1, 200_000))
    assert magnitude(flat, "entropy") > 0.9


def test_entropy_is_the_divergence_computed_plainly():
    """Against a loop over bins, written from the definition."""
    rng = np.random.default_rng(3)
    found = histogram_of(rng.exponential(size=5_000))
    counts = found.counts.astype(float)
    counts[0] = 0

    def divergence(bins: int) -> float:
        p = list(counts[:bins])
        p[-1] += counts[bins:].sum()
        q = [0.0] * bins
        for step in range(128):
            inside = [i for i in range(bins) if i * 128 // bins == step]
            filled = [i for i in inside if counts[i] > 0]
            for i in filled:
                q[i] = sum(counts[j] for j in inside) / len(filled)
        p, q = np.array(p) / sum(p), np.maximum(np.array(q) / sum(q), 1e-12)
        return float(sum(a * np.log(a / b) for a, b in zip(p, q, strict=True) if a > 0))

    tries = range(128, 2049, 16)
    best = min(tries, key=divergence)
    assert magnitude(found, "entropy") == pytest.approx(min(best * found.top / 2048, found.largest))


@pytest.mark.parametrize("calibrator", CALIBRATORS)
def test_always_zero_has_a_usable_scale(calibrator):
    assert magnitude(histogram_of(np.zeros(100)), calibrator) > 0


def test_zeros_seen_first_count():
    found = histogram_of(np.zeros(900), np.full(100, 5.0))
    assert found.counts[0] == 900
    assert magnitude(found, "percentile", 90.0) < 0.01
    assert magnitude(found, "percentile", 91.0) == 5


@pytest.mark.parametrize(("calibrator", "percentile"), [("best", 99), ("percentile", 40)])
def test_unknown_wishes_are_refused(calibrator, percentile):
    with pytest.raises(RequestError):
        magnitude(histogram_of(np.ones(3)), calibrator, percentile)
