"""Find out whether ONNX Runtime can use a GPU here, and what is missing if not.

ONNX Runtime itself prints to the terminal, and computes on the CPU instead. Everything it needs is
therefore looked at before it is asked.
"""

from __future__ import annotations

import ctypes
import io
import re
import sys
from contextlib import redirect_stdout, suppress
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from .nvidia import NO_DRIVER, Driver, driver
from .ort_options import CPU, CUDA, TENSORRT, Place

_CURE = 'pip install "whycam[gpu]"'
_DEVICE_FAILURE = re.compile(r"(?:CUDA|CUDNN|CUBLAS|CURAND)\w* (?:failure|error) \d+: [^;]*")
_TENSORRT_LIBRARIES = ("nvinfer", "nvinfer_plugin", "nvonnxparser")


def problem(place: Place, gpu: int = 0, library: Any = None) -> str | None:
    """Say why ONNX Runtime cannot compute on a place, and what to do; None if it should.

    Args:
        place: where.
        gpu: index of the GPU.
        library: the module onnxruntime; None: imported.
    """
    lacks = not_built_in(place.provider, library)
    if lacks is not None or place.provider == CPU.provider:
        return lacks
    found = driver()
    if found.problem is not None:
        return found.problem
    library = library or import_module("onnxruntime")
    return _unusable(gpu, found, library) or _unloadable(place, library)


def not_built_in(provider: str, library: Any = None) -> str | None:
    """Say why the installed onnxruntime has no such provider, and what to do; None if it has.

    Args:
        provider: ONNX Runtime's name for it.
        library: the module onnxruntime; None: imported.
    """
    try:
        library = library or import_module("onnxruntime")
    except Exception as error:  # whatever a broken installation raises
        return f"onnxruntime is installed, but cannot be imported: {error}"
    if provider in library.get_available_providers():
        return None
    number = library.__version__
    if _version("onnxruntime") and _version("onnxruntime-gpu"):
        return (
            "onnxruntime and onnxruntime-gpu are both installed and overwrite each other; what is "
            f"left ({number}) has no {provider}. Run: pip uninstall -y onnxruntime "
            f"onnxruntime-gpu; then: {_CURE}"
        )
    return (
        f"this onnxruntime ({number}) is the one for CPUs and has no {provider}. Run: pip "
        f"uninstall -y onnxruntime; then: {_CURE}"
    )


def _unusable(gpu: int, found: Driver, library: Any) -> str | None:
    if gpu >= len(found.gpus):
        listed = ", ".join(f"{each.index} ({each.name})" for each in found.gpus)
        return f"there is no GPU {gpu}; choose from: {listed}"
    needed, served = cuda_version_built_for(library), found.cuda
    if needed and served and int(needed.split(".")[0]) > int(served.split(".")[0]):
        return (
            f"this onnxruntime-gpu ({library.__version__}) needs CUDA {needed}, and the driver "
            f"serves CUDA {served} at most: update the driver, or install an older onnxruntime-gpu"
        )
    return None


def cuda_version_built_for(library: Any) -> str | None:
    """Read the CUDA version that onnxruntime was built for, as ``13.0``; None if unknown."""
    said = getattr(library, "cuda_version", None)
    return said if isinstance(said, str) and re.match(r"\d+\.", said) else None


def _unloadable(place: Place, library: Any) -> str | None:
    try:
        provider_library(place, library)
    except OSError as error:
        return why_unloadable(str(error), place, cuda_version_built_for(library))
    return None


