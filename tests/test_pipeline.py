"""The four steps from images to thresholded maps, and folders that go through them in batches."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import whycam
from whycam.runtime import pipeline
from whycam.runtime.batches import join_batches, map_ahead, prepared_batches
from whycam.runtime.errors import ImageError, RequestError
from whycam.runtime.pipeline import Prepared
from whycam.runtime.request import plan_request

THREE = ("gradcam", "layercam", "gradcam++")


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


@pytest.fixture
def folder(tmp_path: Path) -> list[Path]:
    """Seven images of several sizes; the third is no image."""
    files = []
    for index in range(7):
        files.append(tmp_path / f"{index}.png")
        Image.fromarray(noise(8 + index, 9, index)).save(files[-1])
    files[2].write_bytes(b"no image")
    return files


# Plans.


def test_each_output_is_asked_for_once_whatever_the_methods(manifest_of):
    plan = plan_request(manifest_of(), ["gradcam", "layercam", "gradcam"])
    assert [one.method for one in plan.methods] == ["gradcam", "layercam"]
    assert plan.outputs == ("probabilities", "targets", "activations", "gradients")


def test_finished_and_computed_maps_share_one_run(manifest_of):
    manifest = manifest_of(outputs=("raw", "map"), map_methods=("layercam",))
    plan = plan_request(manifest, ["layercam", "gradcam"])
    assert plan.outputs == ("probabilities", "targets", "maps", "activations", "gradients")


def test_no_method_at_all_is_refused(tiny):
    with pytest.raises(RequestError, match="empty list of methods"):
        tiny.explain(noise(8, 8), method=[])


# Several methods.


def test_several_methods_are_one_run_and_what_each_gives_alone(tiny, tiny_engine):
    images = [noise(8, 8), noise(11, 8, 1)]
    targets = [[0, -1], 2]
    found = tiny.explain(images, targets, THREE)
    runs = len(tiny.engine.batches)
    assert runs == 1
    assert list(found) == list(THREE)
    for method in THREE:
        alone = tiny.explain(images, targets, method)
        for ones, others in zip(found[method], alone, strict=True):
            assert type(ones) is type(others)
            for one, other in zip(np.ravel(ones), np.ravel(others), strict=True):
                assert (one.method, one.index) == (method, other.index)
                np.testing.assert_allclose(one.map, other.map, atol=1e-6)


def test_a_list_of_one_method_gives_a_dict(tiny):
    found = tiny.explain(noise(8, 8), method=["layercam"])
    assert list(found) == ["layercam"]
    assert found["layercam"].method == "layercam"


def test_masked_images_of_all_methods_and_images_share_batches(tiny_engine, manifest_of):
    engine = tiny_engine()
    model = pipeline.Model(engine, manifest_of(), batch=64)
    plan = plan_request(model.manifest, THREE, True)
    prepared = pipeline.prepare([noise(8, 8, seed) for seed in range(2)], model.manifest)
    inference = pipeline.infer(model, prepared.inputs, [[0], [1]], plan)
    maps = pipeline.map(model, inference, plan)
    assert [(one.row, one.column, one.method) for one in maps] == [
        (row, 0, method) for row in range(2) for method in THREE
    ]
    engine.batches.clear()
    choices = pipeline.threshold(model, inference, maps, plan)
    assert len(engine.batches) == 1
    explainer = whycam.Explainer(engine, model.manifest)
    for one, choice in zip(maps, choices, strict=True):
        alone = explainer.explain(
            prepared.images[one.row], targets=one.row, method=one.method, tft=True
        )
        assert choice.threshold == alone.threshold
        np.testing.assert_allclose(choice.rpi, alone.rpi, atol=1e-5)


def test_without_thresholding_there_is_no_choice(tiny):
    plan = tiny.plan(THREE)
    prepared = pipeline.prepare([noise(8, 8)], tiny.manifest)
    inference = pipeline.infer(tiny.model, prepared.inputs, [[-1]], plan)
    maps = pipeline.map(tiny.model, inference, plan)
    assert pipeline.threshold(tiny.model, inference, maps, plan) == (None, None, None)


def test_each_methods_naive_share_is_its_own(tiny):
    found = tiny.explain(noise(8, 8), method=["gradcam", "gradcam++"], tft="naive")
    assert found["gradcam"].threshold == 0.85
    assert found["gradcam++"].threshold == 0.50


# Folders.


def test_a_folder_is_explained_in_order_with_its_unreadable_file(tiny, folder):
    results = list(tiny.iter_explanations(folder, target=[0, 1], method=THREE))
    assert [file for file, _ in results] == folder
    for place, (file, found) in enumerate(results):
        if place == 2:
            assert isinstance(found, ImageError)
            assert str(file) in str(found)
            continue
        for method in THREE:
            alone = tiny.explain(file, targets=[0, 1], method=method)
            for one, other in zip(found[method], alone, strict=True):
                assert (one.index, one.method) == (other.index, method)
                np.testing.assert_allclose(one.map, other.map, atol=1e-6)


def test_only_a_few_images_are_read_ahead(tiny, folder):
    taken = []

    def endless():
        while True:
            taken.append(len(taken))
            yield noise(8, 8, len(taken))

    results = tiny.iter_explanations(endless())
    for _ in range(3):
        next(results)
    results.close()
    assert len(taken) < 200


def test_an_error_of_the_engine_ends_the_folder(tiny_engine, manifest_of):
    class Broken:
        name = description = reason = "broken"

        def run(self, *_, **__):
            raise whycam.WhyCamError("out of order")

    explainer = whycam.Explainer(Broken(), manifest_of())
    before = threading.active_count()
    with pytest.raises(whycam.WhyCamError, match="out of order"):
        explainer.explain([noise(8, 8)] * 5)
    assert threading.active_count() == before


def test_images_of_one_size_go_together_where_the_graph_takes_any(manifest_of):
    manifest = manifest_of(embedded_preprocess=True)
    images = [noise(8, 8), noise(8, 8), np.zeros((8, 8, 3)), noise(9, 8), noise(8, 8)]
    batches = list(prepared_batches(images, lambda image: image, manifest, most=4))
    sizes = [
        join_batches(read for _, read in batch if isinstance(read, Prepared)).inputs.shape[:3]
        for batch in batches
    ]
    assert sizes == [(2, 8, 8), (1, 9, 8), (1, 8, 8)]
    taken = [item for batch in batches for item, _ in batch]
    assert all(item is image for item, image in zip(taken, images, strict=True))


def test_a_batch_is_no_larger_than_memory_allows(manifest_of):
    manifest = manifest_of(embedded_preprocess=True)
    images = [noise(8, 8, seed) for seed in range(5)]
    memory = 2 * images[0].nbytes
    batches = prepared_batches(images, lambda image: image, manifest, most=4, memory=memory)
    assert [len(batch) for batch in batches] == [2, 2, 1]


def test_results_keep_their_order_and_work_overlaps():
    started = threading.Barrier(2, timeout=10)

    def work(item: int) -> int:
        if item < 2:
            started.wait()  # passes only if two are worked on at once
        time.sleep(0.01 * (3 - item))
        return item

    assert list(map_ahead(work, range(4), threads=2, ahead=3)) == [0, 1, 2, 3]


def test_what_a_thread_raises_comes_in_its_results_place():
    def work(item: int) -> int:
        if item == 2:
            raise ValueError("third")
        return item

    results = map_ahead(work, range(9), threads=2, ahead=3)
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(ValueError, match="third"):
        next(results)
