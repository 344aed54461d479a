"""The TFT sweep against the paper's algorithm 1, written out as a plain loop."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from whycam.runtime.errors import RequestError, WhyCamError
from whycam.runtime.sweep import Choice, Request, sweep
from whycam.runtime.tft import Tft

READINGS = [
    ("binary", "value"),  # the paper's equations
    ("soft", "rank"),  # the authors' code
    ("binary", "rank"),
    ("soft", "value"),
]
H, W, CLASSES = 4, 5, 3


class Classifier:
    """A little softmax classifier that counts the images it sees.

    Each image is computed by itself, so that its answer does not depend on the batch.
    """

    def __init__(self, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.weights = rng.normal(size=(CLASSES, 3 * H * W))
        self.batches: list[int] = []

    def __call__(self, images: np.ndarray) -> np.ndarray:
        self.batches.append(len(images))
        return np.stack([self.probabilities(image) for image in images])

    def probabilities(self, image: np.ndarray) -> np.ndarray:
        logits = (self.weights * image.reshape(-1)).sum(1)
        exponentials = np.exp(logits - logits.max())
        return (exponentials / exponentials.sum()).astype(np.float32)


def request(values: np.ndarray, classifier: Classifier, seed: int = 0, target: int = 1) -> Request:
    image = np.random.default_rng(seed).normal(size=(3, H, W)).astype(np.float32)
    probability = float(classifier.probabilities(image)[target])
    return Request(image, np.asarray(values, np.float32), target, probability)


def paper(wanted: Request, classifier: Classifier, settings: Tft) -> tuple[float, list, list, bool]:
    """Algorithm 1, pixel by pixel: tau*, RPI, I_tau*, whether any threshold improves."""
    rpi, maps = [], []
    y = np.float32(wanted.probability)
    for tau in settings.taus:
        cut = _cut(wanted.map, tau, settings.thresholds)
        i_tau = np.zeros((H, W), np.float32)
        x_hat = np.zeros((3, H, W), np.float32)
        for i in range(H):
            for j in range(W):
                if wanted.map[i, j] >= cut:  # equation 4
                    i_tau[i, j] = wanted.map[i, j]
                m_tau = np.float32(1 if i_tau[i, j] != 0 else 0)  # equation 5
                if settings.mask == "soft":
                    m_tau = i_tau[i, j]
                x_hat[:, i, j] = m_tau * wanted.image[:, i, j]  # equation 6
        y_hat = classifier.probabilities(x_hat)[wanted.target]
        rpi.append(max(y_hat - y, np.float32(0)) / y)  # equation 7
        maps.append(i_tau)
    # The first of equals wins; a hundred-thousandth is rounding, not a difference.
    largest = max(rpi)
    best = next(i for i, r in enumerate(rpi) if r >= largest - 1e-5 * (1 + largest))
    if largest <= 1e-5:
        return 0.0, rpi, wanted.map, False
    return settings.taus[best], rpi, maps[best], True


def _cut(values: np.ndarray, tau: float, thresholds: str) -> np.float32:
    """The smallest map value that is kept."""
    if thresholds == "value":
        return np.float32(tau)  # maps are float32
    ordered = sorted(values.reshape(-1))
    muted = int(Fraction(str(tau)) * len(ordered))  # decimal, not binary, tenths
    return ordered[muted]


def assert_follows_the_paper(found: Choice, wanted: Request, settings: Tft) -> None:
    threshold, rpi, values, improved = paper(wanted, Classifier(), settings)
    assert found.threshold == threshold
    np.testing.assert_allclose(found.rpi, rpi, rtol=1e-5)
    np.testing.assert_array_equal(found.map, values)
    assert found.improved is improved


@pytest.mark.parametrize("reading", READINGS, ids="-".join)
def test_sweep_follows_the_paper(reading):
    settings = Tft(*reading)
    improved = set()
    for seed in range(12):
        classifier = Classifier()
        values = np.random.default_rng(100 + seed).random((H, W))
        wanted = request(values, classifier, seed, target=seed % CLASSES)
        (found,) = sweep(classifier, [wanted], settings, 100)
        assert_follows_the_paper(found, wanted, settings)
        improved.add(found.threshold if found.improved else None)
    assert len(improved) > 3, "the cases are all alike"


# A few values only: ties between pixels, pixels on a threshold, zeros, constant maps.
COARSE_MAPS = arrays(
    np.float32, (H, W), elements=st.sampled_from([0.0, 0.1, 0.25, 0.3, 0.7, 0.9, 1.0])
)
FINE_MAPS = arrays(np.float32, (H, W), elements=st.floats(0, 1, width=32))


@given(
    maps=st.lists(COARSE_MAPS | FINE_MAPS, min_size=1, max_size=4),
    reading=st.sampled_from(READINGS),
    batch=st.integers(1, 50),
    target=st.integers(0, CLASSES - 1),
)
def test_sweep_follows_the_paper_for_any_map(maps, reading, batch, target):
    settings = Tft(*reading)
    classifier = Classifier()
    requests = [request(values, classifier, seed, target) for seed, values in enumerate(maps)]
    for wanted, found in zip(requests, sweep(classifier, requests, settings, batch), strict=True):
        assert_follows_the_paper(found, wanted, settings)
        assert 0 <= found.threshold < 1
        assert (found.map <= wanted.map).all()


@pytest.mark.parametrize("reading", READINGS, ids="-".join)
def test_choice_holds_what_its_mask_does(reading):
    for seed in range(6):
        classifier = Classifier()
        wanted = request(np.random.default_rng(seed).random((H, W)), classifier, seed)
        (found,) = sweep(classifier, [wanted], Tft(*reading), 100)
        kept = np.where(wanted.map >= found.cut, wanted.map, 0)
        np.testing.assert_array_equal(found.map, kept)
        np.testing.assert_array_equal(found.mask, kept if reading[0] == "soft" else kept != 0)
        again = classifier.probabilities(wanted.image * found.mask)[wanted.target]
        assert found.masked_probability == pytest.approx(again, rel=1e-6)


class Scripted:
    """Answers by how many pixels an image shows; every other class shares the rest."""

    def __init__(self, by_pixels: dict[int, float]) -> None:
        self.by_pixels = by_pixels
        self.batches: list[int] = []

    def __call__(self, images: np.ndarray) -> np.ndarray:
        self.batches.append(len(images))
        shown = [int((image[0] != 0).sum()) for image in images]
        return np.array([[1 - self.by_pixels[n], self.by_pixels[n]] for n in shown], np.float32)


def four_steps(probability: float) -> Request:
    """A map whose 20 pixels are, in fives, 0.1, 0.3, 0.5 and 0.7; the image is all ones."""
    values = np.repeat(np.float32([0.1, 0.3, 0.5, 0.7]), 5).reshape(H, W)
    return Request(np.ones((3, H, W), np.float32), values, 1, probability)


def test_first_of_equal_thresholds_wins():
    classifier = Scripted({20: 0.4, 15: 0.8, 10: 0.5, 5: 0.8, 0: 0.1})
    (found,) = sweep(classifier, [four_steps(0.4)], Tft(), 100)
    # 0.2 and 0.3 keep 15 pixels, 0.6 and 0.7 keep 5.
    assert found.threshold == 0.2
    np.testing.assert_allclose(found.rpi, [0, 0, 1, 1, 0.25, 0.25, 1, 1, 0, 0], atol=1e-6)


def test_map_stays_as_it_is_where_no_threshold_improves():
    classifier = Scripted({20: 0.4, 15: 0.3, 10: 0.2, 5: 0.1, 0: 0.1})
    for thresholds in ("value", "rank"):
        settings = Tft(thresholds=thresholds)
        (found,) = sweep(classifier, [four_steps(0.4)], settings, 100)
        assert found.improved is False
        assert found.threshold == 0
        assert found.cut == 0
        np.testing.assert_array_equal(found.map, four_steps(0.4).map)
        np.testing.assert_array_equal(found.rpi, np.zeros(10))


def test_no_masked_probability_where_the_map_kept_was_never_tried():
    # The lowest threshold tried mutes; the mask returned mutes nothing.
    classifier = Scripted({20: 0.4, 10: 0.2, 5: 0.1})
    (found,) = sweep(classifier, [four_steps(0.4)], Tft(taus=(0.5, 0.7)), 100)
    assert not found.improved
    np.testing.assert_array_equal(found.mask, np.ones((H, W)))
    assert found.masked_probability is None


def test_pixels_that_tie_at_the_rank_cut_are_kept_together():
    # 30 % of 20 pixels are 6: the sixth has the value of the seventh, so five are muted.
    classifier = Scripted({20: 0.4, 15: 0.8})
    (found,) = sweep(classifier, [four_steps(0.4)], Tft(thresholds="rank", taus=(0.3,)), 100)
    assert np.count_nonzero(found.map) == 15
    assert found.cut == np.float32(0.3)
    assert found.improved


def test_rank_thresholds_mute_whole_tenths_of_the_pixels():
    # 0.7 * 20 and the like are not whole in binary.
    values = np.linspace(0.05, 1, 20, dtype=np.float32).reshape(H, W)
    wanted = Request(np.ones((3, H, W), np.float32), values, 1, 0.01)
    for tenth, tau in enumerate(Tft().taus):
        classifier = Scripted({20 - 2 * tenth: 0.5})  # any other number is a KeyError
        (found,) = sweep(classifier, [wanted], Tft(thresholds="rank", taus=(tau,)), 100)
        assert found.improved


@pytest.mark.parametrize("reading", READINGS, ids="-".join)
def test_constant_zero_map_stays_zero_and_costs_one_image(reading):
    classifier = Classifier()
    wanted = request(np.zeros((H, W)), classifier)
    (found,) = sweep(classifier, [wanted], Tft(*reading), 100)
    np.testing.assert_array_equal(found.map, np.zeros((H, W)))
    assert found.threshold == 0
    assert classifier.batches == [1]


def test_identical_masks_are_evaluated_once():
    classifier = Scripted({20: 0.4, 15: 0.8, 10: 0.5, 5: 0.3, 0: 0.1})
    (found,) = sweep(classifier, [four_steps(0.4)], Tft(), 100)
    assert classifier.batches == [5]  # 20, 15, 10, 5 and no pixels, for ten thresholds
    assert len(found.rpi) == 10


@pytest.mark.parametrize("reading", READINGS, ids="-".join)
def test_chunking_changes_nothing(reading):
    def choices(batch: int) -> tuple[Sequence[Choice], list[int]]:
        classifier = Classifier()
        maps = np.random.default_rng(4).random((3, H, W))
        requests = [request(one, classifier, seed) for seed, one in enumerate(maps)]
        return sweep(classifier, requests, Tft(*reading), batch), classifier.batches

    whole, batches = choices(100)
    assert len(batches) == 1, "the maps of several images share a batch"
    for batch in (1, 3):
        parts, batches = choices(batch)
        assert max(batches) == batch
        for one, other in zip(whole, parts, strict=True):
            assert one.threshold == other.threshold
            np.testing.assert_array_equal(one.rpi, other.rpi)
            np.testing.assert_array_equal(one.map, other.map)


def test_sweep_of_nothing_is_empty():
    assert sweep(Classifier(), [], Tft(), 10) == []


def test_tiny_probability_gives_a_finite_rpi():
    classifier = Scripted({20: 0.4, 15: 0.8, 10: 0.5, 5: 0.3, 0: 0.1})
    (found,) = sweep(classifier, [four_steps(0.0)], Tft(), 100)
    assert np.isfinite(found.rpi).all()
    assert found.threshold == 0.2


@pytest.mark.parametrize(
    "taus",
    [(), (0.1, 0.1), (0.2, 0.1), (-0.1, 0.5), (0.5, 1.0), (float("nan"),), (0.0, float("nan"))],
)
def test_unusable_thresholds_are_refused(taus):
    with pytest.raises(RequestError, match="taus"):
        Tft(taus=taus)


@pytest.mark.parametrize("taus", [0.5, ("a", "b")])
def test_thresholds_of_another_type_are_refused(taus):
    with pytest.raises(WhyCamError, match="taus"):
        Tft(taus=taus)


@pytest.mark.parametrize("fields", [{"mask": "hard"}, {"thresholds": "percent"}, {"mask": None}])
def test_unknown_readings_are_refused(fields):
    with pytest.raises(RequestError, match="must be"):
        Tft(**fields)
