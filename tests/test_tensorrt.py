"""The engine for TensorRT plans, driven against stand-ins of the CUDA driver and of TensorRT.

Nothing here ran on a GPU: see driver_standin.py for what the stand-ins are, and
test_gpu_tensorrt.py for the tests that need one.
"""

from __future__ import annotations

import ctypes
import gc
import hashlib
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import driver_standin as standin
import msgspec
import numpy as np
import pytest
from driver_standin import PLAN, Driver, Kind, Library, Status
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import whycam
from whycam import cli
from whycam.runtime.engines import registry as engines
from whycam.runtime.engines.base import EngineSettings
from whycam.runtime.engines.interface import graph_name
from whycam.runtime.engines.plan import Plan, Range, Tensor, read_plan, write_sidecar
from whycam.runtime.engines.trt import TensorRtEngine, _size_for
from whycam.runtime.errors import EngineError, MissingExtraError, ModelFileError, WhyCamError
from whycam.runtime.manifest import Manifest

VERSIONS = {"tensorrt": "10.13.0.35", "tensorrt-rtx": "1.7.1.116"}
KINDS = {"float32": "FLOAT", "int64": "INT64", "uint8": "UINT8"}
METHODS = ("cam", "gradcam", "layercam", "scorecam")
RAW = ["probabilities", "targets", "activations", "gradients"]


@dataclass
class Rig:
    """A plan on disk, and stand-ins in place of what runs it."""

    driver: Driver
    library: Library
    path: Path
    manifest: Manifest
    monkeypatch: pytest.MonkeyPatch

    def open(self, **wishes: Any) -> TensorRtEngine:
        return TensorRtEngine(str(self.path), self.manifest, EngineSettings(**wishes))

    def change(self, **fields: Any) -> None:
        """Another sidecar."""
        write_sidecar(self.path, msgspec.structs.replace(read_plan(self.path), **fields))


@pytest.fixture
def rig_of(tmp_path, monkeypatch, manifest_of, tiny_engine) -> Iterator[Callable[..., Rig]]:
    """Makes a rig; by default a raw plan of plain TensorRT for 1 to 8 images and 1 to 3 classes."""

    def build(
        library: Any = "tensorrt",
        sizes: tuple[int, int, int] = (1, 4, 8),
        targets: tuple[int, int, int] = (1, 1, 3),
        network: Any = None,
        compute: Any = ((8, 6),),
        **fields: Any,
    ) -> Rig:
        batch, classes = Range(*sizes), Range(*targets)
        manifest = manifest_of(**{"methods": METHODS, **fields})
        driver = Driver(compute)
        made = Library(
            driver, network or tiny_engine().run, library == "tensorrt-rtx", VERSIONS[library]
        )
        most = [720 if side is None else side for side in manifest.image_shape]
        sides = [-1 if side is None else side for side in manifest.image_shape]
        image = {"uint8": "UINT8", "float16": "HALF", "float32": "FLOAT"}[manifest.image_type]
        inputs = {graph_name("image", manifest): (image, (-1, *sides), (batch.most, *most))}
        if manifest.top is None:
            shape = (-1, -1), (batch.most, classes.most)
            inputs[graph_name("target", manifest)] = ("INT64", *shape)
        outputs = {
            graph_name(name, manifest): (
                "INT64" if name == "targets" else "FLOAT",
                ("N", *((manifest.top or "k") if side is None else side for side in shape)),
            )
            for name, shape in manifest.output_shapes.items()
        }
        outputs |= dict.fromkeys(manifest.own_outputs, ("FLOAT", ("N", 2)))
        path = tmp_path / "tiny.plan"
        path.write_bytes(made.plan(inputs, outputs))
        any_size = manifest.embedded_preprocess and manifest.source_size is None
        plan = Plan(
            manifest=manifest,
            digest=f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}",
            library=library,
            library_version=VERSIONS[library],
            compute=("8.6",),
            gpu="Stand-in 0" if library == "tensorrt" else None,
            batch=batch,
            classes=classes,
            height=Range(32, 480, 720) if any_size else None,
            width=Range(32, 640, 720) if any_size else None,
            inputs=(Tensor("image", "float32", (-1, *sides)), Tensor("target", "int64", (-1, -1))),
            outputs=(),
        )
        write_sidecar(path, plan)
        monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", driver.module())
        module = made.module()
        monkeypatch.setitem(sys.modules, module.__name__, module)
        return Rig(driver, made, path, manifest, monkeypatch)

    gc.freeze()  # what earlier tests of this process hold takes seconds to look through
    yield build
    gc.collect()  # engines of this test give back to this test's driver
    gc.unfreeze()


