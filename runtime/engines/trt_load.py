"""Load a TensorRT plan after checking it against its sidecar and this machine."""

from __future__ import annotations

import hashlib
import importlib
import warnings
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import EngineError, MissingExtraError, ModelFileError
from ..manifest import INPUTS
from . import cuda
from .cuda import Device
from .interface import check_interface, graph_name, parts_needed
from .plan import Library, Plan, Range, read_plan

if TYPE_CHECKING:
    import tensorrt as trt

# A plan's library: its Python module, and the extra of whycam that installs it.
_LIBRARIES: Mapping[Library, tuple[str, str]] = {
    "tensorrt": ("tensorrt", "tensorrt"),
    "tensorrt-rtx": ("tensorrt_rtx", "tensorrt-rtx"),
}
# TensorRT's names of what inputs and outputs of an explaining graph are made of.
_DTYPES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "INT64": "int64",
    "INT32": "int32",
    "UINT8": "uint8",
    "BOOL": "bool",
}
_LINES = 3


@dataclass(frozen=True)
class LoadedPlan:
    """A plan that this machine can run.

    Attributes:
        plan: its sidecar.
        device: the GPU it is on.
        library: the module ``tensorrt`` or ``tensorrt_rtx``.
        engine: deserialised.
        dtypes: of inputs and outputs, by their contract names; those of outputs that the file had
            before by their own.
        inputs, outputs: their names.
        log: what the library said.
    """

    plan: Plan
    device: Device
    library: Any
    engine: trt.ICudaEngine
    dtypes: Mapping[str, str]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    log: Log


class Log:
    """Keeps the last warnings and errors of a library; ``logger`` is what it is given."""

    def __init__(self, library: Any) -> None:
        self._lines: deque[str] = deque(maxlen=_LINES)
        lines = self._lines
        kept = (
            library.ILogger.INTERNAL_ERROR,
            library.ILogger.ERROR,
            library.ILogger.WARNING,
        )

        class Logger(library.ILogger):  # type: ignore[misc]
            def __init__(self) -> None:
                library.ILogger.__init__(self)

            # Called from whichever thread the library works in; a deque needs no lock.
            def log(self, severity: Any, msg: str) -> None:
                if severity in kept:
                    lines.append(" ".join(msg.split()))

        self.logger: trt.ILogger = Logger()

    def tail(self) -> str:
        """Quote the last lines, for an error message."""
        lines = list(self._lines)
        return f"It says: {' | '.join(lines)}" if lines else "It gives no reason"


def is_installed(library: Library) -> bool:
    """Tell whether a plan's library can be imported, without importing it.

    Type stubs alone make a folder of the library's name without any code in it.
    """
    spec = find_spec(_LIBRARIES[library][0])
    return spec is not None and spec.origin is not None


def extra_of(library: Library) -> str:
    """Name the extra of whycam that installs a plan's library."""
    return _LIBRARIES[library][1]


def open_plan(path: str, gpu: int) -> LoadedPlan:
    """Check a plan and load it onto a GPU.

    What can be known without a GPU is checked first.

    Args:
        path: of the plan; its sidecar lies beside it.
        gpu: index of the GPU.

    Raises:
        ModelFileError: plan or sidecar are missing, damaged, or do not belong together.
        MissingExtraError: the library, or ``cuda-bindings``, is not installed.
        EngineError: another version or GPU than the plan was built for, no GPU, or the library
            refuses the plan.
    """
    plan = read_plan(path)
    data = _read(path, plan)
    library = import_library(plan.library, f"a plan of {plan.library}")
    if library.__version__ != plan.library_version:
        raise EngineError(
            f"{path} was built with {plan.library} {plan.library_version}, and "
            f"{library.__version__} is installed: plans run in the version that built them. Build "
            f"it again: {rebuild_command(plan, path)}"
        )
    device = cuda.find_device(gpu)
    _check_gpu(path, plan, device, library)
    log = Log(library)
    with cuda.use_device(gpu):
        engine = _deserialise(path, plan, data, library, log)
    dtypes, inputs, outputs = _check_network(path, plan, engine, library)
    return LoadedPlan(plan, device, library, engine, dtypes, inputs, outputs, log)


def _read(path: str, plan: Plan) -> bytes:
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise ModelFileError(f"cannot read {path}: {error.strerror}") from error
    found = f"sha256:{hashlib.sha256(data).hexdigest()}"
    if found != plan.digest:
        raise ModelFileError(
            f"{path} is not the plan that its sidecar describes: it is damaged, or one of the two "
            f"was replaced ({found[:19]}... is not {plan.digest[:19]}...). Copy both again, or "
            f"build it again: {rebuild_command(plan, path)}"
        )
    return data


def import_library(name: Library, purpose: str) -> Any:
    """Import ``tensorrt`` or ``tensorrt_rtx``.

    Raises:
        MissingExtraError: it is not installed; names ``purpose``.
        EngineError: it is, but cannot be loaded.
    """
    module, extra = _LIBRARIES[name]
    try:
        library = importlib.import_module(module)
    except ImportError as error:
        raise MissingExtraError(module, extra, purpose) from error
    except (OSError, RuntimeError) as error:  # a shared library that it needs
        raise EngineError(f"{name} is installed but cannot be loaded: {error}") from error
    if not hasattr(library, "Runtime"):
        raise MissingExtraError(module, extra, purpose)
    return library


