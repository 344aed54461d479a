"""Call the CUDA runtime: the few functions an engine needs, with every status checked.

NVIDIA's bindings (``cuda-bindings``, which ``cuda-python`` installs) return a status beside each
value. Here a status that is not success is a ``CudaError``. What is taken from the driver is given
back by ``close``, and at the latest when its owner is collected.
"""

from __future__ import annotations

import ctypes
import importlib
import math
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from ..errors import EngineError, MissingExtraError

_BINDINGS = "cuda.bindings.runtime"
# Status codes of cudaError_t.
_OUT_OF_MEMORY = 2
_INSUFFICIENT_DRIVER = 35
_NO_DEVICE = 100
# After these every further call of the process fails: illegal address, launch timeout, assertion,
# hardware stack, illegal instruction, misaligned address, address space, program counter, launch.
_LOST = frozenset({700, 702, 710, *range(714, 720)})


class CudaError(EngineError):
    """A call of the CUDA runtime returned a status other than success.

    Attributes:
        status: of cudaError_t.
    """

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Device:
    """A GPU.

    Attributes:
        index: among those that this process sees.
        name: as the driver says it.
        compute: its compute capability, as ``8.6``.
        memory: in bytes.
        driver: the CUDA version that the driver supports, as ``13.0``.
    """

    index: int
    name: str
    compute: str
    memory: int
    driver: str


def _bindings() -> Any:
    try:
        return importlib.import_module(_BINDINGS)
    except ImportError as error:
        raise MissingExtraError("cuda-bindings", "tensorrt", "running a TensorRT plan") from error


def _call(function: str, *arguments: Any) -> Any:
    """Call the runtime; returns what it gives beside its status: nothing, one value, or a tuple."""
    runtime = _bindings()
    try:
        status, *values = getattr(runtime, function)(*arguments)
    except RuntimeError as error:  # bindings that look for the driver's library themselves
        raise CudaError(
            f"{function} failed: {error}. {_NO_DRIVER}", _INSUFFICIENT_DRIVER
        ) from error
    if int(status) != 0:
        raise _error(runtime, function, status)
    return values[0] if len(values) == 1 else tuple(values) or None


_NO_DRIVER = (
    "No NVIDIA driver is running on this machine, and TensorRT computes on NVIDIA GPUs alone. "
    "The ONNX file that the plan was built from runs on the CPU"
)


def _error(runtime: Any, function: str, status: Any) -> CudaError:
    code = int(status)
    if code == _INSUFFICIENT_DRIVER and _driver(runtime) == 0:
        return CudaError(_NO_DRIVER, code)
    meaning = runtime.cudaGetErrorString(status)[1].decode()
    said = f"{function} failed: {status.name} ({code}), {meaning}"
    if code == _INSUFFICIENT_DRIVER:
        has, wants = _version(_driver(runtime)), _version(int(runtime.cudaRuntimeGetVersion()[1]))
        said += f": the driver supports CUDA {has}, cuda-bindings {wants}. Update the driver, or "
        said += f'install bindings for it: pip install "cuda-bindings=={has}.*"'
    elif code == _NO_DEVICE:
        said += ". There is a driver, but this process sees no GPU: look at CUDA_VISIBLE_DEVICES"
    elif code == _OUT_OF_MEMORY:
        said += ". Free memory on the GPU, or let less go through at once: load(memory_mb=...)"
    elif code in _LOST:
        said += ". This process can no longer use the GPU: start it again"
    return CudaError(said, code)


def _driver(runtime: Any) -> int:
    status, version = runtime.cudaDriverGetVersion()
    return int(version) if int(status) == 0 else 0


def _version(number: int) -> str:
    """Format a CUDA version: 13000 is 13.0."""
    return f"{number // 1000}.{number % 1000 // 10}"


def find_device(index: int) -> Device:
    """Describe one GPU.

    Raises:
        EngineError: there is none with this index.
        CudaError: there is no driver, or it is too old.
        MissingExtraError: ``cuda-bindings`` is not installed.
    """
    count = int(_call("cudaGetDeviceCount"))
    if not 0 <= index < count:
        raise EngineError(f"there is no GPU {index}: this process sees {count}, counted from 0")
    about = _call("cudaGetDeviceProperties", index)
    name = about.name.decode() if isinstance(about.name, bytes) else str(about.name)
    return Device(
        index=index,
        name=name.rstrip("\0"),
        compute=f"{about.major}.{about.minor}",
        memory=int(about.totalGlobalMem),
        driver=_version(_driver(_bindings())),
    )


@contextmanager
def use_device(index: int) -> Iterator[None]:
    """Make a GPU this thread's current one while the block runs."""
    before = int(_call("cudaGetDevice"))
    # Set even where it is the current one: that is what initialises it for a thread.
    _call("cudaSetDevice", index)
    try:
        yield
    finally:
        if before != index:
            _call("cudaSetDevice", before)