def feeds_of(n: int, k: int = 1, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng([seed, n, k])
    return {
        "image": rng.normal(size=(n, 3, 8, 8)).astype(np.float32),
        "target": rng.integers(-3, 3, (n, k)),
    }


def assert_right(engine: Any, feeds: dict[str, np.ndarray], expected: Any, outputs=RAW) -> None:
    """The answers of the network itself, row by row."""
    found = engine.run(feeds, outputs)
    assert list(found) == list(outputs)
    right = expected.run(feeds, outputs)
    for name in outputs:
        assert found[name].dtype == right[name].dtype
        np.testing.assert_array_equal(found[name], right[name])


# Answers.


@pytest.mark.parametrize("library", ["tensorrt", "tensorrt-rtx"])
def test_a_plan_explains_as_its_network_does(rig_of, tiny, library):
    rig = rig_of(library)
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (9, 12, 3), np.uint8) for _ in range(11)]
    explainer = whycam.load(rig.path)
    assert explainer.engine.name == "tensorrt"
    assert VERSIONS[library] in explainer.engine.description
    assert "Stand-in 0 (compute capability 8.6), fp32" in explainer.engine.description
    for _ in range(3):  # plain, recorded, replayed
        found = explainer.explain(images, targets=[[-1, -2]] * 11, tft=True)
        right = tiny.explain(images, targets=[[-1, -2]] * 11, tft=True)
        for row, expected in zip(found, right, strict=True):
            for a, b in zip(row, expected, strict=True):
                assert (a.index, a.probability, a.threshold) == (
                    b.index,
                    b.probability,
                    b.threshold,
                )
                np.testing.assert_array_equal(a.map, b.map)
    np.testing.assert_array_equal(explainer.classify(images), tiny.classify(images))


@pytest.mark.parametrize("library", ["tensorrt", "tensorrt-rtx"])
@pytest.mark.parametrize(
    "fields",
    [
        {"names": {"image": "input_1", "target": "class", "probabilities": "dense"}},
        {"own_outputs": ("logits",)},
        {"image_dtype": "float16"},
        {"top": 2, "names": {"image": "input_1"}},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_a_plan_of_a_file_that_kept_its_interface_explains_the_same(
    rig_of, tiny, tiny_engine, library, fields
):
    """The network is asked by its own names; ranks are picked of those that it explains."""
    contract = {own: name for name, own in fields.get("names", {}).items()}
    expected = tiny_engine()

    def network(feeds: Any, outputs: Any) -> dict[str, Any]:
        known = {contract.get(name, name): values for name, values in feeds.items()}
        ranks = np.tile([-1, -2], (len(known["image"]), 1))
        target = known.get("target", ranks)
        names = {each: contract.get(each, each) for each in outputs if each != "logits"}
        found = expected.run({"image": known["image"], "target": target}, list(names.values()))
        return {own: found[name] for own, name in names.items()}

    rig = rig_of(
        library, targets=(2, 2, 2) if "top" in fields else (1, 1, 3), network=network, **fields
    )
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (9, 12, 3), np.uint8) for _ in range(11)]
    explainer = whycam.load(rig.path)
    tolerance = 2e-2 if "image_dtype" in fields else 1e-6
    for targets in ([[-1, -2]] * 11, -2):
        found = explainer.explain(images, targets)
        right = tiny.explain(images, targets)
        for a, b in zip(np.ravel(found), np.ravel(right), strict=True):
            assert a.index == b.index
            np.testing.assert_allclose(a.map, b.map, atol=tolerance)
            assert a.probability == pytest.approx(b.probability, abs=tolerance)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    runs=st.lists(
        st.tuples(
            st.integers(1, 19), st.integers(1, 7), st.lists(st.sampled_from(RAW), min_size=1)
        ),
        min_size=1,
        max_size=12,
    ),
    batch=st.sampled_from([(1, 1, 1), (2, 2, 5), (3, 4, 4), (1, 8, 16), (7, 7, 7)]),
    classes=st.sampled_from([(1, 1, 1), (2, 2, 3), (1, 1, 5)]),
    library=st.sampled_from(["tensorrt", "tensorrt-rtx"]),
)
def test_any_batch_is_split_and_filled_and_no_answer_changes(
    rig_of, tiny_engine, runs, batch, classes, library
):
    rig = rig_of(library, batch, classes)
    expected = tiny_engine()
    with rig.open() as engine:
        for seed, (n, k, outputs) in enumerate(runs):
            assert_right(engine, feeds_of(n, k, seed), expected, list(dict.fromkeys(outputs)))
        assert all(batch[0] <= n <= batch[2] for c in rig.library.contexts for n in _first(c))
        assert len(rig.library.contexts) <= (1 if library == "tensorrt-rtx" else 8)
    assert not any(rig.driver.held.values())


