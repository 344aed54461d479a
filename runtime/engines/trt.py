"""Run plans of ``whycam build`` in TensorRT, on NVIDIA GPUs."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from ..errors import EngineError
from ..manifest import Manifest
from ..place_weights import REGION
from . import cuda
from .base import EngineSettings
from .chunks import Arrays, Outputs, run_in_chunks
from .interface import run_graph
from .plan import Range
from .trt_context import ExecutionContext, Recording
from .trt_load import open_plan, rebuild_command
from .trt_rtx import JustInTime

if TYPE_CHECKING:
    import tensorrt as trt

# Runs at once. A GPU computes one thing at a time; a second context lets one run's copies go on
# while another computes, a third keeps the GPU busy while Python is between the two.
_CONTEXTS = {"latency": 1, "throughput": 3}


class TensorRtEngine:
    """See ``engine.Engine``.

    A plan computes everything that its network declares; only the outputs that are asked for are
    copied from the GPU. Further callers than there are contexts wait for their turn.
    """

    name = "tensorrt"

    def __init__(self, path: str, manifest: Manifest, settings: EngineSettings) -> None:
        self._path = path
        self._manifest = manifest
        self._gpu = settings.gpu
        self._opened = open_plan(path, settings.gpu)
        plan, device = self._opened.plan, self._opened.device
        self.description = (
            f"{_TITLES[plan.library]} {plan.library_version} on {device.name} (compute "
            f"capability {device.compute}), {manifest.precision}"
        )
        self.reason = "asked for"
        self._just_in_time: JustInTime | None = None
        if plan.library == "tensorrt-rtx":
            with cuda.use_device(self._gpu):
                self._just_in_time = JustInTime(self._opened, settings.cache)
        self._recording = Recording(self._just_in_time is None, self._say_refused)
        self._free = threading.Condition()
        self._idle: list[ExecutionContext] = []
        self._made = 0
        self._most = _CONTEXTS[settings.hint]
        self._closed = False
        # Made now: too little memory should be known at once.
        with self._idle_context():
            pass

    def _say_refused(self, reason: str) -> None:
        self.description += f", without CUDA graphs ({reason})"

    def close(self) -> None:
        """Release the GPU's memory after the runs under way; later runs are refused."""
        with self._free:
            self._closed = True
            idle, self._idle = self._idle, []
            self._made -= len(idle)
            self._free.notify_all()
        with ExitStack() as stack:
            if idle:
                stack.enter_context(cuda.use_device(self._gpu))
            for context in idle:
                stack.callback(context.close)
        if self._just_in_time is not None:
            self._just_in_time.save()

    def __enter__(self) -> TensorRtEngine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def run(self, feeds: Arrays, outputs: Sequence[str]) -> dict[str, NDArray[Any]]:
        """See ``engine.Engine.run``.

        More images or classes than the plan was built for go through in parts, fewer are filled
        up; the answers are the same.
        """
        return run_graph(self._run, feeds, outputs, self._manifest)

    def _run(self, feeds: Arrays, outputs: Sequence[str]) -> Outputs:
        unknown = [name for name in outputs if name not in self._opened.outputs]
        if unknown:
            raise EngineError(f"{self._path} has no output {unknown}")
        self._check_size(feeds["image"].shape)
        self._check_prompts(feeds)
        plan = self._opened.plan
        with self._idle_context() as context:

            def run(part: Arrays) -> Outputs:
                image, target = part["image"], part.get("target")
                # A plan explains its own classes where it takes none.
                classes = self._manifest.top if target is None else target.shape[1]
                return context.run(
                    image,
                    target,
                    _size_for(len(image), plan.batch),
                    max(classes or 1, plan.classes.least),
                    outputs,
                    part.get("class_embeddings"),
                    part.get(REGION),
                )

            return run_in_chunks(run, feeds, self._manifest, plan.batch.most, plan.classes.most)

    def _check_size(self, shape: tuple[int, ...]) -> None:
        """Refuse an image of a size that the plan was not built for."""
        plan = self._opened.plan
        first = 2 if self._manifest.image_shape[0] is not None else 1
        for what, side, sides in zip(
            ("high", "wide"), shape[first : first + 2], (plan.height, plan.width), strict=True
        ):
            if sides is not None and not sides.least <= side <= sides.most:
                raise EngineError(
                    f"{self._path} was built for images {sides.least} to {sides.most} pixels "
                    f"{what}, not {side}. Resize the image, or build for its size: "
                    f"{rebuild_command(plan, self._path)}, with a wider range"
                )

    def _check_prompts(self, feeds: Arrays) -> None:
        """Refuse more or fewer prompts than the plan was built for."""
        allowed = self._opened.plan.prompts
        if allowed is None:
            return
        count = len(feeds["class_embeddings"])
        if not allowed.least <= count <= allowed.most:
            raise EngineError(
                f"{self._path} was built for {allowed.least} to {allowed.most} prompts, not "
                f"{count}. Build it for as many: {rebuild_command(self._opened.plan, self._path)}, "
                "with a wider range"
            )

    @contextmanager
    def _idle_context(self) -> Iterator[ExecutionContext]:
        """Lend this thread an execution context, with its GPU current. A failed one is closed."""
        context = self._take()
        try:
            with cuda.use_device(self._gpu):
                context = context or self._new_context()
                try:
                    yield context
                except BaseException:
                    # Copies may still be under way into memory that is about to be given back.
                    with suppress(EngineError):
                        context.wait()
                    with suppress(EngineError):
                        context.close()
                    raise
        except BaseException:
            with self._free:
                self._made -= 1
                self._free.notify()
            raise
        self._put_back(context)

    def _take(self) -> ExecutionContext | None:
        """Take an idle context; None if a new one may be made."""
        with self._free:
            while not self._idle and self._made >= self._most and not self._closed:
                self._free.wait()
            if self._closed:
                raise EngineError(f"{self._path}: this engine was closed; load the plan again")
            if self._idle:
                return self._idle.pop()
            self._made += 1
            return None

    def _put_back(self, context: ExecutionContext) -> None:
        with self._free:
            if not self._closed:
                self._idle.append(context)
                self._free.notify()
                return
            self._made -= 1
        with cuda.use_device(self._gpu):
            context.close()

    def _new_context(self) -> ExecutionContext:
        just_in_time = self._just_in_time
        if just_in_time is not None:
            return ExecutionContext(
                self._opened, self._recording, just_in_time.context, shared_scratch=False
            )
        return ExecutionContext(self._opened, self._recording, self._context, shared_scratch=True)

    def _context(self) -> trt.IExecutionContext | None:
        strategy = self._opened.library.ExecutionContextAllocationStrategy.USER_MANAGED
        return self._opened.engine.create_execution_context(strategy)


_TITLES = {"tensorrt": "TensorRT", "tensorrt-rtx": "TensorRT-RTX"}


def _size_for(count: int, batch: Range) -> int:
    """Choose the batch size to run for ``count`` images; few sizes, as each is prepared for.

    The plan's own three, and 2, 3, 4, 6, 8, 12, ... between: a third is filled at the most.
    """
    sizes = {batch.least, batch.best, batch.most}
    step = 1
    while step < batch.most:
        sizes |= {step, 3 * step // 2}
        step *= 2
    return min(size for size in sizes if batch.least <= size <= batch.most and size >= count)
