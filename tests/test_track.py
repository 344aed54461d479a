"""Following a threshold from frame to frame, held against sweeping all of them."""

import numpy as np
import pytest

from whycam.runtime import tft
from whycam.runtime.errors import RequestError
from whycam.runtime.live.track import Allowance, Tracker, expected_rise
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
    tracker = Tracker(scene.classify, 64)
    for seed in range(4):
        request = scene.request(seed)
        (full,) = sweep(scene.classify, [request], reading, 64)
        followed = tracker.choose(request, reading, Allowance(10))
        assert tracker.evaluations == 10
        np.testing.assert_allclose(followed.rpi, full.rpi, atol=1e-6)
        assert (followed.threshold, followed.cut) == (full.threshold, full.cut)
        assert np.array_equal(followed.mask, full.mask)
        assert followed.masked_probability == pytest.approx(full.masked_probability)


@pytest.mark.parametrize("reading", READINGS)
def test_a_wandering_threshold_is_followed_with_the_evaluations_allowed(reading):
    rng = np.random.default_rng(1)
    scene = Scene()
    tracker = Tracker(scene.classify)
    spent, kept, swept = [], [], []
    for _ in range(150):
        scene.best = float(np.clip(scene.best + rng.normal(scale=0.02), 0.1, 0.9))
        request = scene.request()
        before = scene.asked
        followed = tracker.choose(request, reading, Allowance(3))
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
    tracker = Tracker(scene.classify)
    spent = []
    for _ in range(120):
        scene.best = float(rng.uniform(0.1, 0.9))  # nothing to follow: all it may spend is worth it
        tracker.choose(scene.request(int(rng.integers(1000))), READINGS[0], Allowance(budget))
        spent.append(tracker.evaluations)
    assert np.mean(spent[30:]) == pytest.approx(budget, abs=0.4)


def test_a_still_scene_costs_less_than_a_new_class():
    scene = Scene()
    tracker = Tracker(scene.classify)
    for _ in range(60):
        tracker.choose(scene.request(), READINGS[0], Allowance(3))
    still = tracker.evaluations
    scene.best = 0.7
    tracker.choose(scene.request(seed=9, target=1), READINGS[0], Allowance(3))
    assert still < tracker.evaluations


def test_a_class_that_comes_back_is_remembered():
    scene = Scene()
    tracker = Tracker(scene.classify)
    for number in range(40):
        scene.best = (0.2, 0.8)[number % 2]
        followed = tracker.choose(scene.request(target=number % 2), READINGS[0], Allowance(3))
        (full,) = sweep(scene.classify, [scene.request(target=number % 2)], READINGS[0], 64)
        if number > 20:
            assert np.nanmax(followed.rpi) > 0.9 * full.rpi.max()


def test_thresholds_that_keep_the_same_pixels_are_tried_once():
    scene = Scene()
    request = scene.request()
    flat = np.where(request.map > 0.5, np.float32(1), np.float32(0))
    tracker = Tracker(scene.classify)
    found = tracker.choose(Request(request.image, flat, 0, 0.25), READINGS[0], Allowance(10))
    assert tracker.evaluations == 1
    assert len(set(found.rpi.tolist())) == 1


def test_a_map_of_nothing_is_no_trouble():
    scene = Scene()
    tracker = Tracker(scene.classify)
    request = scene.request()
    for _ in range(5):
        empty = Request(request.image, np.zeros_like(request.map), 0, 1.0)
        found = tracker.choose(empty, READINGS[0], Allowance(3))
    assert not found.improved
    assert np.isfinite(found.map).all()


def test_another_reading_begins_anew():
    scene = Scene()
    tracker = Tracker(scene.classify)
    for reading in (*READINGS, Tft(taus=(0.0, 0.5))):
        found = tracker.choose(scene.request(), reading, Allowance(2))
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


@pytest.mark.parametrize("evaluations", [0, 0.5, float("nan")])
def test_fewer_evaluations_than_must_be_made_are_refused(evaluations):
    with pytest.raises(RequestError, match="1 evaluation a frame or more"):
        Allowance(evaluations)


