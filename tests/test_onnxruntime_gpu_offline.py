"""ONNX Runtime on GPUs, as far as it can be proved without one.

I/O binding runs on the CPU's memory; what ONNX Runtime is told is a pure function; and where it
would fall back to the CPU, a stand-in shows that it is refused.
"""

from __future__ import annotations

import ctypes
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import whycam
from whycam.runtime.engines import nvidia, ort, ort_gpu, ort_options
from whycam.runtime.engines.base import EngineSettings
from whycam.runtime.engines.chunks import run_in_chunks
from whycam.runtime.engines.nvidia import Driver, Gpu
from whycam.runtime.engines.ort import OnnxRuntimeEngine
from whycam.runtime.engines.ort_options import CPU, CUDA, TENSORRT, Cache, Most
from whycam.runtime.engines.registry import ENGINES, candidates
from whycam.runtime.errors import EngineError
from whycam.runtime.onnxfile import read_manifest

RAW = ["probabilities", "targets", "activations", "gradients"]
BOUND = replace(CPU, device="cpu")


@pytest.fixture(scope="module")
def plain(curved_onnx: Path) -> OnnxRuntimeEngine:
    return OnnxRuntimeEngine(str(curved_onnx), read_manifest(curved_onnx), EngineSettings())


@pytest.fixture(scope="module")
def bound(curved_onnx: Path) -> OnnxRuntimeEngine:
    return OnnxRuntimeEngine(str(curved_onnx), read_manifest(curved_onnx), EngineSettings(), BOUND)