def _check_gpu(path: str, plan: Plan, device: Device, library: Any) -> None:
    here = f"GPU {device.index} here, {device.name}, has {device.compute}"
    if device.compute not in plan.compute:
        raise EngineError(
            f"{path} was built for compute capability {' and '.join(plan.compute)}; {here}. "
            f"{_instead(path, plan, device, library)}"
        )
    if plan.gpu is not None and plan.gpu != device.name:
        warnings.warn(
            f"{path} was built on {plan.gpu}; {here} too, so it runs, but its kernels were chosen "
            "by their times on the other",
            stacklevel=2,
        )


def _instead(path: str, plan: Plan, device: Device, library: Any) -> str:
    target = "SM" + device.compute.replace(".", "")
    if plan.library == "tensorrt" or hasattr(library.ComputeCapability, target):
        return f"Build it again: {rebuild_command(plan, path, device)}"
    return (
        f"TensorRT-RTX has no target for {device.compute}. Build it with plain TensorRT, on this "
        f"machine: {rebuild_command(plan, path, device, 'tensorrt')}"
    )


def rebuild_command(
    plan: Plan, path: str, device: Device | None = None, library: Library | None = None
) -> str:
    """Write the command that builds a plan again, or for another GPU or library."""
    library = library or plan.library

    def range_text(*sides: Range) -> str:
        """Format least:best:most, each HxW or one number."""
        names = ("least", "best", "most")
        return ":".join("x".join(str(getattr(each, name)) for each in sides) for name in names)

    command = (
        f"whycam build MODEL.onnx -o {path} --engine {library} --precision "
        f"{plan.manifest.precision} --batch {range_text(plan.batch)} "
        f"--classes-per-image {range_text(plan.classes)}"
    )
    if plan.height is not None and plan.width is not None:
        command += f" --source-size {range_text(plan.height, plan.width)}"
    if plan.prompts is not None:
        command += f" --prompts {range_text(plan.prompts)}"
    if library == "tensorrt":
        return command  # is built on the GPU that it will run on
    targets = (device.compute,) if device is not None else plan.compute
    return f"{command} --compute {','.join(each.replace('.', '') for each in targets)}"


def _deserialise(path: str, plan: Plan, data: bytes, library: Any, log: Log) -> trt.ICudaEngine:
    # The runtime's default stays: it runs no host code that a plan may carry.
    try:
        runtime = library.Runtime(log.logger)
        if plan.library == "tensorrt-rtx":
            _check_validity(path, plan, runtime.get_engine_validity(data), library, log)
        engine: trt.ICudaEngine | None = runtime.deserialize_cuda_engine(data)
    except (RuntimeError, TypeError) as error:
        raise EngineError(f"{plan.library} cannot load {path}: {error}. {log.tail()}") from error
    if engine is None:
        raise EngineError(f"{plan.library} cannot load {path}. {log.tail()}")
    return engine


def _check_validity(path: str, plan: Plan, found: tuple[Any, int], library: Any, log: Log) -> None:
    validity, diagnostics = found
    if validity != library.EngineValidity.INVALID:
        return
    members = library.EngineInvalidityDiagnostics.__members__.items()
    reasons = [name for name, member in members if int(member.value) & int(diagnostics)]
    raise EngineError(
        f"{plan.library} says that {path} cannot run here: {', '.join(reasons) or 'INVALID'}. "
        f"{log.tail()}"
    )


def _check_network(
    path: str, plan: Plan, engine: trt.ICudaEngine, library: Any
) -> tuple[dict[str, str], tuple[str, ...], tuple[str, ...]]:
    """Read element types, inputs and outputs, and check them against the manifest."""
    manifest = plan.manifest
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    dtypes = {name: _dtype(path, name, engine) for name in names}
    inputs = [n for n in names if engine.get_tensor_mode(n) == library.TensorIOMode.INPUT]
    outputs = tuple(name for name in names if name not in inputs)
    sides = {
        name: [None if side < 0 else side for side in shape_of(engine.get_tensor_shape(name))]
        for name in inputs
    }
    check_interface(
        path,
        manifest,
        {name: (dtypes[name], sides[name]) for name in inputs},
        outputs,
        parts_needed(manifest.output_shapes, manifest),
    )
    contract = {graph_name(name, manifest): name for name in (*INPUTS, *manifest.output_shapes)}
    strange = [
        name
        for name in names
        if engine.get_tensor_location(name) != library.TensorLocation.DEVICE
        or not (name in contract or name in manifest.own_outputs)
    ]
    if strange:
        raise ModelFileError(f"{path} does not match its manifest: it also has {strange}")
    known = {name: contract.get(name, name) for name in names}
    return (
        {known[name]: dtype for name, dtype in dtypes.items()},
        tuple(known[name] for name in inputs),
        tuple(known[name] for name in outputs),
    )


def _dtype(path: str, name: str, engine: trt.ICudaEngine) -> str:
    found = engine.get_tensor_dtype(name).name
    if found not in _DTYPES:
        raise ModelFileError(f"{path} does not match its manifest: '{name}' holds {found}")
    return _DTYPES[found]


def shape_of(dims: trt.Dims) -> tuple[int, ...]:
    """Convert a shape to a tuple; -1 where a side is free."""
    return tuple(int(dims[index]) for index in range(len(dims)))
