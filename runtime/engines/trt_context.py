"""Run a plan in an execution context: a stream, its buffers, and what is prepared per shape."""

from __future__ import annotations

import math
import warnings
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import EngineError
from ..place_weights import REGION
from .cuda import DeviceBuffer, Graph, HostBuffer, Stream
from .interface import graph_name
from .trt_load import LoadedPlan, shape_of

if TYPE_CHECKING:
    import tensorrt as trt

# Shapes kept prepared. Each has an execution context of its own, as a recorded graph is only good
# for as long as nobody touches the context that it was recorded from.
_SHAPES = 8
# Graphs kept of each shape: one for every set of outputs that was asked for.
_GRAPHS = 4

_Shape = tuple[int, ...]


class Recording:
    """Whether runs are recorded as CUDA graphs.

    TensorRT-RTX is told to do that itself: it knows when it has compiled better kernels, and a
    graph recorded from outside would go on using the first ones.

    Attributes:
        allowed: until it is refused once.
    """

    def __init__(self, allowed: bool, refused: Callable[[str], None]) -> None:
        self.allowed = allowed
        self._refused = refused

    def refuse(self, reason: str) -> None:
        """Stop recording, and warn once."""
        if not self.allowed:
            return
        self.allowed = False
        self._refused(reason)
        warnings.warn(
            f"CUDA graphs are off: this plan's work cannot be recorded ({reason}). Answers are the "
            "same, each run costs some more time to start",
            stacklevel=2,
        )


@dataclass
class _ShapeContext:
    """An execution context set to one shape, and the graphs recorded from it.

    Attributes:
        shapes: of all inputs and outputs.
        bound: whether it knows where these lie.
        warm: whether it ran since: the first run of a shape initialises, which cannot be recorded.
        graphs: by the outputs that they copy to the host, the latest used last.
    """

    context: trt.IExecutionContext
    shapes: Mapping[str, _Shape]
    bound: bool = False
    warm: bool = False
    graphs: OrderedDict[frozenset[str], Graph] = field(default_factory=OrderedDict)

    def forget(self) -> None:
        """Release the graphs, which hold addresses."""
        self.bound = self.warm = False
        while self.graphs:
            self.graphs.popitem()[1].close()


