"""Build a serialised TensorRT plan from an ONNX file: parse, profile, build, check every status."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..runtime.engines.plan import Library, Tensor
from ..runtime.engines.trt_load import Log, import_library, shape_of
from ..runtime.errors import EngineError, ModelFileError, RequestError
from ..runtime.timing import Tick, Total

if TYPE_CHECKING:
    import tensorrt as trt

Shape = tuple[int, ...]
_DTYPES = {"FLOAT": "float32", "INT64": "int64", "UINT8": "uint8"}
_MEGABYTE = 1 << 20
_NOT_TARGETS = ("NONE", "CURRENT")
_LISTED_ERRORS = 5


@dataclass(frozen=True)
class BuildConfig:
    """How to build a plan.

    Attributes:
        library: which library builds it.
        compute: compute capabilities to build for ahead of time; empty for the GPU of this machine.
        shapes: the least, the optimal and the largest shape of each input.
        workspace: scratch memory for kernels, in MB; None for all there is.
        timing_cache: an earlier build's timing cache, or None.
    """

    library: Library
    compute: tuple[str, ...]
    shapes: Mapping[str, tuple[Shape, Shape, Shape]]
    workspace: int | None = None
    timing_cache: bytes | None = None


@dataclass(frozen=True)
class BuiltPlan:
    """A plan in memory.

    Attributes:
        data: the plan.
        inputs, outputs: as read back from the network.
        version: the library's version.
        timing_cache: for the next build, or None.
    """

    data: bytes
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    version: str
    timing_cache: bytes | None


def list_capabilities(library: Any) -> dict[str, Any]:
    """List the compute capabilities, as ``8.6``, that a library builds for ahead of time."""
    members = getattr(getattr(library, "ComputeCapability", None), "__members__", {})
    return {
        f"{name[2:-1]}.{name[-1]}": member
        for name, member in members.items()
        if name not in _NOT_TARGETS
    }


def build_plan(
    graph: Path,
    build: BuildConfig,
    check: Callable[[tuple[Tensor, ...], tuple[Tensor, ...]], None],
    tick: Tick,
    total: Total,
) -> BuiltPlan:
    """Build a plan on a separate thread, so that Ctrl-C ends it at the builder's next step.

    Args:
        graph: the ONNX file.
        build: how to build it.
        check: raises where the network's inputs or outputs are wrong; called before the build,
            which takes long.
        tick: called with the present phase and the number of steps just done.
        total: called with the number of steps to come.

    Raises:
        ModelFileError: the library cannot parse the graph.
        EngineError: the library cannot build it, or is not usable here.
        RequestError: the timing cache is of another TensorRT or GPU.
        MissingExtraError: the library is not installed.
    """
    library = import_library(build.library, "whycam build")
    cancelled = threading.Event()
    results: list[BuiltPlan | BaseException] = []

    def work() -> None:
        try:
            monitor = _monitor(library, cancelled, tick, total)
            results.append(_build(library, graph, build, check, monitor))
        except BaseException as error:
            # Its frames would keep the builder alive, and a library has one logger at a time.
            results.append(error.with_traceback(None))

    worker = threading.Thread(target=work, name="whycam build", daemon=True)
    worker.start()
    try:
        while worker.is_alive():
            worker.join(0.1)
    except (KeyboardInterrupt, SystemExit):  # Ctrl-C, or a signal that ends the command
        cancelled.set()
        worker.join()
        raise
    (result,) = results
    if isinstance(result, BaseException):
        raise result
    return result


def _build(
    library: Any,
    graph: Path,
    build: BuildConfig,
    check: Callable[[tuple[Tensor, ...], tuple[Tensor, ...]], None],
    monitor: Any,
) -> BuiltPlan:
    log = Log(library)
    builder = _builder(library, build, log)
    network = builder.create_network(_flags(library))
    config = builder.create_builder_config()
    profile = builder.create_optimization_profile()
    if network is None or config is None or profile is None:
        raise EngineError(f"{build.library} could not create a network. {log.tail()}")
    parser = library.OnnxParser(network, log.logger)  # owns weights: alive until the plan is built
    if not parser.parse_from_file(str(graph)):
        raise ModelFileError(_parse_errors(parser, build, log))
    inputs = _tensors(network.num_inputs, network.get_input)
    outputs = _tensors(network.num_outputs, network.get_output)
    check(inputs, outputs)
    _set_shapes(profile, inputs, build)
    if config.add_optimization_profile(profile) < 0:
        raise EngineError(
            f"{build.library} refuses the ranges {_ranges_text(build.shapes)}. {log.tail()}"
        )
    _configure(library, config, build, log)
    config.progress_monitor = monitor
    data = builder.build_serialized_network(network, config)
    if data is None:
        raise EngineError(f"{build.library} could not build the plan. {log.tail()}")
    plan = bytes(data)
    if not build.compute:
        _check_loads(library, plan, (*inputs, *outputs), build, log)
    cache = config.get_timing_cache() if build.timing_cache is not None else None
    return BuiltPlan(
        plan,
        inputs,
        outputs,
        str(library.__version__),
        None if cache is None else bytes(cache.serialize()),
    )


def _builder(library: Any, build: BuildConfig, log: Log) -> trt.Builder:
    try:
        builder: trt.Builder | None = library.Builder(log.logger)
    except (RuntimeError, TypeError) as error:  # so the binding reports a missing GPU
        raise EngineError(f"{build.library} has no builder here: {error}. {log.tail()}") from error
    if builder is None:
        raise EngineError(f"{build.library} has no builder here. {log.tail()}")
    return builder


def _flags(library: Any) -> int:
    """Return the flag for a strongly typed network, which later versions always build."""
    flags = getattr(library, "NetworkDefinitionCreationFlag", None)
    flag = getattr(flags, "__members__", {}).get("STRONGLY_TYPED")
    return 0 if flag is None else 1 << int(flag)


def _parse_errors(parser: Any, build: BuildConfig, log: Log) -> str:
    errors = [parser.get_error(index) for index in range(parser.num_errors)]
    messages = [
        f"'{error.node_name()}' ({error.node_operator()}): {' '.join(error.desc().split())}"
        for error in errors[:_LISTED_ERRORS]
    ]
    if len(errors) > _LISTED_ERRORS:
        messages.append(f"and {len(errors) - _LISTED_ERRORS} more")
    return (
        f"{build.library} cannot parse the graph: {'; '.join(messages) or log.tail()}. "
        "Export the model again with this whycam and opset 18; if that does not help, report the "
        "operators named here"
    )


def _tensors(count: int, get: Callable[[int], Any]) -> tuple[Tensor, ...]:
    return tuple(
        Tensor(
            name=tensor.name,
            dtype=_DTYPES.get(tensor.dtype.name, tensor.dtype.name.lower()),
            shape=shape_of(tensor.shape),
        )
        for tensor in map(get, range(count))
    )


def _set_shapes(profile: Any, inputs: tuple[Tensor, ...], build: BuildConfig) -> None:
    for tensor in inputs:
        shapes = build.shapes.get(tensor.name)
        if shapes is None:
            raise ModelFileError(
                f"the graph has an input '{tensor.name}' that whycam does not know"
            )
        try:
            profile.set_shape(tensor.name, *shapes)
        except (RuntimeError, TypeError, ValueError) as error:
            raise EngineError(
                f"{build.library} refuses the range {_ranges_text({tensor.name: shapes})}: {error}"
            ) from error


def _ranges_text(shapes: Mapping[str, tuple[Shape, Shape, Shape]]) -> str:
    return ", ".join(
        f"'{name}' " + " to ".join("x".join(map(str, shape)) for shape in (least, most))
        for name, (least, _, most) in shapes.items()
    )


def _configure(library: Any, config: Any, build: BuildConfig, log: Log) -> None:
    # TF32, on by default, multiplies float32 with 10 bits of mantissa.
    config.clear_flag(library.BuilderFlag.TF32)
    if build.workspace is not None:
        config.set_memory_pool_limit(library.MemoryPoolType.WORKSPACE, build.workspace * _MEGABYTE)
    if build.compute:
        targets = list_capabilities(library)
        config.num_compute_capabilities = len(build.compute)
        for index, capability in enumerate(build.compute):
            if not config.set_compute_capability(targets[capability], index):
                raise EngineError(f"{build.library} refuses {capability}. {log.tail()}")
    if build.timing_cache is not None:
        cache = config.create_timing_cache(build.timing_cache)
        if cache is None or not config.set_timing_cache(cache, ignore_mismatch=False):
            raise RequestError(
                "the timing cache is damaged, or of another TensorRT or GPU: delete it, or name "
                f"another. {log.tail()}"
            )


def _check_loads(
    library: Any, plan: bytes, tensors: tuple[Tensor, ...], build: BuildConfig, log: Log
) -> None:
    """Check, on the GPU, that the plan loads and has the network's inputs and outputs."""
    engine = library.Runtime(log.logger).deserialize_cuda_engine(plan)
    if engine is None:
        raise EngineError(f"{build.library} cannot load the plan that it built. {log.tail()}")
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    actual = {
        name: (
            _DTYPES.get(engine.get_tensor_dtype(name).name, ""),
            shape_of(engine.get_tensor_shape(name)),
        )
        for name in names
    }
    if actual != {tensor.name: (tensor.dtype, tensor.shape) for tensor in tensors}:
        raise EngineError(
            f"the plan that {build.library} built has other inputs or outputs than its network: "
            f"{actual}"
        )


def _monitor(library: Any, cancelled: threading.Event, tick: Tick, total: Total) -> Any:
    """Create a monitor that reports the builder's outermost phase and can cancel the build."""

    class Monitor(library.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            library.IProgressMonitor.__init__(self)
            self._outermost: str | None = None
            self._left = 0

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            if parent_phase is None:
                self._outermost, self._left = phase_name, num_steps
                total(num_steps)
            else:
                tick(phase_name.lower(), 0)

        def step_complete(self, phase_name: str, step: int) -> bool:
            del step
            if phase_name == self._outermost and self._left > 0:
                self._left -= 1
                tick(phase_name.lower(), 1)
            return not cancelled.is_set()

        def phase_finish(self, phase_name: str) -> None:
            # A phase may end without having reported its last steps.
            if phase_name == self._outermost:
                tick(phase_name.lower(), self._left)
                self._left = 0

    return Monitor()
