"""List the inference engines that whycam knows, and choose those that suit a file.

An engine is a file of its own beside this one, imported only when it is asked for.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec

from ..manifest import Manifest
from .base import Engine, EngineSettings, Precision
from .plan import is_plan, read_plan

Opener = Callable[[str, Manifest, EngineSettings], Engine]


def _onnxruntime(path: str, manifest: Manifest, settings: EngineSettings) -> Engine:
    from .ort import OnnxRuntimeEngine

    return OnnxRuntimeEngine(path, manifest, settings)


def _onnxruntime_cuda(path: str, manifest: Manifest, settings: EngineSettings) -> Engine:
    from .ort import OnnxRuntimeEngine
    from .ort_options import CUDA

    return OnnxRuntimeEngine(path, manifest, settings, CUDA)


def _onnxruntime_tensorrt(path: str, manifest: Manifest, settings: EngineSettings) -> Engine:
    from .ort import OnnxRuntimeEngine
    from .ort_options import TENSORRT

    return OnnxRuntimeEngine(path, manifest, settings, TENSORRT)


def _openvino(path: str, manifest: Manifest, settings: EngineSettings) -> Engine:
    from .ov import OpenVinoEngine

    return OpenVinoEngine(path, manifest, settings)


def _tensorrt(path: str, manifest: Manifest, settings: EngineSettings) -> Engine:
    from .trt import TensorRtEngine

    return TensorRtEngine(path, manifest, settings)


@dataclass(frozen=True)
class Backend:
    """An engine that whycam knows.

    Attributes:
        package: its Python module.
        extra: of whycam, that installs it.
        precisions: that it computes in.
        open: opens a file in it.
        provider: of ONNX Runtime, that it uses; its package comes with or without.
        reserved: why ``auto`` leaves it to those who ask for it by name; None: it does not.
        plugin: whether it is a plugin of ONNX Runtime.
        gpu: whether it needs a GPU.
    """

    package: str
    extra: str
    precisions: tuple[Precision, ...]
    open: Opener
    provider: str | None = None
    reserved: str | None = None
    plugin: bool = False
    gpu: bool = False

    @property
    def installed(self) -> bool:
        """Tell whether its package is installed; ``runtime.doctor`` checks the rest."""
        return self.absent is None

    @property
    def absent(self) -> str | None:
        """Say why it is missing, and the command that installs it; None if it is installed."""
        if find_spec(self.package) is None:
            return f'not installed: pip install "whycam[{self.extra}]"'
        if self.provider is None:
            return None
        from .ort_gpu import not_built_in

        return not_built_in(self.provider)


def _plugin(name: str, package: str, reserved: str, gpu: bool) -> Backend:
    """Describe an engine that is a plugin of ONNX Runtime; its extra has its name."""

    def open_plugin(path: str, manifest: Manifest, settings: EngineSettings) -> Engine:
        from .ort import OnnxRuntimeEngine
        from .ort_plugins import place_of

        return OnnxRuntimeEngine(path, manifest, settings, place_of(name))

    return Backend(package, name, ("fp32",), open_plugin, reserved=reserved, plugin=True, gpu=gpu)


# Every export is checked in this one, so it need not prove itself again.
CHECKED_AT_EXPORT = "onnxruntime"
ENGINES: dict[str, Backend] = {
    CHECKED_AT_EXPORT: Backend("onnxruntime", "cpu", ("fp32",), _onnxruntime),
    "onnxruntime-cuda": Backend(
        "onnxruntime",
        "gpu",
        ("fp32",),
        _onnxruntime_cuda,
        "CUDAExecutionProvider",
        "takes seconds to start, and memory of a GPU",
        gpu=True,
    ),
    "onnxruntime-tensorrt": Backend(
        "onnxruntime",
        "gpu",
        ("fp32",),
        _onnxruntime_tensorrt,
        "TensorrtExecutionProvider",
        "builds for minutes before it starts, and takes memory of a GPU",
        gpu=True,
    ),
    "onnxruntime-openvino": _plugin(
        "onnxruntime-openvino",
        "onnxruntime_ep_openvino",
        "openvino does the same without plugin",
        gpu=False,
    ),
    "onnxruntime-webgpu": _plugin(
        "onnxruntime-webgpu", "onnxruntime_ep_webgpu", "takes memory of a GPU", gpu=True
    ),
    "onnxruntime-tensorrt-rtx": _plugin(
        "onnxruntime-tensorrt-rtx",
        "onnxruntime_ep_nv_tensorrt_rtx",
        "compiles when it starts, and takes memory of a GPU",
        gpu=True,
    ),
    "openvino": Backend("openvino", "openvino", ("fp32", "bf16"), _openvino),
    # Runs plans, and nothing else does; one computes in the precision that it was built in.
    "tensorrt": Backend("tensorrt", "tensorrt", ("fp32",), _tensorrt, gpu=True),
}


@dataclass(frozen=True)
class Candidate:
    """An engine considered for a file.

    Attributes:
        name: in ``ENGINES``.
        usable: whether it can be tried.
        why: it is preferred, comes second, or is not to be had.
    """

    name: str
    usable: bool
    why: str


def candidates(
    manifest: Manifest, settings: EngineSettings, path: str | os.PathLike[str] | None = None
) -> list[Candidate]:
    """List the engines that ``auto`` tries for a file and those it does not, with reasons.

    Args:
        manifest: of the file.
        settings: wished for.
        path: of the file; told, a TensorRT plan gets the engine for plans.
    """
    if path is not None and is_plan(path):
        return [_for_plan(path, manifest, settings)]
    return [*_preferred(manifest, settings), *_reserved(settings)]


def usable(
    manifest: Manifest, settings: EngineSettings, path: str | os.PathLike[str] | None = None
) -> list[Candidate]:
    """List the engines that ``auto`` tries for a file, in order; see ``candidates``."""
    if path is not None and is_plan(path):
        return [each for each in [_for_plan(path, manifest, settings)] if each.usable]
    return [each for each in _preferred(manifest, settings) if each.usable]


def import_engine(name: str, manifest: Manifest, settings: EngineSettings) -> None:
    """Import an engine's package, which takes a while, before a file is opened in it.

    What fails here fails again, and is explained, when the engine is opened.

    Args:
        name: in ``ENGINES``, or ``auto``.
        manifest, settings: see ``candidates``.
    """
    first = [each.name for each in usable(manifest, settings)[:1]] if name == "auto" else [name]
    for each in first:
        if each in ENGINES:
            with suppress(Exception):  # whatever a broken installation raises
                import_module(ENGINES[each].package)


def _preferred(manifest: Manifest, settings: EngineSettings) -> list[Candidate]:
    order, why = _preference(manifest, settings)
    found: list[Candidate] = []
    for name in order:
        backend = ENGINES[name]
        if settings.precision not in backend.precisions:
            found.append(Candidate(name, False, f"cannot compute in {settings.precision}"))
        elif (absent := backend.absent) is not None:
            found.append(Candidate(name, False, absent))
        elif any(each.usable for each in found):
            found.append(Candidate(name, True, "installed; used if the one before it fails"))
        elif name == order[0]:
            found.append(Candidate(name, True, why))
        elif is_slower_in_int8(manifest, name):
            slow = "the one that can be used here, but INT8 is slower than fp32 in it"
            found.append(Candidate(name, True, slow))
        else:
            found.append(Candidate(name, True, "the one that can be used here"))
    return found


def is_slower_in_int8(manifest: Manifest, engine: str) -> bool:
    """Tell whether an engine runs an INT8 file slower than the float file that it was made of.

    ONNX Runtime does on CPUs; docs/performance.md has the figures.

    Args:
        manifest: of the file.
        engine: in ``ENGINES``.
    """
    return manifest.precision == "int8" and engine == "onnxruntime"


def _reserved(settings: EngineSettings) -> Iterator[Candidate]:
    for name, backend in ENGINES.items():
        if backend.reserved is not None and settings.precision in backend.precisions:
            why = backend.absent or f"only when asked for by name: {backend.reserved}"
            yield Candidate(name, False, why)


def _for_plan(
    path: str | os.PathLike[str], manifest: Manifest, settings: EngineSettings
) -> Candidate:
    from .trt_load import extra_of, is_installed

    library = read_plan(path).library
    if settings.precision != "fp32":
        why = f"a plan computes as it was built, in {manifest.precision}: leave out the precision"
        return Candidate("tensorrt", False, why)
    if not is_installed(library):
        why = f'{library} is not installed: pip install "whycam[{extra_of(library)}]"'
        return Candidate("tensorrt", False, why)
    return Candidate("tensorrt", True, f"runs plans of {library}; nothing else does")


def _preference(manifest: Manifest, settings: EngineSettings) -> tuple[tuple[str, ...], str]:
    """Order the engines by preference, with the reason; docs/performance.md has the figures."""
    if settings.precision == "bf16":
        return ("openvino", "onnxruntime"), "computes in bf16 on CPUs"
    if manifest.precision == "bf16":
        return ("openvino", "onnxruntime"), "reads bf16 files on CPUs, which ONNX Runtime does not"
    if manifest.precision == "int8":
        return ("openvino", "onnxruntime"), "two to three times as fast for INT8 on CPUs"
    # As fast as OpenVINO for one image, and what every export is checked in.
    return ("onnxruntime", "openvino"), "the engine that the export was checked in"
