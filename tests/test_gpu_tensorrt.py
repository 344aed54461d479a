"""The engine for TensorRT plans on a real GPU: ``pytest -m gpu tests/test_gpu_tensorrt.py``.

Skipped, with the reason, where there is no GPU or no library of NVIDIA's.
"""

from __future__ import annotations

import hashlib
import importlib
import random
import threading
import warnings
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from agreement import overlap

import whycam
from whycam.runtime.engines import cuda
from whycam.runtime.engines.plan import Library, read_plan, write_sidecar
from whycam.runtime.engines.trt_load import is_installed
from whycam.runtime.errors import EngineError, ModelFileError, WhyCamError
from whycam.runtime.pipeline import classify

pytestmark = [pytest.mark.gpu, pytest.mark.slow]

LIBRARIES: tuple[Library, ...] = ("tensorrt", "tensorrt-rtx")
METHODS = ["gradcam", "layercam", "gradcam++", "hirescam", "xgradcam", "cam"]
# Of the last bits: sums in another order, and a GPU's own exponential function.
CLOSE = {"fp32": 1e-4, "fp16": 2e-2}


@pytest.fixture(scope="session")
def gpu() -> cuda.Device:
    try:
        return cuda.find_device(0)
    except WhyCamError as error:
        pytest.skip(str(error))


@pytest.fixture(autouse=True)
def needs_a_gpu(gpu: cuda.Device) -> None:
    """Skips every test here where there is none."""


@pytest.fixture(scope="session", params=LIBRARIES)
def library(request, gpu) -> Library:
    name: Library = request.param
    if not is_installed(name):
        pytest.skip(f'{name} is not installed: pip install "whycam[{name}]"')
    if name == "tensorrt-rtx":
        from whycam.runtime.engines.trt_load import import_library

        target = f"SM{gpu.compute.replace('.', '')}"
        if not hasattr(import_library(name, "this test").ComputeCapability, target):
            pytest.skip(f"TensorRT-RTX has no target for {gpu.name}, {gpu.compute}")
    return name


@pytest.fixture(scope="session")
def graphs(lite0_onnx, tmp_path_factory) -> dict[str, Path]:
    """Files to build from: raw outputs, and thresholds chosen in the graph."""
    from whycam.export import to_onnx

    path = tmp_path_factory.mktemp("tft") / "lite0.tft.onnx"
    root = Path(__file__).parent.parent
    to_onnx(f"{root / 'examples' / 'efficientnet_lite0.py'}:model", path, outputs=["raw", "tft"])
    return {"raw": lite0_onnx, "tft": path}


@pytest.fixture(scope="session")
def plan_of(graphs, library, gpu, tmp_path_factory):
    """Builds each plan once."""
    from whycam.export.build import build
    from whycam.runtime.engines.plan import Range

    folder = tmp_path_factory.mktemp("plans")
    made: dict[tuple[str, str], Path] = {}

    def plan(graph: str = "raw", precision: Any = "fp32") -> Path:
        key = (graph, precision)
        if key not in made:
            made[key] = folder / f"{graph}.{precision}.{library}.plan"
            build(
                graphs[graph],
                made[key],
                library=library,
                compute=[gpu.compute] if library == "tensorrt-rtx" else None,
                precision=precision,
                batch=Range(1, 2, 4),
                classes=Range(1, 1, 2),
            )
        return made[key]

    return plan


@pytest.fixture(scope="session")
def reference(graphs) -> dict[str, whycam.Explainer]:
    return {name: whycam.load(path, "onnxruntime") for name, path in graphs.items()}