def feeds(count: int, classes: int, seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    image = rng.standard_normal((count, 3, 32, 32)).astype(np.float32)
    return {"image": image, "target": rng.integers(0, 7, (count, classes))}


# I/O binding.


@pytest.mark.parametrize(
    "outputs",
    [
        ["probabilities"],
        RAW,
        ["maps", "thresholds", "rpi", "masked_probabilities", "original_maps"],
    ],
    ids=["classification", "raw", "tft"],
)
def test_bound_memory_gives_the_same_numbers_for_any_batch(plain, bound, outputs):
    # More shapes than buffers are kept for, and back again.
    for count, classes in ((1, 1), (3, 2), (1, 1), (2, 1), (4, 1), (5, 3), (6, 1), (1, 1)):
        given_now = feeds(count, classes, seed=count)
        ours, theirs = (engine.run(given_now, outputs) for engine in (bound, plain))
        assert list(ours) == outputs
        for name in outputs:
            np.testing.assert_array_equal(ours[name], theirs[name])
            assert ours[name].dtype == theirs[name].dtype


def test_bound_memory_neither_keeps_nor_overwrites_the_callers_arrays(bound):
    first, second = feeds(2, 1, seed=1), feeds(2, 1, seed=2)
    copies = {name: values.copy() for name, values in first.items()}
    found = bound.run(first, RAW)
    kept = {name: values.copy() for name, values in found.items()}
    bound.run(second, RAW)
    for name in RAW:
        np.testing.assert_array_equal(found[name], kept[name])
    for name, values in first.items():
        np.testing.assert_array_equal(values, copies[name])


def test_bound_memory_takes_arrays_that_are_not_contiguous(plain, bound):
    whole = feeds(4, 1)
    image = np.ascontiguousarray(np.moveaxis(whole["image"], 1, -1))
    turned = {"image": np.moveaxis(image, -1, 1), "target": whole["target"]}
    assert not turned["image"].flags.c_contiguous
    np.testing.assert_array_equal(
        bound.run(turned, ["probabilities"])["probabilities"],
        plain.run(whole, ["probabilities"])["probabilities"],
    )


def test_threads_share_a_bound_session(plain, bound):
    given_now = [feeds(1 + seed % 3, 1, seed) for seed in range(12)]
    expected = [plain.run(each, RAW) for each in given_now]
    wrong: list[int] = []

    def work() -> None:
        for index, each in enumerate(given_now):
            found = bound.run(each, RAW)
            if any(not np.array_equal(found[n], expected[index][n]) for n in RAW):
                wrong.append(index)

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert not wrong
    # Buffers of as many callers as there were at once, not of every call.
    (runs,) = [run for parts, run in bound._runs.items() if parts == {"gradient"}]
    assert 1 <= len(runs.__self__._idle) <= 4


def test_only_outputs_asked_for_are_bound(bound, monkeypatch):
    bound.run(feeds(1, 1), ["probabilities"])
    session = bound._runs[frozenset()].__self__
    asked: list[str] = []
    real = session._session.io_binding

    def watched() -> Any:
        binding = real()
        bind = binding.bind_ortvalue_output
        binding.bind_ortvalue_output = lambda name, value: (asked.append(name), bind(name, value))
        return binding

    monkeypatch.setattr(session._session, "io_binding", watched)
    bound.run(feeds(1, 1), ["probabilities"])
    assert asked == ["probabilities"]


@given(
    count=st.integers(1, 9),
    classes=st.integers(1, 6),
    images=st.integers(1, 4),
    columns=st.integers(1, 3),
)
def test_runs_in_parts_are_one_run(plain, count, classes, images, columns):
    names = [*RAW, "rpi", "maps"]
    given_now = feeds(count, classes)
    seen: list[tuple[int, int]] = []

    def run(part: Any) -> Any:
        seen.append(part["target"].shape)
        return plain.run(part, names)

    found = run_in_chunks(run, given_now, plain._manifest, images, columns)
    whole = plain.run(given_now, names)
    for name in names:
        np.testing.assert_allclose(found[name], whole[name], atol=1e-5)
    assert max(n for n, _ in seen) <= images
    assert max(k for _, k in seen) <= columns


# What ONNX Runtime is told.


def told(place, manifest, parts=frozenset(), cache=None, gpu=0):
    return ort_options.providers(place, manifest, EngineSettings(gpu=gpu), frozenset(parts), cache)


def test_cuda_is_told_to_stay_in_float32(manifest_of):
    ((name, options),) = told(CUDA, manifest_of(), gpu=2)
    assert name == "CUDAExecutionProvider"
    assert options["use_tf32"] == "0"
    assert options["device_id"] == "2"
    assert options["cudnn_conv_algo_search"] == "HEURISTIC"


def test_tensorrt_gets_one_range_of_shapes_and_leaves_the_rest_to_cuda(manifest_of):
    (first, options), (second, cuda) = told(TENSORRT, manifest_of(), {"gradient"})
    assert (first, second) == ("TensorrtExecutionProvider", "CUDAExecutionProvider")
    assert cuda["use_tf32"] == "0"
    assert options["trt_profile_min_shapes"] == "image:1x3x8x8,target:1x1"
    assert options["trt_profile_opt_shapes"] == "image:1x3x8x8,target:1x1"
    assert options["trt_profile_max_shapes"] == "image:32x3x8x8,target:32x5"
    # A sweep is ten masked images, classified.
    ((_, plain), _) = told(TENSORRT, manifest_of())
    assert plain["trt_profile_opt_shapes"] == "image:10x3x8x8,target:10x1"


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "int8"])
def test_tensorrt_is_allowed_what_the_file_holds_and_no_less(manifest_of, precision):
    ((_, options), _) = told(TENSORRT, manifest_of(precision=precision))
    on = {name for name, value in options.items() if name.endswith("_enable") and value == "1"}
    assert on == ({f"trt_{precision}_enable"} - {"trt_fp32_enable"})


def test_a_sweep_in_the_graph_counts_its_own_images(manifest_of):
    manifest = manifest_of(outputs=("tft",), methods=("gradcam",), map_methods=("gradcam",))
    assert ort_options.run_limit(TENSORRT, manifest, frozenset({"map"})) == Most(32, 5)
    assert ort_options.run_limit(TENSORRT, manifest, frozenset({"map", "sweep"})) == Most(3, 1)
    assert ort_options.run_limit(CUDA, manifest, frozenset({"map", "sweep"})) is None


def test_tensorrt_refuses_images_of_any_size(manifest_of):
    with pytest.raises(EngineError, match="--source-size HxW, or use onnxruntime-cuda"):
        told(TENSORRT, manifest_of(embedded_preprocess=True))