def _first(context: Any) -> list[int]:
    return [shape[0] for shape in context.shapes.values()]


@pytest.mark.parametrize("batch", [(1, 10, 32), (1, 8, 64), (3, 3, 17)])
def test_a_filled_batch_wastes_a_third_at_most(batch):
    least, best, most = batch
    sides = Range(*batch)
    sizes = {n: _size_for(n, sides) for n in range(1, most + 1)}
    assert all(least <= size <= most and size >= n for n, size in sizes.items())
    assert all(n / size >= 2 / 3 for n, size in sizes.items() if n >= least)
    assert (sizes[1], sizes[best], sizes[most]) == batch
    assert len(set(sizes.values())) <= 2 * most.bit_length() + 1


def test_results_stay_when_the_engine_runs_again_and_is_closed(rig_of):
    rig = rig_of()
    engine = rig.open()
    first = engine.run(feeds_of(2), RAW)
    before = {name: values.copy() for name, values in first.items()}
    engine.run(feeds_of(2, seed=1), RAW)
    engine.close()
    for name, values in before.items():
        np.testing.assert_array_equal(first[name], values)


# Recording, and what is copied.


def test_replays_follow_changing_inputs(rig_of, tiny_engine):
    rig = rig_of()
    expected = tiny_engine()
    with rig.open() as engine:
        for seed in range(20):
            assert_right(engine, feeds_of(3, 2, seed), expected)
        assert rig.driver.calls.count("cudaGraphLaunch") == 19
        assert rig.driver.calls.count("cudaStreamBeginCapture") == 1


def test_only_what_is_asked_for_leaves_the_gpu(rig_of):
    def network(feeds: Any, outputs: Any) -> dict[str, Any]:
        """Every output is the image's mean, shifted."""
        return {
            name: feeds["image"].mean() + index
            for index, name in enumerate(outputs)
            if name != "targets"
        } | {"targets": 0 * feeds["target"]}

    rig = rig_of(network=network, outputs=("raw", "tft"), map_methods=("gradcam",))
    down, up = Kind.cudaMemcpyDeviceToHost, Kind.cudaMemcpyHostToDevice
    wanted = {
        ("probabilities",): 3 * 4,
        ("thresholds", "rpi", "maps"): 4 + 10 * 4 + 64 * 4,
        ("probabilities", "targets", "original_maps", "rpi"): 3 * 4 + 8 + 64 * 4 + 10 * 4,
    }
    with rig.open() as engine:
        names = list(engine._opened.outputs)
        for outputs, size in wanted.items():
            for seed in range(3):
                feeds = feeds_of(1, 1, seed)
                rig.driver.copied = {up: 0, down: 0}
                found = engine.run(feeds, list(outputs))
                # One image goes up; the sweep's masked images are made on the GPU.
                assert rig.driver.copied == {up: 3 * 64 * 4 + 8, down: size}
                for name in set(outputs) - {"targets"}:
                    mean = feeds["image"].mean() + np.float32(names.index(name))
                    np.testing.assert_allclose(found[name], mean, rtol=1e-6)


