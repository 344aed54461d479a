"""Use ONNX Runtime's plugin execution providers: each comes in a package of its own.

One interface for all of them: the package names its library, ONNX Runtime loads that and lists the
devices it can use, and a session is opened for one of these.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from ..files import writable_folder
from ..manifest import Manifest
from .base import EngineSettings
from .nvidia import driver
from .ort_options import (
    OPENVINO,
    TENSORRT_RTX,
    WEBGPU,
    Options,
    Place,
    tensorrt_rtx_options,
)

# Before 1.24, plugins could not be registered from Python on every system.
_NEEDS = "onnxruntime 1.24 or later"
_FAILURE = re.compile(r"\[ONNXRuntimeError\] : \d+ : \w+ : ")
_SOURCE = re.compile(r"^/\S+ .*?(?:was false\.|\[ONNXRuntimeError\])\s*")


@dataclass(frozen=True)
class Request:
    """What a session is opened for.

    Attributes:
        manifest: of the file.
        settings: as asked for; ``gpu`` counts the devices of the preferred kind.
        parts: of the graph, see ``interface.parts_needed``.
        device: kind of the device.
    """

    manifest: Manifest
    settings: EngineSettings
    parts: frozenset[str]
    device: str


@dataclass(frozen=True)
class Plugin:
    """What a plugin needs to be told.

    Attributes:
        devices: kinds of devices that it may use, the preferred one first: ``GPU``, ``CPU``.
        options: that it takes.
    """

    devices: tuple[str, ...]
    options: Callable[[Request], Options]


def _openvino(request: Request) -> Options:
    settings = request.settings
    # Said always: where a device has bf16 or fp16, OpenVINO would take it unasked.
    properties = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": settings.hint.upper()}
    if settings.threads is not None and request.device == "CPU":
        properties["INFERENCE_NUM_THREADS"] = str(settings.threads)
    options = {"load_config": json.dumps({request.device: properties})}
    if settings.cache is not None:
        options["cache_dir"] = str(writable_folder(settings.cache))
    return options


def _no_options(_: Request) -> Options:
    return {}


def _tensorrt_rtx(request: Request) -> Options:
    options = dict(tensorrt_rtx_options(request.manifest, request.parts))
    if request.settings.cache is not None:
        options["nv_runtime_cache_path"] = str(writable_folder(request.settings.cache))
    return options


# A CPU serves WebGPU where ORT_WEBGPU_EP_ALLOW_SOFTWARE_ADAPTER allows it. NPUs have no fp32.
PLUGINS: Mapping[Place, Plugin] = {
    OPENVINO: Plugin(("GPU", "CPU"), _openvino),
    WEBGPU: Plugin(("GPU", "CPU"), _no_options),
    TENSORRT_RTX: Plugin(("GPU",), _tensorrt_rtx),
}


def place_of(engine: str) -> Place:
    """Find the place of an engine's name."""
    return next(place for place in PLUGINS if place.engine == engine)


_lock = threading.Lock()
_registered: set[str] = set()


def problem(place: Place, gpu: int, library: Any) -> str | None:
    """Say why a plugin cannot be used, and what to do; None if it can.

    Args:
        place: of ``PLUGINS``.
        gpu: index of the GPU.
        library: the module onnxruntime.
    """
    cure = f'pip install "whycam[{place.extra}]"'
    if find_spec(_package(place)) is None:
        return f"not installed: {cure}"
    if not hasattr(library, "register_execution_provider_library"):
        return f"it needs {_NEEDS}, not {library.__version__}: {cure}"
    if place == TENSORRT_RTX and (missing := driver().problem) is not None:
        return missing
    try:
        register(place, library)
    except Exception as error:  # whatever a broken installation raises
        return f"its library does not load: {error_text(error)}. Install it again: {cure}"
    found = devices(place, library)
    if not found:
        kinds = sorted({one.device.type.name for one in library.get_ep_devices()})
        return (
            f"{place.shown} finds no device that it can use; ONNX Runtime itself sees: "
            f"{', '.join(kinds)}"
        )
    if gpu >= len(found):
        listed = ", ".join(f"{index} ({describe(one)})" for index, one in enumerate(found))
        return f"there is no GPU {gpu}; choose from: {listed}"
    return None


def register(place: Place, library: Any) -> None:
    """Load a plugin's library into ONNX Runtime, once in a process; it stays there.

    Raises:
        Exception: of ONNX Runtime or of the plugin's package, where it does not load.
    """
    with _lock:
        if place.provider not in _registered:
            package = import_module(_package(place))
            library.register_execution_provider_library(place.provider, package.get_library_path())
            _registered.add(place.provider)


def _package(place: Place) -> str:
    assert place.plugin is not None
    return place.plugin


def devices(place: Place, library: Any) -> list[Any]:
    """List the devices of the preferred kind that a registered plugin offers."""
    offered = [one for one in library.get_ep_devices() if one.ep_name == place.provider]
    for kind in PLUGINS[place].devices:
        of_kind = [one for one in offered if one.device.type.name == kind]
        if of_kind:
            return of_kind
    return []


def describe(device: Any) -> str:
    """Name a device for people: its kind, and its product or vendor."""
    name = device.ep_metadata.get("FULL_DEVICE_NAME") or device.device.metadata.get("Description")
    return f"{device.device.type.name}: {name or device.device.vendor or 'unnamed'}"


def add_to_session(
    options: Any,
    place: Place,
    library: Any,
    manifest: Manifest,
    settings: EngineSettings,
    parts: frozenset[str],
) -> None:
    """Make a session compute on a plugin's device; what the plugin leaves over is for the CPU.

    Args:
        options: of the session.
        place: of ``PLUGINS``, without a ``problem``.
        library: the module onnxruntime.
        manifest, settings, parts: see ``Request``.

    Raises:
        EngineError: the plugin cannot run the file.
        OutputError: the cache cannot be written.
    """
    chosen = devices(place, library)[settings.gpu]
    request = Request(manifest, settings, parts, chosen.device.type.name)
    options.add_provider_for_devices([chosen], dict(PLUGINS[place].options(request)))


def error_text(error: Exception) -> str:
    """Extract what a plugin says went wrong, without places in ONNX Runtime's sources."""
    text = str(error)
    while (shorter := _SOURCE.sub("", _FAILURE.sub("", text))) != text:
        text = shorter
    return text.strip()


def is_device_error(error: Exception) -> bool:
    """Tell whether a plugin failed to reach its device, not to read the file."""
    return type(error).__name__ == "EPFail"
