"""One face for every inference engine, and how one is chosen.

An engine is a file of its own beside this one, imported only when it is asked for.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from numpy.typing import NDArray

from .errors import EngineError
from .manifest import Manifest

Arrays = Mapping[str, NDArray[Any]]


class Engine(Protocol):
    """Runs an explaining graph. Safe to call from several threads.

    Attributes:
        name: as in ``load(engine=...)``.
        description: library, version and device, for people.
    """

    name: str
    description: str

    def run(self, feeds: Arrays, outputs: Sequence[str]) -> dict[str, NDArray[Any]]:
        """Run the graph once.

        Args:
            feeds: ``image``, float32 [N, 3, H, W] or uint8 [N, h, w, 3] as the manifest has it,
                and ``target`` int64 [N, k].
            outputs: the outputs wanted, by name. Engines skip the work for others if they can.

        Raises:
            EngineError: the engine refused the inputs or failed.
        """
        ...


Opener = Callable[[str, Manifest, int | None], Engine]


def _onnxruntime(path: str, manifest: Manifest, threads: int | None) -> Engine:
    from .ort import OnnxRuntimeEngine

    return OnnxRuntimeEngine(path, manifest, threads)


ENGINES: dict[str, Opener] = {"onnxruntime": _onnxruntime}


def open_engine(
    path: str | os.PathLike[str], manifest: Manifest, engine: str, threads: int | None
) -> Engine:
    """Open a model file in an engine.

    Args:
        path: the ONNX file.
        manifest: what it says of itself.
        engine: a name in ``ENGINES``, or ``auto``.
        threads: for one run; None lets the engine use every core.

    Raises:
        EngineError: unknown engine, a bad number of threads, or the engine cannot load the file.
        MissingExtraError: the engine's package is not installed.
    """
    if threads is not None and threads < 1:
        raise EngineError(f"threads must be 1 or more, not {threads}")
    name = "onnxruntime" if engine == "auto" else engine
    if name not in ENGINES:
        raise EngineError(
            f"there is no engine '{engine}'; choose from: auto, {', '.join(sorted(ENGINES))}"
        )
    return ENGINES[name](os.fspath(path), manifest, threads)
