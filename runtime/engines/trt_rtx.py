"""Configure TensorRT-RTX: compile kernels when a plan runs, keep them, record CUDA graphs."""

from __future__ import annotations

import weakref
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ..errors import EngineError, WhyCamError
from ..files import writable_folder, write_whole
from .trt_load import LoadedPlan

if TYPE_CHECKING:
    import tensorrt as trt


class JustInTime:
    """How TensorRT-RTX makes a plan's kernels, and where they are kept for the next start.

    New shapes run at once, by kernels for any shape, while better ones are compiled beside; the
    library changes over, and records its graphs anew, by itself. That is its default.
    """

    def __init__(self, opened: LoadedPlan, folder: str | None) -> None:
        """Configure it, and load the kernels of earlier starts.

        Args:
            opened: a plan of TensorRT-RTX.
            folder: for kernels; None: they are compiled again at each start.

        Raises:
            EngineError: TensorRT-RTX refuses.
            OutputError: the folder cannot be written to.
        """
        self._opened = opened
        # The stubs are TensorRT's; the members used here are TensorRT-RTX's own.
        self._config = cast(Any, opened.engine.create_runtime_config())
        if self._config is None:
            raise EngineError(f"tensorrt-rtx made no runtime configuration. {opened.log.tail()}")
        self._config.cuda_graph_strategy = opened.library.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        self._finalizer = None
        if folder is not None:
            place = writable_folder(folder) / _name_of(opened)
            cache = self._config.create_runtime_cache()
            known = place.read_bytes() if place.is_file() else b""
            # What is of another GPU, driver or version, or damaged, it refuses; all is then
            # compiled anew, and written over.
            if known and not cache.deserialize(known):
                known = b""
            if not self._config.set_runtime_cache(cache):
                raise EngineError(f"tensorrt-rtx takes no runtime cache. {opened.log.tail()}")
            self._finalizer = weakref.finalize(self, _save, cache, place, known)

    def context(self) -> trt.IExecutionContext | None:
        """Create an execution context."""
        return self._opened.engine.create_execution_context(self._config)

    def save(self) -> None:
        """Write what was compiled; done by itself when the process ends, too."""
        if self._finalizer is not None:
            self._finalizer()


def _name_of(opened: LoadedPlan) -> str:
    """Name the file of kernels after plan, version and GPU."""
    plan = opened.plan.digest.removeprefix("sha256:")[:16]
    return f"{plan}-{opened.plan.library_version}-sm{opened.device.compute}.rtx"


def _save(cache: Any, place: Path, known: bytes) -> None:
    # A cache that cannot be written costs time at the next start, no more.
    with suppress(WhyCamError, RuntimeError):
        found = bytes(cache.serialize())
        if found != known:
            write_whole(place, found)
