"""ONNX Runtime on a GPU: the same answers as on the CPU, from where they were asked for.

For a machine with an NVIDIA GPU and ``pip install "whycam[gpu]"``: ``pytest -m gpu``.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import whycam
from whycam.runtime.engines import ort_gpu
from whycam.runtime.engines.base import EngineSettings
from whycam.runtime.engines.nvidia import driver
from whycam.runtime.engines.ort import OnnxRuntimeEngine
from whycam.runtime.engines.ort_options import CUDA, TENSORRT, Place
from whycam.runtime.errors import EngineError
from whycam.runtime.onnxfile import read_manifest
from whycam.runtime.pipeline import classify, prepare

# Asked here, so that without a GPU nothing is exported either.
_NONE = driver().problem
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(_NONE is not None, reason=f"no GPU that can be used here: {_NONE}"),
]
RAW = ["probabilities", "targets", "activations", "gradients"]


def needed(place: Place) -> None:
    """With a GPU what is missing is a failure, but for TensorRT, which comes by itself."""
    problem = ort_gpu.problem(place)
    if problem is not None and place == TENSORRT and "TensorRT" in problem:
        pytest.skip(problem)
    assert problem is None, problem


@pytest.fixture(scope="module", params=[CUDA, TENSORRT], ids=lambda place: place.engine)
def place(request: pytest.FixtureRequest) -> Place:
    needed(request.param)
    return request.param


@pytest.fixture(scope="module")
def on_gpu(place: Place, lite0_onnx: Path) -> whycam.Explainer:
    """Loading alone shows that the engine reproduces PyTorch's answers for the test patterns."""
    return whycam.load(lite0_onnx, place.engine)


def test_it_is_the_provider_that_was_asked_for(on_gpu, place):
    assert on_gpu.engine.name == place.engine
    assert "GPU 0" in on_gpu.engine.description
    assert f" on {place.shown}, " in on_gpu.engine.description
    for run in on_gpu.engine._runs.values():
        assert run.__self__._session.get_providers()[0] == place.provider


@pytest.mark.parametrize("method", ["gradcam", "layercam", "ablation"])
def test_maps_and_thresholds_are_those_of_the_cpu(on_gpu, lite0, sample_images, method):
    ours, theirs = (e.explain(sample_images, method=method, tft=True) for e in (on_gpu, lite0))
    for a, b in zip(ours, theirs, strict=True):
        assert a.index == b.index
        assert abs(a.probability - b.probability) < 1e-3
        np.testing.assert_allclose(a.original_map, b.original_map, atol=1e-2)
        assert np.corrcoef(a.original_map.ravel(), b.original_map.ravel())[0, 1] > 0.9999
        np.testing.assert_allclose(a.rpi, b.rpi, atol=1e-2)


def test_float32_is_float32(on_gpu, lite0, sample_images):
    """With TF32, which has 10 bits, the difference is some 1e-4 and more."""
    images = prepare(
        [whycam.runtime.images.read_image(p) for p in sample_images], lite0.manifest
    ).inputs
    a, b = classify(on_gpu.model, images), classify(lite0.model, images)
    assert np.abs(a - b).max() < 3e-5


def test_any_batch_and_any_number_of_classes(on_gpu, lite0):
    """More shapes than buffers are kept for, beyond TensorRT's range, and back again."""
    rng = np.random.default_rng(0)
    for count, classes in ((1, 1), (2, 3), (33, 1), (5, 7), (1, 1), (3, 2)):
        image = rng.standard_normal((count, 3, 224, 224)).astype(np.float32)
        feeds = {"image": image, "target": rng.integers(0, 1000, (count, classes))}
        ours, theirs = (e.engine.run(feeds, RAW) for e in (on_gpu, lite0))
        for name in RAW:
            assert ours[name].shape == theirs[name].shape
            scale = max(np.abs(theirs[name]).max(), 1e-6)
            assert np.abs(ours[name] - theirs[name]).max() <= 1e-3 * scale, name


def test_results_stay_when_the_engine_runs_again(on_gpu, sample_images):
    first = on_gpu.explain(sample_images[0])
    before = first.map.copy()
    on_gpu.explain(sample_images[1])
    np.testing.assert_array_equal(first.map, before)


def test_threads_share_an_engine(on_gpu, sample_images):
    expected = [each.probability for each in on_gpu.explain(sample_images)]
    found: dict[int, list[float]] = {}

    def work(index: int) -> None:
        found[index] = [on_gpu.explain(p, tft=True).probability for p in sample_images]

    workers = [threading.Thread(target=work, args=(index,)) for index in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
    assert len(found) == 2
    for each in found.values():
        np.testing.assert_allclose(each, expected, atol=1e-5)


def test_a_sweep_in_the_graph_is_that_of_the_cpu(place, curved_onnx, sample_images):
    ours, theirs = (
        whycam.load(curved_onnx, name).explain(sample_images, tft=True)
        for name in (place.engine, "onnxruntime")
    )
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a.original_map, b.original_map, atol=1e-3)
        np.testing.assert_allclose(a.rpi, b.rpi, rtol=5e-2, atol=1e-2)


def test_many_runs_hold_no_more_memory(place, curved_onnx):
    engine = whycam.load(curved_onnx, place.engine).engine
    feeds = {"image": np.zeros((4, 3, 32, 32), np.float32), "target": np.zeros((4, 1), np.int64)}

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    for _ in range(500):
        engine.run(feeds, RAW)
    before = resident()
    for _ in range(10_000):
        engine.run(feeds, RAW)
    assert resident() - before < 32 * 2**20


def test_a_gpu_that_is_not_there_is_refused(place, curved_onnx):
    with pytest.raises(EngineError, match="there is no GPU 99; choose from: 0"):
        whycam.load(curved_onnx, place.engine, gpu=99)


def test_tensorrt_keeps_what_it_built(curved_onnx, tmp_path):
    needed(TENSORRT)
    settings = EngineSettings(cache=str(tmp_path))
    first = _opened(curved_onnx, settings)
    built = sorted(tmp_path.rglob("*.engine"))
    assert built
    stamps = [path.stat().st_mtime_ns for path in built]
    feeds = {"image": np.ones((1, 3, 32, 32), np.float32), "target": np.zeros((1, 1), np.int64)}
    again = _opened(curved_onnx, settings)
    assert [path.stat().st_mtime_ns for path in built] == stamps
    for name, values in first.run(feeds, RAW).items():
        np.testing.assert_allclose(again.run(feeds, RAW)[name], values, atol=1e-5)


def _opened(path: Path, settings: EngineSettings) -> Any:
    return OnnxRuntimeEngine(str(path), read_manifest(path), settings, TENSORRT)