class ExecutionContext:
    """Runs a plan for one thread at a time, on the GPU that is current when it is made and used.

    Memory grows to the largest run and stays, so addresses stay, and with them recorded graphs.
    """

    def __init__(
        self,
        opened: LoadedPlan,
        recording: Recording,
        context: Callable[[], trt.IExecutionContext | None],
        shared_scratch: bool,
    ) -> None:
        """Create a stream and the memory that contexts share.

        Args:
            opened: the plan.
            recording: of graphs.
            context: makes an execution context.
            shared_scratch: whether its contexts bring no memory for what lies between inputs and
                outputs: they run one after the other here, and are given the same. Without it
                there is one context for all shapes.
        """
        self._opened = opened
        self._recording = recording
        self._new_context = context
        self._limit = _SHAPES if shared_scratch else 1
        self._scratch: DeviceBuffer | None = None
        self._device: dict[str, DeviceBuffer] = {}
        self._host: dict[str, HostBuffer] = {}
        self._programs: OrderedDict[tuple[_Shape, ...], _ShapeContext] = OrderedDict()
        self._stream = Stream()
        size = opened.engine.device_memory_size_v2 if shared_scratch else 0
        if size > 0:
            self._scratch = DeviceBuffer(size)

    def close(self) -> None:
        """Release everything.

        Raises:
            CudaError: the driver reports an error of earlier work; the rest is given back.
        """
        with ExitStack() as stack:
            # In reverse: the stream first, for one that still records would refuse the others.
            for buffer in (*self._device.values(), *self._host.values(), self._scratch):
                if buffer is not None:
                    stack.callback(buffer.close)
            for program in self._programs.values():
                stack.callback(program.forget)
            stack.callback(self._stream.close)
        self._programs.clear()

    def wait(self) -> None:
        """Wait until all work under way is done.

        Raises:
            CudaError: some of it failed.
        """
        self._stream.synchronise()

    def run(
        self,
        image: NDArray[Any],
        target: NDArray[np.int64] | None,
        count: int,
        classes: int,
        outputs: Sequence[str],
        class_embeddings: NDArray[np.float32] | None = None,
        region: NDArray[np.float32] | None = None,
    ) -> dict[str, NDArray[Any]]:
        """Run the network once.

        Args:
            image, target: [n, ...] and [n, k], of a detector [n, k, 2]; no target where the network
                has no such input.
            count, classes: what the network is run for, at least n and k: the last row and column
                are repeated, and nothing of them comes back.
            outputs: those wanted; no others leave the GPU.
            class_embeddings: [C, D], where the network has such an input.
            region: [n, h, w], where it has such an input.

        Returns:
            The outputs, arrays of the caller's own.

        Raises:
            EngineError: TensorRT or the driver refused. The context is of no use then.
        """
        shapes = {"image": (count, *image.shape[1:])}
        if target is not None:
            shapes["target"] = (count, classes, *target.shape[2:])
        if class_embeddings is not None:
            shapes["class_embeddings"] = class_embeddings.shape
        if region is not None:
            shapes[REGION] = (count, *region.shape[1:])
        program = self._program(shapes)
        self._make_room(program, outputs)
        if not program.bound:
            self._bind(program)
        rows = len(image)
        columns = classes if target is None else target.shape[1]
        fed = self._array(program, "image")
        fed[:rows], fed[rows:] = image, image[-1]
        if target is not None:
            fed = self._array(program, "target")
            fed[:rows, :columns], fed[:rows, columns:] = target, target[:, -1:]
            fed[rows:] = fed[rows - 1]
        if class_embeddings is not None:
            self._array(program, "class_embeddings")[:] = class_embeddings
        if region is not None:
            fed = self._array(program, REGION)
            fed[:rows], fed[rows:] = region, region[-1]
        self._start(program, outputs)
        self._stream.synchronise()
        program.warm = True
        found = {}
        for name in outputs:
            values = self._array(program, name)[:rows]
            per_class = self._opened.plan.manifest.output_shapes[name][0] is None
            # A copy: the next run writes to the same memory.
            found[name] = np.array(values[:, :columns] if per_class else values)
        return found

    def _array(self, program: _ShapeContext, name: str) -> NDArray[Any]:
        return self._host[name].array(program.shapes[name], self._opened.dtypes[name])

    def _start(self, program: _ShapeContext, outputs: Sequence[str]) -> None:
        key = frozenset(outputs)
        if key not in program.graphs and program.warm and self._recording.allowed:
            self._record(program, key)
        if key in program.graphs:
            program.graphs.move_to_end(key)
            program.graphs[key].launch(self._stream)
        else:
            self._enqueue(program, key)

    def _record(self, program: _ShapeContext, outputs: frozenset[str]) -> None:
        while len(program.graphs) >= _GRAPHS:
            program.graphs.popitem(last=False)[1].close()
        try:
            program.graphs[outputs] = self._stream.record(lambda: self._enqueue(program, outputs))
        except EngineError as error:
            self._recording.refuse(str(error))

    def _enqueue(self, program: _ShapeContext, outputs: frozenset[str]) -> None:
        for name in self._opened.inputs:
            self._stream.upload(self._host[name], self._device[name], self._size(program, name))
        if not program.context.execute_async_v3(int(self._stream.handle)):
            raise self._refused("did not run the plan")
        for name in sorted(outputs):
            self._stream.download(self._device[name], self._host[name], self._size(program, name))

    def _size(self, program: _ShapeContext, name: str) -> int:
        return math.prod(program.shapes[name]) * np.dtype(self._opened.dtypes[name]).itemsize

    def _program(self, inputs: Mapping[str, _Shape]) -> _ShapeContext:
        """Prepare a context for the inputs' shapes, or return the one prepared before."""
        key = tuple(inputs.values())
        if key not in self._programs:
            if len(self._programs) >= self._limit:
                _, oldest = self._programs.popitem(last=False)
                oldest.forget()
                context: trt.IExecutionContext | None = oldest.context
            else:
                context = self._new_context()
            if context is None:
                raise self._refused("made no execution context, most often for want of GPU memory")
            self._programs[key] = _ShapeContext(context, self._shapes(context, inputs))
        self._programs.move_to_end(key)
        return self._programs[key]

    def _shapes(
        self, context: trt.IExecutionContext, inputs: Mapping[str, _Shape]
    ) -> dict[str, _Shape]:
        """Set a context to a shape; returns those of all inputs and outputs."""
        shapes = dict(inputs)
        for name, shape in inputs.items():
            if not context.set_input_shape(self._name(name), shape):
                raise self._refused(f"does not take '{name}' {list(shape)}")
        try:
            missing = context.infer_shapes()
        except RuntimeError as error:
            raise self._refused(f"cannot tell the outputs' shapes ({error})") from error
        for name in self._opened.outputs:
            shapes[name] = shape_of(context.get_tensor_shape(self._name(name)))
        if missing or any(side < 0 for shape in shapes.values() for side in shape):
            raise self._refused(f"cannot tell the outputs' shapes: {shapes}")
        return shapes

    def _make_room(self, program: _ShapeContext, outputs: Sequence[str]) -> None:
        """Allocate memory for inputs and outputs; on the host only for outputs asked for."""
        for name in program.shapes:
            size = self._size(program, name)
            if name not in self._device or self._device[name].nbytes < size:
                self._replace(self._device, name, DeviceBuffer, size)
            # An output of its own each, wanted or not: TensorRT may read them again itself.
            host = name in self._opened.inputs or name in outputs
            if host and (name not in self._host or self._host[name].nbytes < size):
                self._replace(self._host, name, HostBuffer, size)

    def _replace(self, buffers: dict[str, Any], name: str, kind: Any, size: int) -> None:
        if name in buffers:
            for program in self._programs.values():
                program.forget()
            buffers.pop(name).close()
        # Powers of two: batches that grow by one do not each take memory anew.
        buffers[name] = kind(1 << (size - 1).bit_length())

    def _bind(self, program: _ShapeContext) -> None:
        if self._scratch is not None:
            program.context.set_device_memory(self._scratch.address, self._scratch.nbytes)
        for name in program.shapes:
            address = self._device[name].address
            if not program.context.set_tensor_address(self._name(name), address):
                raise self._refused(f"does not take memory for '{name}'")
        program.bound = True

    def _name(self, name: str) -> str:
        """Translate a contract name to the network's own name."""
        return graph_name(name, self._opened.plan.manifest)

    def _refused(self, what: str) -> EngineError:
        return EngineError(f"{self._opened.plan.library} {what}. {self._opened.log.tail()}")
