"""The search of thresholds: its Gaussian against dense algebra, and through a tiny network."""

from __future__ import annotations

import json
import math
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from rich.console import Console

import whycam
from whycam.cli.explain import explanations_table
from whycam.cli.manifest_text import manifest_table
from whycam.runtime import search, tft
from whycam.runtime.errors import DataError, RequestError
from whycam.runtime.manifest import parse
from whycam.runtime.priors import read_priors
from whycam.runtime.search import FEATURES, Prior
from whycam.runtime.sweep import Request, sweep
from whycam.runtime.tft import Tft

TAUS = tuple(step / 20 for step in range(20))
T = len(TAUS)


def prior_of(seed: int = 0, **fields: Any) -> Prior:
    """A prior with neighbouring thresholds alike, as real ones are."""
    rng = np.random.default_rng(seed)
    apart = np.abs(np.subtract.outer(TAUS, TAUS))
    own: dict[str, Any] = {
        "method": "gradcam",
        "mask": "binary",
        "thresholds": "value",
        "taus": TAUS,
        "mean": tuple(rng.normal(size=FEATURES).tolist()),
        "scale": tuple(rng.uniform(0.5, 2, FEATURES).tolist()),
        "coefficients": tuple(map(tuple, (0.2 * rng.normal(size=(FEATURES, T))).tolist())),
        "covariance": tuple(
            map(tuple, (np.exp(-((apart / 0.3) ** 2)) + 1e-3 * np.eye(T)).tolist())
        ),
        "images": 7,
    }
    return Prior(**(own | fields))


def test_features_are_those_written_down():
    maps = np.random.default_rng(0).random((2, 3, 8, 9)).astype(np.float32)
    p = np.array([[0.1, 0.5, 0.9], [0.0, 1.0, 0.3]], np.float32)
    found = search.features(maps, p)
    assert found.shape == (2, 3, FEATURES)
    assert np.isfinite(found).all()
    one, odds = maps[0, 2], math.log(9)
    shares = [np.mean(one >= np.float32(edge / 10)) for edge in range(1, 10)]
    by_hand = [1, odds, odds**2 / 10, *shares, one.mean(), one.std()]
    np.testing.assert_allclose(found[0, 2], by_hand, rtol=1e-4)


def test_posterior_is_that_of_a_dense_gaussian():
    prior, rng = prior_of(), np.random.default_rng(1)
    f = rng.normal(size=FEATURES).astype(np.float32)
    seen = {3: 0.7, 11: -0.4, 4: 0.9, 19: -2.0}
    belief = search.begin(prior, f)
    for place, gain in seen.items():
        belief = search.observe(belief, np.eye(T, dtype=np.float32)[place], np.float32(gain))
    # p(y | y_o + noise), all gains seen at once, in float64.
    standard = (f.astype(np.float64) - prior.mean) / prior.scale
    mean, s = standard @ np.array(prior.coefficients), np.array(prior.covariance)
    o = list(seen)
    weights = s[:, o] @ np.linalg.inv(s[np.ix_(o, o)] + 1e-2 * np.eye(len(o)))
    np.testing.assert_allclose(
        belief.mean, mean + weights @ (np.array(list(seen.values())) - mean[o]), atol=1e-4
    )
    np.testing.assert_allclose(belief.covariance, s - weights @ s[o], atol=1e-4)
    assert sorted(np.flatnonzero(belief.tried)) == sorted(o)
    assert belief.best == np.float32(0.9)


def test_expected_improvement_is_the_mean_of_what_lies_above_the_best():
    prior = prior_of()
    belief = search.begin(prior, np.random.default_rng(2).normal(size=FEATURES).astype(np.float32))
    belief = search.observe(belief, np.eye(T, dtype=np.float32)[8], np.float32(0.3))
    found = search.expected_improvement(belief)
    assert found[8] == -1  # tried
    draws = np.random.default_rng(3).normal(size=400_000)
    for place in (0, 5, 9, 17):
        y = belief.mean[place] + math.sqrt(belief.covariance[place, place]) * draws
        assert found[place] == pytest.approx(np.maximum(y - belief.best, 0).mean(), abs=3e-3)


