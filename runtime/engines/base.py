"""Define what every inference engine follows: its settings and its protocol."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Protocol, get_args

import msgspec
from numpy.typing import NDArray

from ..errors import EngineError
from .chunks import Arrays

Precision = Literal["fp32", "bf16"]
Hint = Literal["latency", "throughput"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
HINTS: tuple[Hint, ...] = get_args(Hint)


class EngineSettings(msgspec.Struct, frozen=True, kw_only=True):
    """How an engine should run a file.

    Attributes:
        threads: for one run; None lets the engine use every core.
        precision: of the arithmetic that the file does not itself quantise. Never anything but
            ``fp32`` unless asked for.
        hint: ``latency``: all threads work on one image or batch; ``throughput``: each batch is
            divided among them, and several callers are served at once.
        cache: a folder for compiled models, for a faster start the next time; None: none is kept.
            Engines that compile nothing (ONNX Runtime on CPUs and CUDA) ignore it.
        gpu: index of the GPU, for engines that use one.
        spin: whether threads of ONNX Runtime on the CPU wait for each other's work in a loop: the
            fastest where nothing else computes. Beside other work, as a stream's decoding and
            drawing, a thread that waits so takes the core that the other one needs.

    Raises:
        EngineError: a value that does not exist.
    """

    threads: int | None = None
    precision: Precision = "fp32"
    hint: Hint = "latency"
    cache: str | None = None
    gpu: int = 0
    spin: bool = True

    def __post_init__(self) -> None:
        if self.gpu < 0:
            raise EngineError(f"gpu must be 0 or more, not {self.gpu}")
        if self.threads is not None and self.threads < 1:
            raise EngineError(f"threads must be 1 or more, not {self.threads}")
        if self.precision not in PRECISIONS:
            raise EngineError(
                f"precision must be {' or '.join(PRECISIONS)}, not {self.precision!r}; INT8 is a "
                "file of its own, made with: whycam calibrate int8"
            )
        if self.hint not in HINTS:
            raise EngineError(f"hint must be {' or '.join(HINTS)}, not {self.hint!r}")


class Engine(Protocol):
    """Runs an explaining graph. Safe to call from several threads.

    Attributes:
        reason: why this engine was chosen, for people.
    """

    reason: str

    @property
    def name(self) -> str:
        """Name the engine, as in ``load(engine=...)``."""
        ...

    @property
    def description(self) -> str:
        """Describe library, version, device and precision, for people."""
        ...

    def run(self, feeds: Arrays, outputs: Sequence[str]) -> dict[str, NDArray[Any]]:
        """Run the graph once.

        Args:
            feeds: ``image``, [N, *manifest.image_shape], uint8 where ``manifest.image_type`` is
                and else float32; and ``target`` int64 [N, k], ranks alone where the graph has no
                such input (``manifest.top``); and where ``manifest.class_embeddings`` is set,
                ``class_embeddings`` float32 [C, D].
            outputs: the outputs wanted, by their contract names. Engines skip the work for others
                if they can.

        Raises:
            EngineError: the engine refused the inputs or failed.
        """
        ...
