"""Following a threshold from frame to frame, held against sweeping all of them."""

import numpy as np
import pytest

from whycam.runtime.errors import RequestError
from whycam.runtime.live.track import Tracker, expected_rise
from whycam.runtime.search import Belief
from whycam.runtime.sweep import Request, sweep
from whycam.runtime.tft import Tft

SIZE = 16
READINGS = [Tft("binary", "value"), Tft("soft", "rank")]


class Scene:
    """A class that likes one share of its map to be kept, which wanders; counts its answers.

    The probability of a masked image depends on how much of it is left.
    """

    def __init__(self, best=0.3, width=0.15):
        self.best, self.width, self.asked = best, width, 0

    def classify(self, images):
        self.asked += len(images)
        left = (images != 0).mean((1, 2, 3))
        own = 0.2 + 0.6 * np.exp(-(((left - self.best) / self.width) ** 2))
        return np.stack([own, 1 - own], 1).astype(np.float32)

    def request(self, seed=0, target=0):
        rng = np.random.default_rng(seed)
        values = np.sort(rng.random(SIZE * SIZE)).reshape(SIZE, SIZE).astype(np.float32)
        image = rng.normal(size=(3, SIZE, SIZE)).astype(np.float32) + 5
        return Request(image, values, target, 0.25)


@pytest.mark.parametrize("reading", READINGS)
def test_with_evaluations_for_all_thresholds_it_is_the_full_sweep(reading):
    scene = Scene()
    tracker = Tracker(scene.classify, 10)
    for seed in range(4):
        request = scene.request(seed)
        (full,) = sweep(scene.classify, [request], reading, 64)
        followed = tracker.choose(request, reading)
        assert tracker.evaluations == 10
        np.testing.assert_allclose(followed.rpi, full.rpi, atol=1e-6)
        assert (followed.threshold, followed.cut) == (full.threshold, full.cut)
        assert np.array_equal(followed.mask, full.mask)
        assert followed.masked_probability == pytest.approx(full.masked_probability)


@pytest.mark.parametrize("reading", READINGS)
def test_a_wandering_threshold_is_followed_with_the_evaluations_allowed(reading):
    rng = np.random.default_rng(1)
    scene, tracker = Scene(), None
    tracker = Tracker(scene.classify, 3)
    spent, kept, swept = [], [], []
    for _ in range(150):
        scene.best = float(np.clip(scene.best + rng.normal(scale=0.02), 0.1, 0.9))
        request = scene.request()
        before = scene.asked
        followed = tracker.choose(request, reading)
        assert scene.asked - before == tracker.evaluations
        spent.append(tracker.evaluations)
        kept.append(np.nanmax(followed.rpi))
        swept.append(sweep(scene.classify, [request], reading, 64)[0].rpi.max())
    assert spent[0] == 10
    assert 1 <= np.mean(spent[1:]) <= 3.3
    assert np.mean(kept) > 0.97 * np.mean(swept)


@pytest.mark.parametrize("budget", [2, 5])
def test_as_many_evaluations_are_spent_as_are_allowed(budget):
    rng = np.random.default_rng(2)
    scene = Scene(width=0.05)
    tracker = Tracker(scene.classify, budget)
    spent = []
    for _ in range(120):
        scene.best = float(rng.uniform(0.1, 0.9))  # nothing to follow: all it may spend is worth it
        tracker.choose(scene.request(seed=int(rng.integers(1000))), READINGS[0])
        spent.append(tracker.evaluations)
    assert np.mean(spent[30:]) == pytest.approx(budget, abs=0.4)


def test_a_still_scene_costs_less_than_a_new_class():
    scene = Scene()
    tracker = Tracker(scene.classify, 3)
    for _ in range(60):
        tracker.choose(scene.request(), READINGS[0])
    still = tracker.evaluations
    scene.best = 0.7
    tracker.choose(scene.request(seed=9, target=1), READINGS[0])
    assert still < tracker.evaluations


def test_a_class_that_comes_back_is_remembered():
    scene = Scene()
    tracker = Tracker(scene.classify, 3)
    for number in range(40):
        scene.best = (0.2, 0.8)[number % 2]
        followed = tracker.choose(scene.request(target=number % 2), READINGS[0])
        (full,) = sweep(scene.classify, [scene.request(target=number % 2)], READINGS[0], 64)
        if number > 20:
            assert np.nanmax(followed.rpi) > 0.9 * full.rpi.max()


def test_thresholds_that_keep_the_same_pixels_are_tried_once():
    scene = Scene()
    request = scene.request()
    flat = np.where(request.map > 0.5, np.float32(1), np.float32(0))
    tracker = Tracker(scene.classify, 10)
    found = tracker.choose(Request(request.image, flat, 0, 0.25), READINGS[0])
    assert tracker.evaluations == 1
    assert len(set(found.rpi.tolist())) == 1


def test_a_map_of_nothing_is_no_trouble():
    scene = Scene()
    tracker = Tracker(scene.classify, 3)
    request = scene.request()
    for _ in range(5):
        empty = Request(request.image, np.zeros_like(request.map), 0, 1.0)
        found = tracker.choose(empty, READINGS[0])
    assert not found.improved
    assert np.isfinite(found.map).all()


def test_another_reading_begins_anew():
    scene = Scene()
    tracker = Tracker(scene.classify, 2)
    for reading in (*READINGS, Tft(taus=(0.0, 0.5))):
        found = tracker.choose(scene.request(), reading)
        assert tracker.evaluations == len(reading.taus)
        assert found.rpi.shape == (len(reading.taus),)


def test_expected_rise_is_the_mean_of_what_draws_rise():
    rng = np.random.default_rng(0)
    root = rng.normal(size=(4, 4)) * 0.4
    mean, covariance = np.array([-0.5, 0.0, 0.4, 1.0]), root @ root.T
    best = np.float64(0.3)
    draws = rng.multivariate_normal(mean, covariance, 400_000)
    drawn = np.maximum(np.exp(draws) - np.exp(best), 0).mean(0)
    belief = Belief(mean, covariance, np.array([False, False, False, True]), best)
    found = expected_rise(belief)
    np.testing.assert_allclose(found[:3], drawn[:3], rtol=0.03, atol=2e-3)
    assert found[3] == -1


@pytest.mark.parametrize("budget", [0, 0.5, float("nan")])
def test_a_budget_below_one_forward_is_refused(budget):
    with pytest.raises(RequestError, match="1 evaluation a frame or more"):
        Tracker(lambda images: images, budget)
