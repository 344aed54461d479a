"""Ask the NVIDIA driver about its GPUs through its own library; nothing to install."""

from __future__ import annotations

import ctypes
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

NO_DRIVER = (
    "there is no NVIDIA driver on this machine (nvidia-smi would show it); in a container, start "
    "it with the GPUs: docker run --gpus all"
)
_MAJOR, _MINOR = 75, 76  # attributes of a device: its compute capability
_NAME_BYTES = 256


@dataclass(frozen=True)
class Gpu:
    """A GPU.

    Attributes:
        index: as CUDA counts them, after CUDA_VISIBLE_DEVICES.
        name: of the product.
        capability: as ``8.6``.
        memory_bytes: all it has, in use or not.
    """

    index: int
    name: str
    capability: str
    memory_bytes: int


@dataclass(frozen=True)
class Driver:
    """What the driver says.

    Attributes:
        cuda: the newest CUDA it serves, as ``13.0``; None without a driver.
        version: its own, as ``580.65.06``; None where the system does not tell.
        gpus: those that can be used.
        problem: why there are none, and what to do; None where there are some.
    """

    cuda: str | None = None
    version: str | None = None
    gpus: tuple[Gpu, ...] = ()
    problem: str | None = None


class _Refusal(Exception):
    """The driver answered with an error."""


def _open() -> Any:
    return ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")


def driver(library: Callable[[], Any] = _open) -> Driver:
    """Ask the driver. It stays loaded in this process.

    Args:
        library: gives the driver's library, or raises OSError where there is none.
    """
    try:
        cuda = library()
    except OSError:
        return Driver(problem=NO_DRIVER)
    number = ctypes.c_int()
    served = None
    try:
        _ask(cuda, "cuDriverGetVersion", ctypes.byref(number))
        served = f"{number.value // 1000}.{number.value % 1000 // 10}"
        _ask(cuda, "cuInit", 0)
        _ask(cuda, "cuDeviceGetCount", ctypes.byref(number))
        gpus = tuple(_gpu(cuda, index) for index in range(number.value))
    except _Refusal as refusal:
        said = f"the NVIDIA driver is here, but {refusal}"
        return Driver(served, _version(), problem=f"{said}; does nvidia-smi list a GPU?")
    problem = None if gpus else "the NVIDIA driver shows no GPU; is CUDA_VISIBLE_DEVICES empty?"
    return Driver(served, _version(), gpus, problem)


def _gpu(cuda: Any, index: int) -> Gpu:
    device, size = ctypes.c_int(), ctypes.c_size_t()
    name = ctypes.create_string_buffer(_NAME_BYTES)
    major, minor = ctypes.c_int(), ctypes.c_int()
    _ask(cuda, "cuDeviceGet", ctypes.byref(device), index)
    _ask(cuda, "cuDeviceGetName", name, _NAME_BYTES, device)
    _ask(cuda, "cuDeviceGetAttribute", ctypes.byref(major), _MAJOR, device)
    _ask(cuda, "cuDeviceGetAttribute", ctypes.byref(minor), _MINOR, device)
    _ask(cuda, "cuDeviceTotalMem_v2", ctypes.byref(size), device)
    capability = f"{major.value}.{minor.value}"
    return Gpu(index, name.value.decode(errors="replace"), capability, size.value)


def _ask(cuda: Any, function: str, *arguments: Any) -> None:
    text = ctypes.c_char_p()
    try:
        status = getattr(cuda, function)(*arguments)
        if status == 0:
            return
        cuda.cuGetErrorString(status, ctypes.byref(text))
    except AttributeError as error:
        raise _Refusal(f"its library is not whole: {error}") from error
    said = (text.value or b"unknown").decode(errors="replace")
    raise _Refusal(f"{function} answers {status} ({said})")


def _version(path: str = "/proc/driver/nvidia/version") -> str | None:
    try:
        text = Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    found = re.search(r"Kernel Module.*?\s(\d+\.[\d.]+)", text)
    return found[1] if found else None
