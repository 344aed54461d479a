"""ONNX Runtime's plugins: the device that they take, what they are told, what they answer."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tiny_file import write_tiny

import whycam
from whycam.runtime.doctor import job as doctor_job
from whycam.runtime.engines import ort_plugins
from whycam.runtime.engines.base import EngineSettings
from whycam.runtime.engines.nvidia import Driver, driver
from whycam.runtime.engines.ort_options import OPENVINO, TENSORRT_RTX, WEBGPU, Place, run_limit
from whycam.runtime.engines.registry import ENGINES, candidates
from whycam.runtime.errors import EngineError

SWIFTSHADER = "/usr/lib/chromium/vk_swiftshader_icd.json"


# Without the packages: a stand-in for ONNX Runtime.


class Library:
    """What is asked of the module onnxruntime."""

    __version__ = "1.32.0"

    def __init__(self, *kinds: str, failure: Exception | None = None) -> None:
        self.kinds, self.failure = kinds, failure
        self.registered: list[tuple[str, str]] = []

    def register_execution_provider_library(self, name: str, path: str) -> None:
        self.registered.append((name, path))
        if self.failure is not None:
            raise self.failure

    def get_ep_devices(self) -> list[Any]:
        own = [("CPUExecutionProvider", "CPU", 0)]
        offered = [(OPENVINO.provider, kind, number) for number, kind in enumerate(self.kinds)]
        return [
            SimpleNamespace(
                ep_name=name,
                ep_metadata={"FULL_DEVICE_NAME": f"{kind} number {number}", "version": "9.8+x"},
                device=SimpleNamespace(type=SimpleNamespace(name=kind), vendor="", metadata={}),
            )
            for name, kind, number in own + offered
        ]


@pytest.fixture
def tiny_file(tmp_path: Path, manifest_of: Any, tiny_engine: Any) -> Path:
    engine = tiny_engine()
    write_tiny(tmp_path / "tiny.onnx", manifest_of(methods=("gradcam",)), engine.mix, engine.linear)
    return tmp_path / "tiny.onnx"


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> None:
    """A package of the plugin that is installed, and not registered yet."""
    module = SimpleNamespace(get_library_path=lambda: "/opt/plugin.so", __spec__=object())
    monkeypatch.setitem(sys.modules, "onnxruntime_ep_openvino", module)
    monkeypatch.setattr(ort_plugins, "_registered", set())


def test_package_that_is_not_installed_names_its_extra(monkeypatch, tiny_file):
    monkeypatch.setattr(ort_plugins, "find_spec", lambda _: None)
    with pytest.raises(EngineError, match=r'pip install "whycam\[onnxruntime-openvino\]"'):
        whycam.load(tiny_file, "onnxruntime-openvino")


def test_older_onnxruntime_is_refused(package):
    old = SimpleNamespace(__version__="1.20.0")
    assert "onnxruntime 1.24 or later, not 1.20.0" in str(ort_plugins.problem(OPENVINO, 0, old))


def test_library_that_does_not_load_says_why(package):
    failure = RuntimeError(
        "[ONNXRuntimeError] : 1 : FAIL : Failed to load library /opt/plugin.so with error: "
        "libtbb.so.12: cannot open shared object file"
    )
    found = ort_plugins.problem(OPENVINO, 0, Library(failure=failure))
    assert "does not load: Failed to load library /opt/plugin.so with error: libtbb" in str(found)


def test_library_is_registered_once_in_a_process(package):
    library = Library("CPU")
    assert ort_plugins.problem(OPENVINO, 0, library) is None
    assert ort_plugins.problem(OPENVINO, 0, library) is None
    assert library.registered == [(OPENVINO.provider, "/opt/plugin.so")]


def test_no_device_is_no_silent_fallback(package):
    found = ort_plugins.problem(OPENVINO, 0, Library())
    assert found == "OpenVINO finds no device that it can use; ONNX Runtime itself sees: CPU"
    assert ort_plugins.devices(OPENVINO, Library("NPU")) == []  # which has no float32


def test_gpus_come_first_and_are_chosen_by_their_index(package):
    library = Library("CPU", "GPU", "NPU", "GPU")
    found = [ort_plugins.describe(one) for one in ort_plugins.devices(OPENVINO, library)]
    assert found == ["GPU: GPU number 1", "GPU: GPU number 3"]
    assert ort_plugins.problem(OPENVINO, 1, library) is None
    assert "there is no GPU 2" in str(ort_plugins.problem(OPENVINO, 2, library))
    options, chosen = SimpleNamespace(), []
    options.add_provider_for_devices = lambda devices, made: chosen.append((devices, made))
    settings = EngineSettings(gpu=1, threads=3)
    ort_plugins.add_to_session(options, OPENVINO, library, None, settings, frozenset())
    (([device], made),) = chosen
    assert ort_plugins.describe(device) == "GPU: GPU number 3"
    assert "INFERENCE_NUM_THREADS" not in json.loads(made["load_config"])["GPU"]


def test_openvino_is_told_to_compute_in_float32(manifest_of, tmp_path):
    settings = EngineSettings(threads=3, hint="throughput", cache=str(tmp_path / "cache"))
    request = ort_plugins.Request(manifest_of(), settings, frozenset(), "CPU")
    options = ort_plugins.PLUGINS[OPENVINO].options(request)
    assert json.loads(options["load_config"]) == {
        "CPU": {
            "INFERENCE_PRECISION_HINT": "f32",
            "PERFORMANCE_HINT": "THROUGHPUT",
            "INFERENCE_NUM_THREADS": "3",
        }
    }
    assert options["cache_dir"] == str(tmp_path / "cache")


def test_tensorrt_rtx_is_told_the_shapes_that_come(manifest_of):
    parts = frozenset({"map"})
    request = ort_plugins.Request(manifest_of(), EngineSettings(), parts, "GPU")
    options = ort_plugins.PLUGINS[TENSORRT_RTX].options(request)
    assert options == {
        "nv_profile_min_shapes": "image:1x3x8x8,target:1x1",
        "nv_profile_opt_shapes": "image:1x3x8x8,target:1x1",
        "nv_profile_max_shapes": "image:32x3x8x8,target:32x5",
    }
    limit = run_limit(TENSORRT_RTX, manifest_of(), parts)
    assert (limit.images, limit.classes) == (32, 5)
    assert run_limit(WEBGPU, manifest_of(), parts) is None


def test_tensorrt_rtx_needs_nvidias_driver(monkeypatch):
    monkeypatch.setattr(ort_plugins, "find_spec", lambda _: object())
    monkeypatch.setattr(ort_plugins, "driver", lambda: Driver(problem="no driver here"))
    assert ort_plugins.problem(TENSORRT_RTX, 0, Library()) == "no driver here"


def test_error_of_a_device_is_told_without_places_in_sources():
    class EPFail(Exception):
        pass

    error = EPFail(
        "[ONNXRuntimeError] : 11 : EP_FAIL : /onnxruntime_src/onnxruntime/core/session/plugin_ep/"
        "ep_plugin_provider_interfaces.cc:393 virtual std::unique_ptr<onnxruntime::"
        "IExecutionProvider> onnxruntime::PluginExecutionProviderFactory::CreateProvider(const "
        "OrtSessionOptions&, const OrtLogger&) [ONNXRuntimeError] : 11 : EP_FAIL : /onnxruntime_src"
        "/onnxruntime/core/providers/webgpu/webgpu_context.cc:136 onnxruntime::webgpu::"
        "WebGpuContext::Initialize(const onnxruntime::webgpu::WebGpuContextConfig&)::<lambda()> "
        "adapter_result.status == wgpu::RequestAdapterStatus::Success was false. Failed to get a "
        "WebGPU adapter: No supported adapters"
    )
    assert ort_plugins.error_text(error) == "Failed to get a WebGPU adapter: No supported adapters"
    assert ort_plugins.is_device_error(error)


@pytest.mark.parametrize("place", ort_plugins.PLUGINS, ids=lambda place: place.engine)
def test_plugins_run_only_where_they_are_asked_for_by_name(place: Place, manifest_of):
    assert ENGINES[place.engine].package == place.plugin
    found = {one.name: one for one in candidates(manifest_of(), EngineSettings())}
    assert not found[place.engine].usable
    assert place.extra in found[place.engine].why or "asked for by name" in found[place.engine].why


# With the packages.


@pytest.fixture(scope="module")
def files(mixed_files) -> dict[str, Path]:
    return {kind: mixed_files(kind) for kind in ("raw", "tft")}


@pytest.fixture(scope="module")
def images() -> list[np.ndarray]:
    return list(np.random.default_rng(1).integers(0, 256, (5, 40, 50, 3), np.uint8))


def same(ours: list[Any], theirs: list[Any]) -> None:
    for one, other in zip(ours, theirs, strict=True):
        assert one.index == other.index
        assert one.probability == pytest.approx(other.probability, abs=1e-5)
        np.testing.assert_allclose(one.original_map, other.original_map, atol=1e-4)
        np.testing.assert_allclose(one.rpi, other.rpi, atol=1e-3)


def test_openvino_plugin_explains_beside_openvinos_own_package(tiny_file):
    pytest.importorskip("onnxruntime_ep_openvino")
    pytest.importorskip("openvino")
    images = list(np.random.default_rng(1).integers(0, 256, (3, 12, 10, 3), np.uint8))
    found = [
        whycam.load(tiny_file, name, threads=1).explain(images, tft=True)
        for name in ("openvino", "onnxruntime-openvino", "onnxruntime")
    ]
    same(found[1], found[2])
    same(found[0], found[2])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["raw", "tft"])
def test_openvino_plugin_answers_as_the_cpu_does(files, images, kind):
    """In float32 on processors with bf16 too, and no operator is left to ONNX Runtime."""
    pytest.importorskip("onnxruntime_ep_openvino")
    ours = whycam.load(files[kind], "onnxruntime-openvino", threads=1)
    theirs = whycam.load(files[kind], "onnxruntime", threads=1)
    assert " on OpenVINO, CPU: " in ours.engine.description
    assert ours.engine.description.endswith(" OpenVINO)")  # the count of operators
    same(*(each.explain(images, tft=True) for each in (ours, theirs)))
    for a, b in zip(
        *(each.explain(images, [[-1, 2]] * 5, tft=True) for each in (ours, theirs)), strict=True
    ):
        same(a, b)


def test_doctor_knows_a_plugins_version_and_device():
    pytest.importorskip("onnxruntime_ep_openvino")
    found = doctor_job.survey("onnxruntime-openvino", 0)
    assert found.problem is None
    assert str(found.version)[0].isdigit()
    assert found.devices[0].startswith(("CPU: ", "GPU: "))


WEBGPU_ANSWERS = """
import json, sys
import numpy as np
import whycam
image = np.random.default_rng(1).integers(0, 256, (40, 50, 3), np.uint8)
found = []
for engine in ("onnxruntime-webgpu", "onnxruntime"):
    explainer = whycam.load(sys.argv[1], engine)
    found.append(explainer.explain(image))
    print(explainer.engine.description, file=sys.stderr)