def test_a_refused_recording_is_said_once_and_answers_stay(rig_of, tiny_engine):
    rig = rig_of()
    rig.library.recordable = False
    expected = tiny_engine()
    with rig.open() as engine:
        assert_right(engine, feeds_of(2), expected)
        with pytest.warns(UserWarning, match=r"CUDA graphs are off.*stream is capturing"):
            assert_right(engine, feeds_of(2, 1, 1), expected)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for seed, n in enumerate((2, 5, 3, 2)):
                assert_right(engine, feeds_of(n, 1, seed), expected)
        assert "without CUDA graphs" in engine.description
        assert rig.driver.calls.count("cudaStreamBeginCapture") == 1
        assert rig.driver.calls.count("cudaGraphLaunch") == 0
    assert not any(rig.driver.held.values())


def test_rtx_keeps_compiled_kernels_in_the_cache(rig_of, tmp_path, tiny_engine):
    rig = rig_of("tensorrt-rtx")
    folder = tmp_path / "cache"
    with rig.open(cache=str(folder)) as engine:
        engine.run(feeds_of(2), RAW)
    (kept,) = folder.iterdir()
    with rig.open(cache=str(folder)) as engine:
        assert rig.library.configs[-1].cache.found
        assert_right(engine, feeds_of(3), tiny_engine())
    kept.write_bytes(b"of another driver")
    with rig.open(cache=str(folder)) as engine:
        assert not rig.library.configs[-1].cache.found
        assert_right(engine, feeds_of(3), tiny_engine())
    assert kept.read_bytes().startswith(rig.library.configs[-1].cache.HEAD)


# Memory and threads.