class _Resource:
    """A resource of the driver, released once."""

    def __init__(self, release: str, handle: Any) -> None:
        self._release = release
        self._handle = handle
        # Nobody could catch an error of the collector's, nor do anything about it.
        self._finalizer = weakref.finalize(self, _release_quietly, release, handle)

    def close(self) -> None:
        """Release it; a second call does nothing.

        Raises:
            CudaError: the driver refuses, or reports an error of earlier work.
        """
        if self._finalizer.alive:
            _call(self._release, self._handle)
            self._finalizer.detach()


def _release_quietly(release: str, handle: Any) -> None:
    with suppress(Exception):
        _call(release, handle)


class DeviceBuffer(_Resource):
    """Memory on the current GPU.

    Attributes:
        address: for the GPU.
        nbytes: its size.
    """

    def __init__(self, nbytes: int) -> None:
        self.nbytes = nbytes
        self.address = int(_call("cudaMalloc", nbytes))
        super().__init__("cudaFree", self.address)


class HostBuffer(_Resource):
    """Page-locked memory of the host: the only kind that copies read and write asynchronously.

    Attributes:
        address: for the host.
        nbytes: its size.
    """

    def __init__(self, nbytes: int) -> None:
        self.nbytes = nbytes
        self.address = int(_call("cudaHostAlloc", nbytes, 0))
        super().__init__("cudaFreeHost", self.address)

    def array(self, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        """View its first bytes as an array, without a copy. Not to be used after ``close``."""
        count = math.prod(shape)
        size = count * np.dtype(dtype).itemsize
        if size > self.nbytes:
            raise ValueError(f"{size} bytes of {self.nbytes}")
        memory = (ctypes.c_ubyte * size).from_address(self.address)
        found: NDArray[Any] = np.frombuffer(memoryview(memory), dtype, count)
        return found.reshape(shape)


class Graph(_Resource):
    """Recorded work, to be launched as one."""

    def launch(self, stream: Stream) -> None:
        """Enqueue all of it.

        Raises:
            CudaError: the driver refuses.
        """
        _call("cudaGraphLaunch", self._handle, stream.handle)


class Stream(_Resource):
    """A queue of work on the current GPU; its own, not ordered with the default stream's.

    So another thread's use of that stream can neither delay nor spoil what is recorded here.

    Attributes:
        handle: of the bindings; ``int`` makes the number that TensorRT wants.
    """

    def __init__(self) -> None:
        self.handle = _call("cudaStreamCreateWithFlags", _bindings().cudaStreamNonBlocking)
        super().__init__("cudaStreamDestroy", self.handle)

    def upload(self, source: HostBuffer, target: DeviceBuffer, nbytes: int) -> None:
        """Enqueue a copy to the GPU. The host's bytes are read when it runs, not now."""
        kind = _bindings().cudaMemcpyKind.cudaMemcpyHostToDevice
        _call("cudaMemcpyAsync", target.address, source.address, nbytes, kind, self.handle)

    def download(self, source: DeviceBuffer, target: HostBuffer, nbytes: int) -> None:
        """Enqueue a copy from the GPU. The host's bytes are there after ``synchronise``."""
        kind = _bindings().cudaMemcpyKind.cudaMemcpyDeviceToHost
        _call("cudaMemcpyAsync", target.address, source.address, nbytes, kind, self.handle)

    def synchronise(self) -> None:
        """Wait until everything enqueued is done.

        Raises:
            CudaError: some of it failed.
        """
        _call("cudaStreamSynchronize", self.handle)

    def record(self, work: Callable[[], None]) -> Graph:
        """Record what ``work`` enqueues here, as one graph; none of it runs.

        Only calls of this thread can spoil the recording, other threads may do as they like.

        Raises:
            CudaError: ``work`` does what cannot be recorded, as waiting or taking memory. The
                stream is as it was before.
        """
        modes = _bindings().cudaStreamCaptureMode
        _call("cudaStreamBeginCapture", self.handle, modes.cudaStreamCaptureModeThreadLocal)
        try:
            work()
        except BaseException:
            self._abandon()
            raise
        try:
            recorded = _call("cudaStreamEndCapture", self.handle)
        except CudaError:
            _bindings().cudaGetLastError()  # or the next call to ask would be told of it
            raise
        try:
            return Graph("cudaGraphExecDestroy", _call("cudaGraphInstantiate", recorded, 0))
        finally:
            _call("cudaGraphDestroy", recorded)

    def _abandon(self) -> None:
        """End a recording whose work failed: it gives a graph of no use, or a known error."""
        with suppress(CudaError):
            _call("cudaGraphDestroy", _call("cudaStreamEndCapture", self.handle))
        _bindings().cudaGetLastError()