one, other = found
print(json.dumps([one.index == other.index, abs(one.probability - other.probability),
                  float(np.abs(one.map - other.map).max())]))
"""


@pytest.mark.slow
def test_webgpu_answers_as_the_cpu_does_on_a_software_driver(needs, files, monkeypatch):
    """By Vulkan without a GPU: SwiftShader, which Chromium brings. In a process of its own."""
    pytest.importorskip("onnxruntime_ep_webgpu")
    needs(SWIFTSHADER, "/usr/lib/x86_64-linux-gnu/libvulkan.so.1")
    monkeypatch.setenv("ORT_WEBGPU_EP_ALLOW_SOFTWARE_ADAPTER", "1")
    for name in ("VK_ICD_FILENAMES", "VK_DRIVER_FILES"):
        monkeypatch.setenv(name, SWIFTSHADER)
    command = [sys.executable, "-c", WEBGPU_ANSWERS, str(files["raw"])]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "on WebGPU, CPU: " in done.stderr
    same, probability, apart = json.loads(done.stdout)
    assert same
    assert probability < 1e-5
    assert apart < 1e-4


@pytest.mark.gpu
@pytest.mark.skipif(driver().problem is not None, reason=f"no GPU here: {driver().problem}")
def test_tensorrt_rtx_plugin_answers_as_the_cpu_does(files, images):
    pytest.importorskip("onnxruntime_ep_nv_tensorrt_rtx")
    ours = whycam.load(files["raw"], "onnxruntime-tensorrt-rtx")
    theirs = whycam.load(files["raw"], "onnxruntime")
    for a, b in zip(ours.explain(images, tft=True), theirs.explain(images, tft=True), strict=True):
        assert a.index == b.index
        assert a.probability == pytest.approx(b.probability, abs=3e-5)  # TF32 would differ by more
        np.testing.assert_allclose(a.original_map, b.original_map, atol=1e-2)