@pytest.mark.parametrize("hint", ["latency", "throughput"])
@pytest.mark.parametrize("library", ["tensorrt", "tensorrt-rtx"])
def test_threads_share_an_engine(rig_of, tiny_engine, hint, library):
    rig = rig_of(library)
    rig.driver.pause = 0.0002  # so that runs at once do meet
    expected, failures = tiny_engine(), []

    def work(index: int, engine: TensorRtEngine) -> None:
        try:
            for turn in range(25):
                feeds = feeds_of(1 + (index + turn) % 5, 1 + turn % 2, 100 * index + turn)
                assert_right(engine, feeds, expected)
        except BaseException as error:
            failures.append(error)

    with rig.open(hint=hint) as engine:
        threads = [threading.Thread(target=work, args=(i, engine)) for i in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert not failures
        assert rig.driver.held["streams"] <= {"latency": 1, "throughput": 3}[hint]
    assert not any(rig.driver.held.values())


def test_what_is_not_closed_is_given_back_when_collected(rig_of):
    rig = rig_of()
    engine = rig.open()
    for n in (1, 2, 2, 8):
        engine.run(feeds_of(n), RAW)
    assert rig.driver.held["executables"] == 0 or rig.driver.held["device bytes"] > 0
    del engine
    gc.collect()
    assert not any(rig.driver.held.values())


def test_a_closed_engine_refuses(rig_of):
    engine = rig_of().open()
    engine.close()
    engine.close()
    with pytest.raises(EngineError, match="was closed"):
        engine.run(feeds_of(1), RAW)


def test_the_thread_keeps_the_gpu_that_it_had(rig_of, tiny_engine):
    rig = rig_of(compute=((7, 5), (8, 6)))
    rig.change(gpu=None)
    me = threading.get_ident()
    rig.driver.current[me] = 0
    with rig.open(gpu=1) as engine:
        assert "Stand-in 1" in engine.description
        assert_right(engine, feeds_of(2), tiny_engine())
        assert rig.driver.current[me] == 0


# Everything that can be refused.

CALLS = [
    "cudaSetDevice",
    "cudaMalloc",
    "cudaHostAlloc",
    "cudaMemcpyAsync",
    "cudaStreamSynchronize",
]


@pytest.mark.parametrize("call", ["cudaStreamCreateWithFlags", *CALLS])
def test_every_status_is_an_error_that_names_the_call(rig_of, call):
    rig = rig_of()
    rig.driver.refuse(call, Status.cudaErrorMemoryAllocation)

    def use() -> None:
        with rig.open() as engine:
            for _ in range(4):
                engine.run(feeds_of(3), RAW)

    said = (
        rf"^{call} failed: cudaErrorMemoryAllocation \(2\), meaning of 2\. Free memory on the GPU"
    )
    with pytest.raises(EngineError, match=said):
        use()
    rig.driver.relent()
    gc.collect()
    assert not any(rig.driver.held.values())


def test_after_an_error_the_next_run_is_right(rig_of, tiny_engine):
    rig = rig_of()
    with rig.open() as engine:
        for call in ("cudaMemcpyAsync", "cudaStreamSynchronize", "cudaGraphLaunch"):
            for seed in range(2):
                assert_right(engine, feeds_of(3, 1, seed), tiny_engine())
            rig.driver.refuse(call, Status.cudaErrorInvalidValue)
            if call == "cudaMemcpyAsync":  # is only called anew for another shape
                with pytest.raises(EngineError, match=call):
                    engine.run(feeds_of(8), RAW)
            else:
                with pytest.raises(EngineError, match=call):
                    engine.run(feeds_of(3), RAW)
            rig.driver.relent()
            assert_right(engine, feeds_of(3, 1, 7), tiny_engine())
            assert rig.driver.held["streams"] == 1
    assert not any(rig.driver.held.values())


def test_a_lost_gpu_says_to_start_again(rig_of):
    def network(feeds: Any, outputs: Any) -> Any:
        from driver_standin import Fault

        raise Fault(Status.cudaErrorIllegalAddress)

    engine = rig_of(network=network).open()
    with pytest.raises(EngineError, match=r"cudaErrorIllegalAddress \(700\).*start it again"):
        engine.run(feeds_of(1), RAW)


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("create_execution_context", "made no execution context.*Error Code 2: OutOfMemory"),
        ("set_input_shape", r"does not take 'image' \[2, 3, 8, 8\]. It says: Error Code 3: image"),
        ("infer_shapes", "cannot tell the outputs' shapes"),
        ("set_tensor_address", "does not take memory for 'image'"),
        ("execute_async_v3", "did not run the plan. It says: Error Code 3: kernel"),
    ],
)
def test_every_refusal_of_tensorrt_says_what_it_logged(rig_of, method, message):
    rig = rig_of()
    rig.library.fails = method
    with rig.open() as engine, pytest.raises(EngineError, match=f"tensorrt {message}"):
        engine.run(feeds_of(2), RAW)
    assert not any(rig.driver.held.values())


def test_wrong_inputs_are_refused_before_anything_is_copied(rig_of):
    rig = rig_of()
    with rig.open() as engine:
        rig.driver.calls.clear()
        feeds = feeds_of(1)
        with pytest.raises(EngineError, match=r"'image' must be float32 \[any, 3, 8, 8\]"):
            engine.run({**feeds, "image": feeds["image"][:, :, 1:]}, RAW)
        with pytest.raises(EngineError, match=r"has no output \['maps'\]"):
            engine.run(feeds, ["maps"])
        assert rig.driver.calls == []


def test_images_that_the_plan_was_not_built_for_are_refused(rig_of):
    def network(feeds: Any, outputs: Any) -> dict[str, Any]:
        return {"maps": feeds["image"].mean()}

    rig = rig_of(
        network=network,
        outputs=("map",),
        map_methods=("gradcam",),
        methods=("gradcam",),
        embedded_preprocess=True,
    )
    with rig.open() as engine:
        for size in ((32, 720), (100, 60)):
            image = np.full((1, *size, 3), size[0], np.uint8)
            found = engine.run({"image": image, "target": np.full((1, 1), -1)}, ["maps"])
            assert (found["maps"] == size[0]).all()
        image = np.zeros((1, 721, 100, 3), np.uint8)
        with pytest.raises(
            EngineError,
            match=r"32 to 720 pixels high, not 721.*--source-size 32x32:480x640:720x720",
        ):
            engine.run({"image": image, "target": np.full((1, 1), -1)}, ["maps"])


