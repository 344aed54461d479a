"""Choose ONNX Runtime's options for each place it computes in, without importing it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import EngineError
from ..manifest import FilePrecision, Manifest
from ..place_weights import REGION
from .base import EngineSettings
from .interface import graph_name
from .plan import Range

Options = Mapping[str, str]
# TensorRT's engines serve a range of shapes and hold memory for the largest, so there is one: so
# many images, those of a sweep inside the graph counted, and as many classes as there are ranks.
_IMAGES, _CLASSES = 32, 5
_PROMPTS = Range(1, 8, 1024)  # where class embeddings are an input


@dataclass(frozen=True)
class Place:
    """Where ONNX Runtime computes.

    Attributes:
        engine: name in ``engine.ENGINES``.
        provider: ONNX Runtime's name for it.
        shown: for people.
        extra: of whycam, that installs it.
        device: in whose memory inputs and outputs are bound, as ONNX Runtime calls it; None: it
            is handed arrays and returns arrays.
        plugin: the package that brings the provider; None: it is built into ONNX Runtime.
    """

    engine: str
    provider: str
    shown: str
    extra: str
    device: str | None
    plugin: str | None = None


CPU = Place("onnxruntime", "CPUExecutionProvider", "the CPU", "cpu", None)
CUDA = Place("onnxruntime-cuda", "CUDAExecutionProvider", "CUDA", "gpu", "cuda")
TENSORRT = Place("onnxruntime-tensorrt", "TensorrtExecutionProvider", "TensorRT", "gpu", "cuda")


def _plugin(name: str, provider: str, shown: str, package: str) -> Place:
    engine = f"onnxruntime-{name}"
    return Place(engine, f"{provider}ExecutionProvider", shown, engine, None, package)


OPENVINO = _plugin("openvino", "OpenVINO", "OpenVINO", "onnxruntime_ep_openvino")
WEBGPU = _plugin("webgpu", "WebGpu", "WebGPU", "onnxruntime_ep_webgpu")
TENSORRT_RTX = _plugin(
    "tensorrt-rtx", "NvTensorRTRTX", "TensorRT-RTX", "onnxruntime_ep_nv_tensorrt_rtx"
)
# Their engines are built for a range of shapes.
_WITH_PROFILES = (TENSORRT, TENSORRT_RTX)


@dataclass(frozen=True)
class Most:
    """The largest batch that goes into one run, and the most classes explained in it."""

    images: int
    classes: int


@dataclass(frozen=True)
class Cache:
    """Where TensorRT keeps what it has built.

    Attributes:
        engines: folder of one part of one file, in one set of versions, on one kind of GPU: ONNX
            Runtime's own names do not tell files with other weights apart.
        timing: folder of measured kernels, of any file.
    """

    engines: str
    timing: str


def disabled_optimizers(precision: FilePrecision) -> list[str]:
    """List the optimizers of ONNX Runtime that crash the process on the CPU, by a file's precision.

    On x86-64 processors, ONNX Runtime 1.24 to 1.32 reads a null pointer where it has fused the
    transpose of a half-precision tensor into a matrix product, as in transformers (issue 28392).
    """
    return ["MatmulTransposeFusion"] if precision in ("fp16", "bf16") else []


def providers(
    place: Place,
    manifest: Manifest,
    settings: EngineSettings,
    parts: frozenset[str],
    cache: Cache | None = None,
) -> list[tuple[str, Options]]:
    """Build ONNX Runtime's ``providers``, the one asked for first.

    Args:
        place: where to compute.
        manifest: of the file.
        settings: as asked for.
        parts: of the graph, that the session is for; see ``interface.parts_needed``.
        cache: for TensorRT; None: what it builds is not kept.

    Raises:
        EngineError: TensorRT cannot run the file.
    """
    if place.provider == CPU.provider:
        return [(place.provider, {})]
    cuda = (CUDA.provider, _cuda(settings.gpu))
    if place.provider == CUDA.provider:
        return [cuda]
    own = _tensorrt(manifest, settings.gpu, parts, cache)
    # What TensorRT leaves over stays on the GPU.
    return [(place.provider, own), cuda]


def run_limit(place: Place, manifest: Manifest, parts: frozenset[str]) -> Most | None:
    """Return the most images and classes of one run; None if there is no limit."""
    if place not in _WITH_PROFILES:
        return None
    if manifest.batch is not None:
        images = manifest.batch
    elif "sweep" in parts:
        # Every class of every image is tried at each threshold, all in one run.
        images = max(1, _IMAGES // (len(manifest.tft.taus) * (manifest.top or 1)))
    else:
        images = _IMAGES
    return Most(images, manifest.top or (1 if "sweep" in parts else _CLASSES))


def _cuda(gpu: int) -> Options:
    return {
        "device_id": str(gpu),
        # The default on Ampere and later GPUs: products of 10 bits, which is not fp32.
        "use_tf32": "0",
        # The default measures convolutions anew for every batch size; a sweep has many.
        "cudnn_conv_algo_search": "HEURISTIC",
        # The default doubles what it takes each time; a batch size seen once would keep that.
        "arena_extend_strategy": "kSameAsRequested",
        # The default, said because the other value may read inputs before they have arrived.
        "do_copy_in_default_stream": "1",
    }


def _tensorrt(
    manifest: Manifest, gpu: int, parts: frozenset[str], cache: Cache | None
) -> dict[str, str]:
    smallest, best, largest = _profile(TENSORRT, manifest, parts)
    found = {
        "device_id": str(gpu),
        # Only what the file itself holds. TensorRT may then use it in the head as well: ONNX
        # Runtime builds weakly typed networks.
        "trt_fp16_enable": _switch(manifest.precision == "fp16"),
        "trt_int8_enable": _switch(manifest.precision == "int8"),
        "trt_profile_min_shapes": smallest,
        "trt_profile_opt_shapes": best,
        "trt_profile_max_shapes": largest,
        "trt_engine_cache_enable": _switch(cache is not None),
        "trt_timing_cache_enable": _switch(cache is not None),
    }
    if manifest.precision == "bf16":
        found["trt_bf16_enable"] = "1"  # older versions do not know it, and need not
    if cache is not None:
        found["trt_engine_cache_path"] = cache.engines
        found["trt_timing_cache_path"] = cache.timing
    return found


def tensorrt_rtx_options(manifest: Manifest, parts: frozenset[str]) -> Options:
    """Build the options of TensorRT-RTX: the shapes that it builds for.

    Args:
        manifest: of the file.
        parts: of the graph, that the session is for; see ``interface.parts_needed``.

    Raises:
        EngineError: it cannot run the file.
    """
    smallest, best, largest = _profile(TENSORRT_RTX, manifest, parts)
    return {
        "nv_profile_min_shapes": smallest,
        "nv_profile_opt_shapes": best,
        "nv_profile_max_shapes": largest,
    }


def _profile(place: Place, manifest: Manifest, parts: frozenset[str]) -> tuple[str, str, str]:
    """Choose the smallest, best and largest shapes of the inputs that are built for."""
    free = manifest.dynamic_size
    extremes = [None, None, None] if free is None else [(free.least,) * 2, None, (free.most,) * 2]
    shapes = [manifest.at(size).image_shape for size in extremes]
    smallest, usual, largest = ([str(side) for side in shape] for shape in shapes)
    if None in shapes[1]:
        raise EngineError(
            f"{place.engine} builds for one size of images, and this file takes any: export "
            f"it with --source-size HxW, or use {CUDA.engine}"
        )
    limit = run_limit(place, manifest, parts)
    assert limit is not None
    # Kernels are chosen for the best shape: one explanation, or the thresholds of one.
    best = 1 if parts else min(limit.images, len(manifest.tft.taus))
    least = 1
    if manifest.batch is not None:
        least = best = limit.images
    return (
        _shapes(least, 1, _PROMPTS.least, smallest, manifest),
        _shapes(best, 1, _PROMPTS.best, usual, manifest),
        _shapes(limit.images, limit.classes, _PROMPTS.most, largest, manifest),
    )


def _switch(on: bool) -> str:
    return "1" if on else "0"


def _shapes(images: int, classes: int, prompts: int, sides: list[str], manifest: Manifest) -> str:
    shape = f"{graph_name('image', manifest)}:{'x'.join([str(images), *sides])}"
    if manifest.top is None:
        shape += f",{graph_name('target', manifest)}:{images}x{classes}"
    if manifest.class_embeddings is not None:
        name = graph_name("class_embeddings", manifest)
        shape += f",{name}:{prompts}x{manifest.class_embeddings}"
    if manifest.region is not None:
        sides = [str(side) for side in manifest.region]
        shape += f",{graph_name(REGION, manifest)}:{'x'.join([str(images), *sides])}"
    return shape


def cache_names(
    digest: str, parts: frozenset[str], versions: Mapping[str, str], gpu: str
) -> tuple[str, str]:
    """Name the folders of a ``Cache``: engines, timing.

    Args:
        digest: of the file, ``sha256:...``.
        parts: of the graph.
        versions: of ONNX Runtime and TensorRT, by ``ort`` and ``trt``.
        gpu: name and capability.
    """
    where = _slug("-".join([f"trt{versions['trt']}", gpu]))
    part = "-".join(sorted(parts)) or "classification"
    file = digest.removeprefix("sha256:")[:16]
    return _slug(f"{file}-{part}-ort{versions['ort']}-{where}"), f"timing-{where}"


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9.]+", "-", text).strip("-")


def tf32_conflict(manifest: Manifest, environment: Mapping[str, Any]) -> str | None:
    """Say why TensorRT would not compute an fp32 file in fp32; None if it would."""
    value = environment.get(TF32)
    if manifest.precision != "fp32" or value in (None, "0"):
        return None
    return (
        f"{TF32} is {value!r} in the environment, and then TensorRT computes fp32 files with "
        f"10 bits (TF32). Unset it, or set it to 0"
    )


# The only way to forbid TF32 to TensorRT inside ONNX Runtime, which has no option for it. NVIDIA's
# libraries read it once in a process.
TF32 = "NVIDIA_TF32_OVERRIDE"