def test_first_step_is_the_largest_expected_improvement_and_none_is_taken_twice():
    prior, rng = prior_of(), np.random.default_rng(4)
    belief = search.begin(prior, rng.normal(size=(30, FEATURES)).astype(np.float32))
    tried = []
    for _ in range(T):
        expected = search.expected_improvement(belief)
        step = search.next_step(belief)
        assert (step.sum(-1) == 1).all()
        place = step.argmax(-1)
        taken = np.take_along_axis(expected, place[:, None], -1)[:, 0]
        np.testing.assert_allclose(taken, expected.max(-1), rtol=2e-4, atol=2e-6)
        tried.append(place)
        belief = search.observe(belief, step, rng.normal(size=30).astype(np.float32))
    assert len({int(row[0]) for row in tried}) == T
    assert (np.sort(np.stack(tried, -1), -1) == np.arange(T)).all()
    assert len({int(place) for place in tried[0]}) > 3, "the cases are all alike"


def test_numpy_and_torch_search_alike():
    prior, rng = prior_of(), np.random.default_rng(5)
    maps = rng.random((4, 3, 16, 16)).astype(np.float32)
    p = rng.random((4, 3)).astype(np.float32)
    gains = rng.normal(size=(4, 3, T)).astype(np.float32)
    found = []
    for make in (np.asarray, torch.from_numpy):
        belief = search.begin(prior, search.features(make(maps), make(p)))
        order = []
        for _ in range(6):
            step = search.next_step(belief)
            order.append(np.asarray(step))
            belief = search.observe(belief, step, (make(gains) * step).sum(-1))
        found.append((np.stack(order), np.asarray(belief.mean), np.asarray(belief.covariance)))
    for one, other in zip(*found, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


class Slope:
    """The class's probability grows with the pixels shown, to a peak, and falls again."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def __call__(self, images: np.ndarray) -> np.ndarray:
        self.batches.append(len(images))
        shown = (images[:, 0] != 0).mean((1, 2))
        p = (0.9 * np.exp(-(((shown - 0.4) / 0.3) ** 2))).astype(np.float32)
        return np.stack([1 - p, p], -1)


def slope_request(seed: int) -> Request:
    values = np.random.default_rng(seed).random((12, 12)).astype(np.float32)
    return Request(np.ones((3, 12, 12), np.float32), values, 1, 0.1 + 0.02 * seed)


def test_search_of_all_thresholds_finds_what_the_sweep_finds():
    settings = Tft(taus=TAUS)
    searching = msgspec.structs.replace(settings, evaluations=T)
    for seed in range(5):
        (full,) = sweep(Slope(), [slope_request(seed)], settings, 100)
        (found,) = sweep(Slope(), [slope_request(seed)], searching, 100, prior_of())
        assert found.improved
        assert found.threshold == full.threshold
        np.testing.assert_array_equal(found.rpi, full.rpi)
        np.testing.assert_array_equal(found.map, full.map)


def test_search_runs_as_many_evaluations_as_asked_and_says_what_was_not_tried():
    for k in (1, 3, 5):
        classifier = Slope()
        settings = Tft(taus=TAUS, evaluations=k)
        (found,) = sweep(classifier, [slope_request(0)], settings, 100, prior_of())
        assert classifier.batches == [1] * k
        assert np.isfinite(found.rpi).sum() == k
        best = TAUS[int(np.nanargmax(found.rpi))]
        assert found.threshold == best
        assert found.improved


def test_thresholds_that_keep_the_same_pixels_cost_one_forward():
    classifier = Slope()
    constant = Request(np.ones((3, 4, 4), np.float32), np.zeros((4, 4), np.float32), 1, 0.5)
    (found,) = sweep(classifier, [constant], Tft(taus=TAUS, evaluations=4), 100, prior_of())
    assert classifier.batches == [1]
    assert np.isfinite(found.rpi).sum() == 4
    assert not found.improved
    np.testing.assert_array_equal(found.map, constant.map)


def test_maps_searched_together_share_batches_and_choose_as_alone():
    requests = [slope_request(seed) for seed in range(5)]
    settings = Tft(taus=TAUS, evaluations=4)
    together = Slope()
    batch = sweep(together, requests, settings, 100, prior_of())
    assert together.batches == [5] * 4
    small = Slope()
    parts = sweep(small, requests, settings, 2, prior_of())
    assert max(small.batches) == 2
    for request, one, other in zip(requests, batch, parts, strict=True):
        (alone,) = sweep(Slope(), [request], settings, 100, prior_of())
        for found in (one, other):
            assert found.threshold == alone.threshold
            np.testing.assert_array_equal(found.rpi, alone.rpi)
    assert len({choice.threshold for choice in batch}) > 1, "the cases are all alike"


def test_search_of_nothing_is_empty():
    assert sweep(Slope(), [], Tft(taus=TAUS, evaluations=4), 10, prior_of()) == []


def test_map_stays_as_it_is_where_nothing_tried_improves():
    request = slope_request(0)
    certain = Request(request.image, request.map, 1, 0.95)  # above the peak
    (found,) = sweep(Slope(), [certain], Tft(taus=TAUS, evaluations=3), 10, prior_of())
    assert not found.improved
    assert found.threshold == 0
    np.testing.assert_array_equal(found.map, request.map)
    tried_zero = np.isfinite(found.rpi[0])
    assert (found.masked_probability is not None) == tried_zero


def test_thresholds_not_tried_are_never_chosen():
    nan = np.nan
    rpi = np.array([[nan, 0.2, nan, 0.4], [nan, 0.0, nan, 0.0], [nan] * 4], np.float32)
    assert tft.choose(rpi).tolist()[0] == 3
    assert tft.improves(rpi).tolist() == [True, False, False]
    cuts = np.broadcast_to(np.float32([0.0, 0.1, 0.2, 0.3]), (3, 4))
    threshold, cut = tft.best(rpi, cuts, (0.0, 0.1, 0.2, 0.3))
    np.testing.assert_allclose(threshold, [0.3, 0, 0], rtol=1e-6)
    np.testing.assert_allclose(cut, [0.3, 0, 0], rtol=1e-6)


@pytest.fixture
def searching(tiny_engine, manifest_of) -> whycam.Explainer:
    priors = (prior_of(), prior_of(1, mask="soft", thresholds="rank"))
    return whycam.Explainer(tiny_engine(), manifest_of(priors=priors))


IMAGES = np.random.default_rng(6).integers(0, 256, (3, 8, 8, 3), np.uint8)


def test_explainer_searches_with_the_prior_of_the_method_and_reading(searching):
    engine = searching.engine
    for reading in (("binary", "value"), ("soft", "rank")):
        engine.batches.clear()
        found = searching.explain(IMAGES[0], tft=Tft(*reading, evaluations=3))
        assert engine.batches[0] == 1
        assert len(engine.batches) <= 4
        assert set(engine.batches) == {1}
        assert found.tft == Tft(*reading, taus=TAUS, evaluations=3)
        assert found.rpi.shape == (T,)
        assert np.isfinite(found.rpi).sum() == 3


def test_classes_and_images_take_their_evaluations_together(searching):
    settings = Tft("soft", "rank", evaluations=3)
    together = searching.explain(list(IMAGES), [[0, 1]] * 3, tft=settings)
    # One for the maps, then six masked images, unless two of one map are the same.
    assert len(searching.engine.batches) == 4
    assert max(searching.engine.batches[1:]) == 6
    for image, row in zip(IMAGES, together, strict=True):
        for target, found in enumerate(row):
            alone = searching.explain(image, target, tft=settings)
            assert alone.threshold == found.threshold
            np.testing.assert_allclose(alone.rpi, found.rpi, rtol=1e-5)


@pytest.mark.parametrize(
    ("method", "settings"),
    [("layercam", Tft(evaluations=3)), ("gradcam", Tft("soft", evaluations=3))],
)
def test_search_without_a_prior_is_refused_with_the_command_that_learns_one(
    searching, method, settings
):
    with pytest.raises(RequestError, match="whycam calibrate thresholds") as caught:
        searching.explain(IMAGES[0], method=method, tft=settings)
    assert method in str(caught.value)
    assert settings.mask in str(caught.value)


def test_sweep_refuses_a_prior_of_other_thresholds():
    for prior in (None, prior_of()):
        with pytest.raises(RequestError, match="whycam calibrate thresholds"):
            sweep(Slope(), [slope_request(0)], Tft(evaluations=3), 10, prior)


@pytest.mark.parametrize("evaluations", [0, -1, 1.5, True, "4"])
def test_unusable_numbers_of_evaluations_are_refused(evaluations):
    with pytest.raises(RequestError, match="evaluations"):
        Tft(evaluations=evaluations)


def test_numbers_and_tables_cope_with_thresholds_not_tried(searching):
    found = searching.explain(IMAGES[0], tft=Tft("soft", "rank", evaluations=2))
    numbers = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert numbers["taus"] == list(TAUS)
    assert numbers["evaluations"] == 2
    assert sum(value is not None for value in numbers["rpi"]) == 2
    for improved, masked in ((True, 0.5), (False, None)):
        row = {"file": "a.png", **numbers, "improved": improved, "masked_probability": masked}
        assert explanations_table([{**row, "threshold": 0.35}], tft=True).row_count == 1


def test_figure_draws_the_thresholds_tried(searching):
    pytest.importorskip("matplotlib")
    found = searching.explain(IMAGES[0], tft=Tft("soft", "rank", evaluations=4))
    (line, *_) = found.figure().axes[-1].lines
    assert len(line.get_xdata()) == 4
    assert np.isfinite(line.get_ydata()).all()


def test_prior_survives_json(manifest_of, tmp_path):
    manifest = manifest_of(priors=(prior_of(),))
    assert parse(manifest.to_json(), "x").priors == (prior_of(),)
    report = tmp_path / "thresholds.json"
    report.write_bytes(msgspec.json.encode({"priors": [prior_of()], "model": "m"}))
    assert read_priors(report) == (prior_of(),)


@pytest.mark.parametrize(
    "fields",
    [
        {"taus": (0.0, 0.5)},
        {"taus": (0.5,) * T},
        {"mean": (0.0,)},
        {"scale": (0.0,) * FEATURES},
        {"scale": (math.nan,) * FEATURES},
        {"coefficients": ((0.0,) * T,)},
        {"covariance": ((-1.0,) * T,) * T},
        {"method": "smoothgrad"},
        {"mask": "hard"},
    ],
)
def test_prior_that_makes_no_sense_is_refused(fields):
    with pytest.raises(ValueError, match="prior"):
        prior_of(**fields)


@pytest.mark.parametrize("text", [None, "", "{}", '{"priors": []}', '{"priors": [{"method": 3}]}'])
def test_report_without_priors_is_a_data_error(tmp_path, text):
    path = tmp_path / "thresholds.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(DataError, match=r"thresholds\.json"):
        read_priors(path)


def test_info_says_what_can_be_searched(manifest_of, tmp_path):
    path = tmp_path / "m.onnx"
    path.write_bytes(b"")
    console = Console(width=300)

    def shown(**fields: Any) -> str:
        with console.capture() as captured:
            console.print(manifest_table(path, manifest_of(**fields)))
        return captured.get()

    text = shown(priors=(prior_of(), prior_of(method="layercam")))
    assert "learnt for gradcam, layercam (mask binary, by value); from 7 images" in text
    assert "threshold search" not in shown()
    assert "search of 3 evaluations" in shown(tft=Tft(evaluations=3))