# Whether a plan fits this machine.


@pytest.mark.parametrize(
    ("library", "fields", "message"),
    [
        (
            "tensorrt",
            {"library_version": "10.12.0.36"},
            r"built with tensorrt 10\.12\.0\.36, and 10\.13\.0\.35 is installed.*whycam build "
            r"MODEL\.onnx -o \S+tiny\.plan --engine tensorrt --precision fp32 --batch 1:4:8 "
            r"--classes-per-image 1:1:3$",
        ),
        (
            "tensorrt",
            {"compute": ("8.9",)},
            r"built for compute capability 8\.9; GPU 0 here, Stand-in 0, has 8\.6.*whycam build",
        ),
        (
            "tensorrt-rtx",
            {"compute": ("7.5", "12.0")},
            r"capability 7\.5 and 12\.0; GPU 0 here, Stand-in 0, has 8\.6.*--compute 86$",
        ),
        ("tensorrt", {"digest": "sha256:" + "0" * 64}, r"not the plan that its sidecar describes"),
    ],
    ids=["version", "gpu", "rtx gpu", "digest"],
)
def test_a_mismatch_says_what_differs_and_how_to_build_again(rig_of, library, fields, message):
    rig = rig_of(library)
    rig.change(**fields)
    with pytest.raises(WhyCamError, match=message):
        whycam.load(rig.path)
    assert not any(rig.driver.held.values())


def test_a_gpu_that_rtx_has_no_target_for_is_sent_to_plain_tensorrt(rig_of):
    rig = rig_of("tensorrt-rtx", compute=((9, 0),))
    with pytest.raises(EngineError, match=r"no target for 9\.0.*--engine tensorrt --precision"):
        whycam.load(rig.path)


def test_a_plan_of_another_gpu_of_the_same_kind_runs_and_warns(rig_of, tiny_engine):
    rig = rig_of()
    rig.change(gpu="NVIDIA GeForce RTX 3090")
    with pytest.warns(UserWarning, match="built on NVIDIA GeForce RTX 3090"):
        engine = rig.open()
    assert_right(engine, feeds_of(1), tiny_engine())


def test_what_the_library_refuses_is_said(rig_of):
    rig = rig_of()
    data = b"X" + PLAN
    rig.path.write_bytes(data)
    rig.change(digest=f"sha256:{hashlib.sha256(data).hexdigest()}")
    with pytest.raises(EngineError, match=r"cannot load .*magic tag") as caught:
        whycam.load(rig.path)
    assert "not worth keeping" not in str(caught.value)


def test_rtx_is_asked_whether_a_plan_can_run_here(rig_of):
    rig = rig_of("tensorrt-rtx")
    rig.driver.cuda = 12040
    with pytest.raises(EngineError, match="cannot run here: OLD_CUDA_DRIVER"):
        whycam.load(rig.path)


def test_a_network_that_is_not_the_manifests_is_refused(rig_of, manifest_of):
    rig = rig_of()
    rig.change(manifest=manifest_of(num_classes=3, preprocess=whycam_preprocess(16)))
    with pytest.raises(ModelFileError, match="does not match its manifest"):
        whycam.load(rig.path)
    rig.change(
        manifest=manifest_of(outputs=("map",), map_methods=("gradcam",), methods=("gradcam",))
    )
    with pytest.raises(ModelFileError, match="does not match its manifest"):
        whycam.load(rig.path)


def whycam_preprocess(side: int) -> Any:
    from whycam.runtime.manifest import Preprocess

    return Preprocess(size=(side, side), resize=(side,))


def test_a_gpu_that_is_not_there(rig_of):
    rig = rig_of()
    with pytest.raises(EngineError, match="there is no GPU 3: this process sees 1"):
        whycam.load(rig.path, gpu=3)