class Timed(Scene):
    """A scene whose evaluations take time on a clock of its own: ``fixed`` + ``each`` an image."""

    def __init__(self, fixed: float, each: float) -> None:
        super().__init__()
        self.now, self.fixed, self.each = 0.0, fixed, each
        self.runs: list[int] = []

    def classify(self, images):
        self.now += self.fixed + self.each * len(images)
        self.runs.append(len(images))
        return super().classify(images)

    def tracker(self):
        return Tracker(self.classify, 64, lambda: self.now)


@pytest.mark.parametrize("reading", READINGS)
def test_without_time_the_last_threshold_of_the_class_holds_on_the_new_map(reading):
    scene = Timed(0.0, 0.01)
    tracker = scene.tracker()
    chosen = tracker.choose(scene.request(), reading, Allowance(10))
    before = scene.asked
    request = scene.request(seed=1)
    held = tracker.choose(request, reading, Allowance(0, 0.0, least=0))
    assert scene.asked == before
    assert tracker.evaluations == 0
    assert (held.threshold, held.improved) == (chosen.threshold, chosen.improved)
    assert np.isnan(held.rpi).all()
    assert held.masked_probability is None
    cut = tft.cut_values(request.map, (chosen.threshold,), reading.thresholds)[0]
    assert np.array_equal(held.map, np.where(request.map >= cut, request.map, 0))


def test_a_new_class_without_time_takes_the_threshold_of_the_frame_before():
    scene = Timed(0.0, 0.01)
    tracker = scene.tracker()
    scene.best = 0.7
    first = tracker.choose(scene.request(), READINGS[0], Allowance(10))
    held = tracker.choose(scene.request(target=1), READINGS[0], Allowance(0, 0.0, least=0))
    assert held.threshold == first.threshold
    # And keeps it, also when the other class has moved on.
    scene.best = 0.2
    moved = tracker.choose(scene.request(), READINGS[0], Allowance(10))
    again = tracker.choose(scene.request(target=1), READINGS[0], Allowance(0, 0.0, least=0))
    assert moved.threshold != first.threshold
    assert again.threshold == first.threshold


def test_where_no_threshold_improved_none_is_held():
    scene = Timed(0.0, 0.01)
    tracker = scene.tracker()
    request = scene.request()
    sure = Request(request.image, request.map, 0, 0.99)
    assert not tracker.choose(sure, READINGS[0], Allowance(10)).improved
    held = tracker.choose(sure, READINGS[0], Allowance(0, 0.0, least=0))
    assert not held.improved
    assert held.cut == 0
    assert np.array_equal(held.map, request.map)


def test_no_evaluation_begins_that_would_end_too_late():
    scene = Timed(0.0, 0.01)
    tracker = scene.tracker()
    tracker.choose(scene.request(), READINGS[0], Allowance(10))
    for seconds, most in ((0.0, 0), (0.0099, 0), (0.035, 3), (0.0501, 5)):
        begun = scene.now
        scene.best = 1 - scene.best
        tracker.choose(scene.request(seed=3), READINGS[0], Allowance(9.9, seconds, least=0))
        assert tracker.evaluations <= most
        assert scene.now - begun <= seconds


def test_half_an_evaluation_a_frame_is_one_at_every_other_frame():
    rng = np.random.default_rng(3)
    scene = Timed(0.0, 0.01)
    tracker = scene.tracker()
    spent = []
    for _ in range(200):
        scene.best = float(rng.uniform(0.1, 0.9))
        request = scene.request(int(rng.integers(1000)))
        tracker.choose(request, READINGS[0], Allowance(0.5, 0.05, least=0))
        spent.append(tracker.evaluations)
    assert np.mean(spent[50:]) == pytest.approx(0.5, abs=0.15)


def test_all_thresholds_share_a_run_and_cost_what_that_run_costs():
    scene = Timed(fixed=0.010, each=0.001)  # as on a GPU: a batch costs little more than one image
    tracker = scene.tracker()
    assert tracker.affordable(0.0, 10) == 10  # nothing is known yet: the first frame measures
    tracker.choose(scene.request(), READINGS[0], Allowance(10))
    assert scene.runs == [1] * 10
    assert tracker.affordable(0.033, 10) == pytest.approx(3)
    tracker.choose(scene.request(), READINGS[0], Allowance(10))
    assert scene.runs[10:] == [10]
    assert tracker.affordable(0.021, 10) == 10
    assert tracker.affordable(0.019, 10) == pytest.approx(19 / 11)