def prepared(explainer: whycam.Explainer, count: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    size = explainer.manifest.preprocess.size
    return rng.normal(size=(count, 3, *size)).astype(np.float32)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_activations_gradients_and_probabilities_agree(plan_of, reference, precision):
    outputs = ["probabilities", "targets", "activations", "gradients", "ablation_weights"]
    ours, theirs = whycam.load(plan_of("raw", precision)), reference["raw"]
    feeds = {"image": prepared(theirs, 3), "target": np.array([[-1, 7], [-2, 3], [-1, -1]])}
    found, right = ours.engine.run(feeds, outputs), theirs.engine.run(feeds, outputs)
    near = CLOSE[precision]
    np.testing.assert_allclose(found["probabilities"], right["probabilities"], atol=near)
    if precision == "fp32":
        np.testing.assert_array_equal(found["targets"], right["targets"])
    for name in ("activations", "gradients"):
        scale = np.abs(right[name]).max()
        assert np.abs(found[name] - right[name]).max() <= 10 * near * scale, name


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_maps_agree(plan_of, reference, sample_images, precision, method):
    ours = whycam.load(plan_of("raw", precision)).explain(sample_images, method=method)
    for a, b in zip(ours, reference["raw"].explain(sample_images, method=method), strict=True):
        assert a.index == b.index
        assert np.corrcoef(a.map.ravel(), b.map.ravel())[0, 1] > (
            0.9999 if precision == "fp32" else 0.999
        )


@pytest.mark.parametrize("graph", ["raw", "tft"])
def test_thresholds_agree(plan_of, reference, sample_images, graph):
    """Chosen by the runtime's sweep, and by the graph's own."""
    ours = whycam.load(plan_of(graph)).explain(sample_images, tft=True)
    for a, b in zip(ours, reference[graph].explain(sample_images, tft=True), strict=True):
        np.testing.assert_allclose(a.rpi, b.rpi, atol=1e-2)
        assert a.threshold == b.threshold
        assert overlap(a.map, b.map) > 0.99


def test_any_batch_and_any_number_of_classes(plan_of, reference):
    """More than the plan was built for, and numbers between its sizes."""
    ours, theirs = whycam.load(plan_of()), reference["raw"]
    for count, classes in [(1, 1), (3, 2), (4, 1), (5, 3), (9, 5), (2, 1), (1, 1)]:
        feeds = {
            "image": prepared(theirs, count, count),
            "target": np.tile(-1 - np.arange(classes), (count, 1)),
        }
        outputs = ["probabilities", "gradients"]
        found, right = ours.engine.run(feeds, outputs), theirs.engine.run(feeds, outputs)
        assert found["gradients"].shape == right["gradients"].shape
        np.testing.assert_allclose(found["probabilities"], right["probabilities"], atol=1e-4)


def test_replays_follow_changing_inputs(plan_of, reference):
    ours, theirs = whycam.load(plan_of()), reference["raw"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a refused recording would warn
        for seed in range(8):
            images = prepared(theirs, 2, seed)
            found, right = classify(ours.model, images), classify(theirs.model, images)
            np.testing.assert_allclose(found, right, atol=1e-4)
    assert "without CUDA graphs" not in ours.engine.description


@pytest.mark.parametrize("hint", ["latency", "throughput"])
def test_two_threads_share_a_plan(plan_of, reference, hint):
    ours, theirs = whycam.load(plan_of(), hint=hint), reference["raw"]
    images = [prepared(theirs, 1 + seed % 3, seed) for seed in range(6)]
    right = [classify(theirs.model, each) for each in images]
    finished = []

    def work(offset: int) -> None:
        for turn in range(60):
            index = (turn + offset) % len(images)
            found = classify(ours.model, images[index])
            np.testing.assert_allclose(found, right[index], atol=1e-4)
        finished.append(offset)

    threads = [threading.Thread(target=work, args=(offset,)) for offset in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(300)
    assert sorted(finished) == [0, 1]


def free_memory() -> int:
    status, free, _ = importlib.import_module("cuda.bindings.runtime").cudaMemGetInfo()
    assert int(status) == 0
    return int(free)


def test_ten_thousand_runs_take_no_more_memory(plan_of):
    ours = whycam.load(plan_of())
    shapes = [(1, 1), (2, 1), (3, 2), (4, 1)]
    fed = {
        (n, k): {"image": prepared(ours, n), "target": np.full((n, k), -1, np.int64)}
        for n, k in shapes
    }
    outputs = ["probabilities", "activations"]
    for shape in shapes * 5:
        ours.engine.run(fed[shape], outputs)
    before = free_memory()
    choices = random.Random(0)
    for _ in range(10_000):
        ours.engine.run(fed[choices.choice(shapes)], outputs)
    # The driver takes pages of 2 MB; others on this GPU may come and go.
    assert before - free_memory() < 32 << 20
    ours.engine.close()
    assert free_memory() >= before


def test_a_plan_for_another_gpu_or_version_is_refused(plan_of, tmp_path):
    source = plan_of()
    path = tmp_path / "m.plan"
    path.write_bytes(source.read_bytes())
    plan = read_plan(source)
    for change, message in [
        ({"compute": ("3.5",)}, r"built for compute capability 3\.5.*whycam build"),
        ({"library_version": "1.0.0"}, r"built with \S+ 1\.0\.0.*whycam build"),
    ]:
        write_sidecar(path, msgspec.structs.replace(plan, **change))
        with pytest.raises(EngineError, match=message):
            whycam.load(path)
    write_sidecar(path, plan)
    path.write_bytes(source.read_bytes()[:-1])
    with pytest.raises(ModelFileError, match="not the plan that its sidecar describes"):
        whycam.load(path)
    with pytest.raises(EngineError, match="there is no GPU 64"):
        whycam.load(source, gpu=64)


def test_bytes_that_are_no_plan_are_refused_and_not_run(plan_of, tmp_path):
    path, data = tmp_path / "m.plan", bytes(range(256)) * 64
    path.write_bytes(data)
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    write_sidecar(path, msgspec.structs.replace(read_plan(plan_of()), digest=digest))
    with pytest.raises(EngineError, match=r"cannot (load|run)"):
        whycam.load(path)


def test_kernels_are_kept_in_the_cache(plan_of, library, tmp_path, chelsea):
    if library != "tensorrt-rtx":
        pytest.skip("TensorRT compiles when it builds")
    folder = tmp_path / "cache"
    first = whycam.load(plan_of(), cache=folder)
    right = first.explain(chelsea)
    first.engine.close()
    (kept,) = folder.iterdir()
    assert kept.stat().st_size > 0
    again = whycam.load(plan_of(), cache=folder)
    np.testing.assert_allclose(again.explain(chelsea).map, right.map, atol=1e-3)