def test_a_missing_library_names_its_extra(rig_of, monkeypatch):
    rig = rig_of("tensorrt-rtx")
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    with pytest.raises(MissingExtraError, match=r'pip install "whycam\[tensorrt-rtx\]"'):
        whycam.load(rig.path, "tensorrt")
    monkeypatch.delitem(sys.modules, "tensorrt_rtx")
    monkeypatch.setattr("whycam.runtime.engines.trt_load.find_spec", lambda _: None)
    with pytest.raises(EngineError, match=r'not installed: pip install "whycam\[tensorrt-rtx\]"'):
        whycam.load(rig.path)


def test_missing_bindings_name_their_extra(rig_of, monkeypatch):
    rig = rig_of()
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)
    with pytest.raises(MissingExtraError, match=r"'cuda-bindings'.*pip install"):
        whycam.load(rig.path)


def test_an_engine_is_not_given_another_kind_of_file(rig_of, tmp_path):
    rig = rig_of()
    for name in set(engines.ENGINES) - {"tensorrt"}:
        with pytest.raises(EngineError, match="a TensorRT plan runs in tensorrt alone"):
            whycam.load(rig.path, name)
    with pytest.raises(EngineError, match="computes as it was built"):
        whycam.load(rig.path, precision="bf16")


# The command line.


def command(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as caught:
        cli.main([str(argument) for argument in arguments])
    said = capsys.readouterr()
    return caught.value.code, said.out, said.err


def test_without_a_gpu_every_command_ends_in_one_sentence(rig_of, capsys, chelsea):
    rig = rig_of()
    rig.driver.cuda, rig.driver.compute = 0, ()
    for arguments in (["explain", rig.path, chelsea], ["verify", rig.path]):
        code, out, err = command(capsys, *arguments)
        assert (code, out) == (2, "")
        assert len(err.strip().splitlines()) == 1
        assert "No NVIDIA driver is running on this machine" in err
    code, out, err = command(capsys, "bench", rig.path, "--rounds", 1)
    assert code == 2
    assert "No NVIDIA driver" in err
    code, out, _ = command(capsys, "info", rig.path)
    assert code == 0
    assert "tensorrt 10.13.0.35" in out
    assert "1 to 8, best at 4" in out
    code, out, _ = command(capsys, "info", rig.path, "--json")
    document = msgspec.json.decode(out)
    assert document["plan"]["compute"] == ["8.6"]
    assert [each["name"] for each in document["engines"]] == ["tensorrt"]


def test_an_old_driver_and_hidden_gpus_are_told_apart(rig_of):
    rig = rig_of()
    rig.driver.cuda = 11040
    with pytest.raises(EngineError, match=r"driver supports CUDA 11\.4, cuda-bindings 13\.0"):
        whycam.load(rig.path)
    rig.driver.cuda, rig.driver.compute = 13000, ()
    with pytest.raises(EngineError, match="CUDA_VISIBLE_DEVICES"):
        whycam.load(rig.path)


def test_commands_run_a_plan(rig_of, capsys, chelsea):
    rig = rig_of()
    code, out, err = command(capsys, "explain", rig.path, chelsea, "--tft")
    assert code == 0, err
    assert "chelsea.png" in out
    code, out, err = command(capsys, "verify", rig.path)
    assert code == 0, err
    assert "TensorRT 10.13.0.35 on Stand-in 0" in out
    data = rig.path.read_bytes()
    rig.path.write_bytes(data + b" ")
    code, _, err = command(capsys, "verify", rig.path)
    assert code == 2
    assert "not the plan that its sidecar describes" in err


# NVIDIA's own library, where there is no GPU.


@pytest.fixture(scope="module")
def real_plan(tmp_path_factory) -> Path:
    """A tiny network built by TensorRT-RTX for 8.6, which takes no GPU."""
    trt = pytest.importorskip("tensorrt_rtx")
    from networks import SMALL, linear

    from whycam.export import to_onnx

    folder = tmp_path_factory.mktemp("real")
    manifest = to_onnx(linear(), folder / "tiny.onnx", overrides=SMALL).manifest
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    assert trt.OnnxParser(network, logger).parse_from_file(str(folder / "tiny.onnx"))
    config, profile = builder.create_builder_config(), builder.create_optimization_profile()
    image = manifest.image_shape
    profile.set_shape("image", (1, *image), (2, *image), (4, *image))
    profile.set_shape("target", (1, 1), (2, 1), (4, 2))
    config.add_optimization_profile(profile)
    config.num_compute_capabilities = 1
    config.set_compute_capability(trt.ComputeCapability.SM86, 0)
    path = folder / "tiny.plan"
    path.write_bytes(builder.build_serialized_network(network, config))
    write_sidecar(
        path,
        Plan(
            manifest=manifest,
            digest=f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}",
            library="tensorrt-rtx",
            library_version=trt.__version__,
            compute=("8.6",),
            batch=Range(1, 2, 4),
            classes=Range(1, 1, 2),
            inputs=(),
            outputs=(),
        ),
    )
    return path


