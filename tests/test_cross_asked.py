"""Another network is asked about maps; maps of slightly changed images are compared."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import whycam
from whycam.calibrate import evaluate, open_dataset
from whycam.calibrate.quality import drops, increases
from whycam.calibrate.stability import _overlap, _shifted
from whycam.runtime.errors import RequestError
from whycam.runtime.manifest import Manifest, Preprocess
from whycam.runtime.pipeline import classify, prepare
from whycam.runtime.similarity import pearson


@pytest.fixture
def image_folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(3)
    for index in range(9):
        place = tmp_path / ("ant", "bee", "cat")[index % 3] / f"{index}.png"
        place.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(place)
    return tmp_path


@pytest.fixture
def other(tiny_engine, manifest_of) -> whycam.Explainer:
    engine = tiny_engine()
    engine.linear = np.roll(engine.linear, 1, axis=0)
    return whycam.Explainer(engine, manifest_of(model="other"))


def test_network_that_asks_itself_gets_its_own_answers(tiny, image_folder):
    methods = ["gradcam", "layercam"]
    found = evaluate(tiny, open_dataset(image_folder), methods=methods, asked=tiny)
    assert len(found.results) > 3
    for result in found.results:
        assert result.cross_asked_increase == result.average_increase
        assert result.cross_asked_drop == pytest.approx(result.average_drop, abs=1e-6)


def test_other_network_is_asked_about_the_same_class_and_mask(tiny, other, image_folder):
    data = open_dataset(image_folder)
    found = evaluate(tiny, data, methods=["gradcam"], variants=["original", "tft"], asked=other)
    expected: dict[str, list[tuple[float, float]]] = {"original": [], "tft": []}
    for sample in data.samples:
        e = tiny.explain(sample.path, tft=True)
        image = prepare([np.asarray(Image.open(sample.path))], tiny.manifest).inputs
        whole = classify(other.model, image)[0, e.index]
        for variant, map_ in (("original", e.original_map), ("tft", e.map)):
            mask = (map_ > 0).astype(np.float32)
            masked = classify(other.model, image * mask)[0, e.index]
            expected[variant].append((increases(masked, whole), drops(masked, whole)))
    for variant, rows in expected.items():
        increase, drop = np.mean(rows, axis=0)
        result = found.result("gradcam", variant)
        assert result.cross_asked_increase == pytest.approx(increase)
        assert result.cross_asked_drop == pytest.approx(drop, rel=1e-4)
        assert result.average_drop != pytest.approx(drop, rel=1e-3)
    assert any(note.startswith("asked: other") for note in found.notes)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"labels": ("a", "b", "c")}, "class names"),
        ({"preprocess": Preprocess(size=(8, 8), resize=(9,))}, "preprocessing"),
        ({"task": "none", "methods": ("gradcam",)}, "no probabilities"),
    ],
)
def test_network_that_cannot_be_compared_is_refused(
    tiny, tiny_engine, manifest_of: Callable[..., Manifest], image_folder, fields, said
):
    asked = whycam.Explainer(tiny_engine(), manifest_of(**fields))
    with pytest.raises(RequestError, match=said):
        evaluate(tiny, open_dataset(image_folder), asked=asked)


def test_rows_of_another_asked_network_are_not_mixed_in(tiny, other, image_folder, tmp_path):
    data, folder = open_dataset(image_folder), tmp_path / "report"
    evaluate(tiny, data, methods=["gradcam"], folder=folder)
    asked = whycam.Explainer(other.engine, tiny.manifest)
    found = evaluate(tiny, data, methods=["gradcam"], folder=folder, asked=asked)
    assert found.result("gradcam", "original").cross_asked_drop is not None


def test_maps_of_an_even_image_do_not_move(tiny, tmp_path):
    """A shift changes nothing of an image whose map is the same everywhere."""
    Image.new("RGB", (8, 8), (200, 30, 90)).save(tmp_path / "even.png")
    found = evaluate(tiny, open_dataset(tmp_path), methods=["gradcam"], stability=True)
    assert found.result("gradcam", "original").shift_stability == 1
    assert found.result("gradcam", "tft").shift_stability is None


def test_stability_is_the_correlation_with_maps_of_changed_images(tiny, image_folder):
    data = open_dataset(image_folder)
    found = evaluate(tiny, data, methods=["layercam"], variants=["original"], stability=True)
    again = evaluate(tiny, data, methods=["layercam"], variants=["original"], stability=True)
    result = found.result("layercam", "original")
    assert result == again.result("layercam", "original")
    assert 0.8 < result.noise_stability < 1
    correlations = []
    for sample in data.samples:
        e = tiny.explain(sample.path, method="layercam")
        pixels = np.asarray(Image.open(sample.path))
        moves = {(1, 0): (-1, 0), (-1, 0): (1, 0), (0, 1): (0, -1), (0, -1): (0, 1)}
        for down, right in moves:
            rows, columns = np.arange(8) - down, np.arange(8) - right
            moved = pixels[rows.clip(0, 7)][:, columns.clip(0, 7)]
            other = tiny.explain(moved, e.index, method="layercam").map
            seen = [
                (slice(max(0, -by), 8 - max(0, by)), slice(max(0, by), 8 - max(0, -by)))
                for by in (down, right)
            ]
            correlations.append(
                pearson(e.map[seen[0][0], seen[1][0]], other[seen[0][1], seen[1][1]])
            )
    assert result.shift_stability == pytest.approx(np.mean(correlations), abs=1e-5)


def test_overlap_of_a_shifted_image_is_what_both_show():
    image = np.arange(20.0, dtype=np.float32).reshape(4, 5)
    for move in ((1, 0), (-2, 0), (0, 2), (0, -1)):
        moved = _shifted(_shifted(image, move[0], 0), move[1], 1)
        np.testing.assert_array_equal(*_overlap(image, moved, move))


def test_road_and_sparsity_are_measured(tiny, image_folder):
    data = open_dataset(image_folder)
    found = evaluate(tiny, data, methods=["gradcam"], variants=["original"], road=True)
    result = found.result("gradcam", "original")
    assert 0 < result.road_most_relevant < 1
    assert 0 < result.road_least_relevant < 1
    assert 0 < result.sparsity < 1
    plain = evaluate(tiny, data, methods=["gradcam"], variants=["original"])
    assert plain.result("gradcam", "original").road_most_relevant is None