def test_tensorrt_keeps_nothing_unless_asked(manifest_of):
    ((_, options), _) = told(TENSORRT, manifest_of())
    assert options["trt_engine_cache_enable"] == options["trt_timing_cache_enable"] == "0"
    assert not any(name.endswith("_path") for name in options)
    ((_, kept), _) = told(TENSORRT, manifest_of(), cache=Cache("engines", "timing"))
    assert kept["trt_engine_cache_enable"] == kept["trt_timing_cache_enable"] == "1"
    assert (kept["trt_engine_cache_path"], kept["trt_timing_cache_path"]) == ("engines", "timing")


def test_whatever_could_make_an_engine_wrong_has_a_folder_of_its_own():
    base: dict[str, Any] = {
        "digest": "sha256:" + 64 * "a",
        "parts": frozenset({"gradient"}),
        "versions": {"ort": "1.31.1", "trt": "101601"},
        "gpu": "NVIDIA RTX A2000-sm8.6",
    }
    others = [
        {"digest": "sha256:" + 64 * "b"},
        {"parts": frozenset()},
        {"versions": {"ort": "1.30.0", "trt": "101601"}},
        {"versions": {"ort": "1.31.1", "trt": "101300"}},
        {"gpu": "NVIDIA L4-sm8.9"},
    ]
    names = [ort_options.cache_names(**(base | other))[0] for other in ({}, *others)]
    assert len(set(names)) == len(names)
    assert all(name == Path(name).name and " " not in name for name in names)
    # Kernels that were measured serve any file, not any TensorRT or GPU.
    timing = {ort_options.cache_names(**(base | other))[1] for other in ({}, *others)}
    assert len(timing) == 3


def test_cache_folders_are_made_for_the_file_as_it_is(curved_onnx, tmp_path, monkeypatch):
    gpu = Gpu(0, "Some GPU", "8.6", 1)
    monkeypatch.setattr(ort, "driver", lambda: Driver("13.0", None, (gpu,)))
    monkeypatch.setattr(ort_gpu, "tensorrt_version", lambda *_: "101601")
    engine = OnnxRuntimeEngine(
        str(curved_onnx), read_manifest(curved_onnx), EngineSettings(cache=str(tmp_path / "cache"))
    )
    assert engine._cache(frozenset()) is None  # ONNX Runtime on the CPU compiles nothing
    engine._place = TENSORRT
    found = engine._cache(frozenset({"gradient"}))
    assert found is not None
    assert Path(found.engines).is_dir()
    assert read_manifest(curved_onnx).digest.removeprefix("sha256:")[:16] in found.engines
    assert Path(found.timing).parent == tmp_path / "cache"


def test_tf32_in_the_environment_is_refused_for_float32_alone(manifest_of):
    said = ort_options.tf32_conflict(manifest_of(), {"NVIDIA_TF32_OVERRIDE": "1"})
    assert said is not None
    assert "NVIDIA_TF32_OVERRIDE is '1'" in said
    assert ort_options.tf32_conflict(manifest_of(), {"NVIDIA_TF32_OVERRIDE": "0"}) is None
    assert ort_options.tf32_conflict(manifest_of(), {}) is None
    half = manifest_of(precision="fp16")
    assert ort_options.tf32_conflict(half, {"NVIDIA_TF32_OVERRIDE": "1"}) is None


# Nothing is computed elsewhere than asked for.


class Placed:
    """A session on the CPU that says that it is elsewhere."""

    def __init__(self, session: Any, providers: list[str], assigned: dict[str, list[str]]) -> None:
        self._session = session
        self.get_providers = lambda: providers
        self._assigned = assigned

    def get_provider_graph_assignment_info(self) -> list[Any]:
        return [
            SimpleNamespace(
                ep_name=name,
                get_nodes=lambda kinds=kinds: [SimpleNamespace(op_type=each) for each in kinds],
            )
            for name, kinds in self._assigned.items()
        ]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)