def why_unloadable(message: str, place: Place, cuda: str | None) -> str:
    """Explain a provider's library that does not load, and what to install.

    Args:
        message: its own.
        place: of the provider.
        cuda: the version that the provider was built for.
    """
    found = re.search(r"(lib[\w+-]+\.so[\w.]*|[\w-]+\.dll)", message)
    missing = found[1] if found else ""
    if missing.startswith(("libcuda.so", "nvcuda")):
        return NO_DRIVER
    major = (cuda or "12").split(".")[0]
    if "nvinfer" in missing or "nvonnxparser" in missing:
        number = re.search(r"(?:\.so\.|_)(\d+)", missing)
        wanted = number[1] if number else "10"
        return (
            f"TensorRT {wanted} is not installed ({missing} is missing). Install it with: pip "
            f'install --extra-index-url https://pypi.nvidia.com "tensorrt-cu{major}=={wanted}.*"'
        )
    if missing and "onnxruntime_providers" not in missing:
        what = "cuDNN" if "cudnn" in missing else f"CUDA {major}"
        return f"{what} is not installed ({missing} is missing). Install it with: {_CURE}"
    return f"the library of {place.provider} does not load: {message}. Install it again: {_CURE}"


@cache
def preload() -> str:
    """Load the libraries of CUDA, cuDNN and TensorRT from Python's packages, once.

    They lie where the system's loader does not look.

    Returns:
        What ONNX Runtime prints about those that are missing.
    """
    import onnxruntime

    printed = io.StringIO()
    if hasattr(onnxruntime, "preload_dlls"):
        # It prints what it does not find, also where nothing that is needed is missing.
        with redirect_stdout(printed), suppress(Exception):
            onnxruntime.preload_dlls()
    spec = find_spec("tensorrt_libs")
    for folder in (spec.submodule_search_locations or ()) if spec is not None else ():
        for name in _TENSORRT_LIBRARIES:
            pattern = f"{name}_[0-9]*.dll" if sys.platform == "win32" else f"lib{name}.so.*"
            for file in sorted(Path(folder).glob(pattern)):
                with suppress(OSError):
                    ctypes.CDLL(str(file), mode=ctypes.RTLD_GLOBAL)
    return printed.getvalue()


def provider_library(place: Place, library: Any) -> ctypes.CDLL:
    """Load what ONNX Runtime would load for a provider.

    Raises:
        OSError: it does not load; the message names the library that is missing.
    """
    preload()
    folder = Path(library.__file__).parent / "capi"
    name = {CUDA.provider: "cuda", TENSORRT.provider: "tensorrt"}[place.provider]
    start, end = ("", ".dll") if sys.platform == "win32" else ("lib", ".so")
    # The provider refers to symbols of the first.
    ctypes.CDLL(str(folder / f"{start}onnxruntime_providers_shared{end}"), mode=ctypes.RTLD_GLOBAL)
    return ctypes.CDLL(str(folder / f"{start}onnxruntime_providers_{name}{end}"))


def try_memory(library: Any, gpu: int) -> str | None:
    """Send a number to a GPU and back; return why that fails, or None."""
    import numpy as np

    there = np.ones(1, np.float32)
    try:
        back = library.OrtValue.ortvalue_from_numpy(there, "cuda", gpu).numpy()
    except Exception as error:
        return f"the GPU does not answer: {error_text(error)}"
    return None if np.array_equal(there, back) else "the GPU gives back other numbers than it got"


def error_text(error: Exception) -> str:
    """Extract what went wrong, without the machine and source lines of a device's failure."""
    found = _DEVICE_FAILURE.search(str(error))
    return found[0].strip() if found else str(error)


def is_device_error(error: Exception) -> bool:
    """Tell whether a device failed, not the file."""
    return _DEVICE_FAILURE.search(str(error)) is not None


def tensorrt_version(library: Any) -> str:
    """Read the number of ONNX Runtime's TensorRT, as 101601; ``unknown`` if hidden."""
    try:
        # A library answers for those that it needs itself.
        return str(provider_library(TENSORRT, library).getInferLibVersion())
    except (OSError, AttributeError):
        return "unknown"


def _version(package: str) -> str | None:
    from importlib.metadata import PackageNotFoundError, version  # slow, and seldom needed

    try:
        return version(package)
    except PackageNotFoundError:
        return None