def driver_here() -> bool:
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


@pytest.mark.skipif(driver_here(), reason="this machine has an NVIDIA driver")
@pytest.mark.parametrize("verb", ["explain", "verify"])
def test_tensorrt_rtx_without_a_driver_ends_in_one_sentence(real_plan, chelsea, verb):
    """In a process of its own: a library that aborts would take this one with it."""
    command = [sys.executable, "-m", "whycam", verb, str(real_plan)]
    command += [str(chelsea)] if verb == "explain" else []
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.strip().splitlines()) == 1
    assert "No NVIDIA driver is running on this machine" in done.stderr


def test_the_stand_in_has_what_nvidias_library_has(real_plan):
    """Members by name: a stand-in of something that does not exist would prove nothing."""
    import tensorrt_rtx as trt

    rig = Library(Driver(), lambda _feeds, _outputs: {}, True, "1.7")
    ours: Any = rig.module()
    pairs = [
        (trt.Runtime, standin.Runtime),
        (trt.ICudaEngine, standin.Engine),
        (trt.IExecutionContext, standin.Context),
        (trt.IRuntimeConfig, standin.Config),
        (trt.IRuntimeCache, standin.Cache),
    ]
    for theirs, stand_in in pairs:
        calls = [name for name in vars(stand_in) if name.islower() and name[0] != "_"]
        missing = [name for name in calls if not hasattr(theirs, name)]
        assert not missing, missing
    for name in (
        "ILogger",
        "TensorIOMode",
        "TensorLocation",
        "EngineValidity",
        "ComputeCapability",
    ):
        members = [each for each in dir(getattr(ours, name)) if each.isupper()]
        assert members
        assert all(hasattr(getattr(trt, name), each) for each in members), name
    assert trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
    assert trt.ExecutionContextAllocationStrategy.USER_MANAGED
    assert all(hasattr(trt.DataType, name) for name in KINDS.values())


def test_the_stand_in_has_what_nvidias_bindings_have():
    runtime = pytest.importorskip("cuda.bindings.runtime")
    for name in vars(Driver().module()):
        if name.startswith("cuda"):
            assert hasattr(runtime, name), name
    for ours, theirs in (
        (standin.Status, runtime.cudaError_t),
        (Kind, runtime.cudaMemcpyKind),
        (standin.Mode, runtime.cudaStreamCaptureMode),
    ):
        for each in ours:
            assert int(getattr(theirs, each.name)) == each.value


@pytest.mark.parametrize("name", ["absent.plan", "x" * 300 + ".plan", "nul\0.plan", ""])
def test_plans_that_are_not_there(tmp_path, name):
    with pytest.raises(ModelFileError):
        whycam.load(f"{tmp_path}/{name}")


def test_a_plan_without_a_readable_sidecar(rig_of):
    rig = rig_of()
    sidecar = Path(f"{rig.path}.json")
    whole = sidecar.read_bytes()
    for damaged in (
        b"",
        b"{}",
        whole[:-9],
        b"[" * 99_999,
        whole.replace(b'"least": 1', b'"least": 9'),
    ):
        sidecar.write_bytes(damaged)
        with pytest.raises(ModelFileError, match=r"tiny\.plan\.json is damaged"):
            whycam.load(rig.path)
    sidecar.unlink()
    with pytest.raises(ModelFileError, match=r"no readable sidecar.*whycam build"):
        whycam.load(rig.path)