@pytest.fixture
def stand_in(monkeypatch):
    """Opens a file in ONNX Runtime on CUDA, where a session on the CPU stands in for it."""
    import onnxruntime

    real = onnxruntime.InferenceSession

    def prepare(providers: list[str] | Exception, assigned: dict[str, list[str]]) -> None:
        def create(model: Any, options: Any, **_: Any) -> Any:
            if isinstance(providers, Exception):
                raise providers
            return Placed(
                real(model, options, providers=["CPUExecutionProvider"]), providers, assigned
            )

        monkeypatch.setattr(ort_gpu, "problem", lambda *_: None)
        monkeypatch.setattr(onnxruntime, "InferenceSession", create)

    return prepare


ON_CUDA = ["CUDAExecutionProvider", "CPUExecutionProvider"]


def test_a_session_that_fell_back_to_the_cpu_is_refused(stand_in, curved_onnx):
    stand_in(["CPUExecutionProvider"], {})
    with pytest.raises(EngineError, match=r"took CPUExecutionProvider instead of CUDA.*doctor"):
        whycam.load(curved_onnx, "onnxruntime-cuda")


def test_convolutions_left_to_the_cpu_are_refused(stand_in, curved_onnx):
    assigned = {"CUDAExecutionProvider": ["Relu"], "CPUExecutionProvider": ["Conv", "Shape"]}
    stand_in(ON_CUDA, assigned)
    with pytest.raises(
        EngineError, match=r"would compute 1 convolutions of .*curved\.onnx on the CPU"
    ):
        whycam.load(curved_onnx, "onnxruntime-cuda")


def test_a_provider_that_takes_nothing_is_refused(stand_in, curved_onnx):
    stand_in(ON_CUDA, {"CPUExecutionProvider": ["Shape"]})
    with pytest.raises(EngineError, match="takes no part of"):
        whycam.load(curved_onnx, "onnxruntime-cuda")


def test_a_failing_gpu_is_named_without_the_machine(stand_in, curved_onnx):
    said = RuntimeError(
        "/src/cuda_call.cc:154 bool onnxruntime::CudaCall(...) CUDA failure 100: no CUDA-capable "
        "device is detected ; GPU=-1 ; hostname=secret ; file=/src/cuda.cc ; line=1"
    )
    stand_in(said, {})
    with pytest.raises(EngineError) as caught:
        whycam.load(curved_onnx, "onnxruntime-cuda")
    assert str(caught.value).endswith("CUDA failure 100: no CUDA-capable device is detected")


# What is missing, and the command that installs it.


@pytest.mark.parametrize(
    ("said", "place", "expected"),
    [
        ("libcublasLt.so.13: cannot open shared object file", CUDA, "CUDA 13 is not installed"),
        ("libcudnn.so.9: cannot open shared object file", TENSORRT, "cuDNN is not installed"),
        ("libcuda.so.1: cannot open shared object file", CUDA, "no NVIDIA driver"),
        (
            "libnvinfer.so.10: cannot open shared object file",
            TENSORRT,
            '"tensorrt-cu13==10.*"',
        ),
        ("/x/libonnxruntime_providers_cuda.so: undefined symbol: f", CUDA, "does not load: /x/"),
        ("Could not find module 'onnxruntime_providers_cuda.dll'", CUDA, "does not load: Could"),
    ],
)
def test_what_the_loader_misses_is_named_with_what_installs_it(said, place, expected):
    assert expected in ort_gpu.why_unloadable(said, place, "13.0")


def test_the_onnxruntime_for_cpus_says_that_it_has_to_go_first(monkeypatch):
    versions = {"onnxruntime": "1.32.0", "onnxruntime-gpu": None}
    monkeypatch.setattr(ort_gpu, "_version", versions.get)
    cpus = SimpleNamespace(
        __version__="1.32.0", get_available_providers=lambda: ["CPUExecutionProvider"]
    )
    said = ort_gpu.problem(CUDA, 0, cpus)
    assert said is not None
    assert 'pip uninstall -y onnxruntime; then: pip install "whycam[gpu]"' in said
    versions["onnxruntime-gpu"] = "1.31.1"
    assert "overwrite each other" in str(ort_gpu.problem(CUDA, 0, cpus))


@pytest.mark.parametrize(
    ("found", "gpu", "expected"),
    [
        (Driver(problem="no driver here"), 0, "no driver here"),
        (Driver("13.0", None, (Gpu(0, "One", "8.6", 1),)), 1, "there is no GPU 1; choose from: 0"),
        (Driver("12.4", None, (Gpu(0, "One", "8.6", 1),)), 0, "serves CUDA 12.4 at most"),
    ],
)
def test_driver_and_gpu_are_looked_at_first(monkeypatch, found, gpu, expected):
    monkeypatch.setattr(ort_gpu, "driver", lambda: found)
    library = SimpleNamespace(
        __version__="1.31.1", cuda_version="13.0", get_available_providers=lambda: [CUDA.provider]
    )
    assert expected in str(ort_gpu.problem(CUDA, gpu, library))


@pytest.mark.parametrize("name", ["onnxruntime-cuda", "onnxruntime-tensorrt"])
def test_auto_leaves_gpus_to_those_who_ask_for_them(manifest_of, monkeypatch, name):
    found = {each.name: each for each in candidates(manifest_of(), EngineSettings())}
    assert not found[name].usable
    monkeypatch.setattr(ort_gpu, "not_built_in", lambda *_: None)
    found = {each.name: each for each in candidates(manifest_of(), EngineSettings())}
    assert not found[name].usable
    assert "only when asked for by name" in found[name].why
    assert ENGINES[name].installed


def test_a_gpu_below_zero_is_refused():
    with pytest.raises(EngineError, match="gpu must be 0 or more, not -1"):
        EngineSettings(gpu=-1)


# The driver, which a stand-in answers for as NVIDIA's documentation has it.


class FakeCuda:
    def __init__(self, gpus: int = 0, init: int = 0) -> None:
        self._gpus, self._init = gpus, init

    def cuDriverGetVersion(self, number: Any) -> int:
        number._obj.value = 12040
        return 0

    def cuInit(self, *_: int) -> int:
        return self._init

    def cuGetErrorString(self, _: int, text: Any) -> int:
        text._obj.value = b"no CUDA-capable device is detected"
        return 0

    def cuDeviceGetCount(self, number: Any) -> int:
        number._obj.value = self._gpus
        return 0

    def cuDeviceGet(self, device: Any, index: int) -> int:
        device._obj.value = index
        return 0

    def cuDeviceGetName(self, name: Any, _: int, device: Any) -> int:
        name.value = f"GPU of {device.value}".encode()
        return 0

    def cuDeviceGetAttribute(self, value: Any, attribute: int, *_: Any) -> int:
        value._obj.value = {75: 8, 76: 7}[attribute]
        return 0

    def cuDeviceTotalMem_v2(self, size: Any, *_: Any) -> int:
        size._obj.value = 8 << 30
        return 0


def test_driver_lists_its_gpus():
    found = nvidia.driver(lambda: FakeCuda(gpus=2))
    assert found.cuda == "12.4"
    assert found.problem is None
    assert found.gpus[1] == Gpu(1, "GPU of 1", "8.7", 8 << 30)
    assert len(found.gpus) == 2


def test_driver_without_gpus_says_why():
    def absent() -> ctypes.CDLL:
        raise OSError("libcuda.so.1: cannot open shared object file")

    assert "no NVIDIA driver" in str(nvidia.driver(absent).problem)
    refused = nvidia.driver(lambda: FakeCuda(init=100))
    assert "cuInit answers 100 (no CUDA-capable device is detected)" in str(refused.problem)
    assert "CUDA_VISIBLE_DEVICES" in str(nvidia.driver(lambda: FakeCuda()).problem)
    assert "not whole" in str(nvidia.driver(lambda: SimpleNamespace()).problem)


@pytest.mark.parametrize(
    ("back", "expected"),
    [
        (lambda there: there, None),
        (lambda there: 2 * there, "other numbers"),
        (lambda _: 1 / 0, "does not answer: division by zero"),
    ],
    ids=["right", "wrong", "failing"],
)
def test_a_gpu_must_give_back_what_it_got(back, expected):
    def send(there: Any, device: str, gpu: int) -> Any:
        assert (device, gpu) == ("cuda", 1)
        return SimpleNamespace(numpy=lambda: back(there))

    library = SimpleNamespace(OrtValue=SimpleNamespace(ortvalue_from_numpy=send))
    found = ort_gpu.try_memory(library, 1)
    assert found is None if expected is None else expected in str(found)
