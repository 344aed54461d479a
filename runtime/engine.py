"""One face for every inference engine, and how one is chosen.

An engine is a file of its own beside this one, imported only when it is asked for.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Literal, Protocol, get_args

import msgspec
from numpy.typing import NDArray

from .errors import EngineError, ModelFileError
from .manifest import Manifest
from .plan import is_plan, read_plan

Arrays = Mapping[str, NDArray[Any]]
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

    Raises:
        EngineError: a value that does not exist.
    """

    threads: int | None = None
    precision: Precision = "fp32"
    hint: Hint = "latency"
    cache: str | None = None
    gpu: int = 0

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
        name: as in ``load(engine=...)``.
        description: library, version, device and precision, for people.
        reason: why this engine, for people.
    """

    name: str
    description: str
    reason: str

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


Opener = Callable[[str, Manifest, EngineSettings], Engine]


def _onnxruntime(path: str, manifest: Manifest, settings: EngineSettings) -> Engine:
    from .ort import OnnxRuntimeEngine

    return OnnxRuntimeEngine(path, manifest, settings)


def _openvino(path: str, manifest: Manifest, settings: EngineSettings) -> Engine:
    from .ov import OpenVinoEngine

    return OpenVinoEngine(path, manifest, settings)


def _tensorrt(path: str, manifest: Manifest, settings: EngineSettings) -> Engine:
    from .trt import TensorRtEngine

    return TensorRtEngine(path, manifest, settings)


@dataclass(frozen=True)
class Backend:
    """An engine that whycam knows.

    Attributes:
        package: its Python module.
        extra: of whycam, that installs it.
        precisions: that it computes in.
        open: opens a file in it.
    """

    package: str
    extra: str
    precisions: tuple[Precision, ...]
    open: Opener

    @property
    def installed(self) -> bool:
        """Whether its package can be imported; it is not imported for that."""
        return find_spec(self.package) is not None


ENGINES: dict[str, Backend] = {
    "onnxruntime": Backend("onnxruntime", "cpu", ("fp32",), _onnxruntime),
    "openvino": Backend("openvino", "openvino", ("fp32", "bf16"), _openvino),
    # Runs plans, and nothing else does; one computes in the precision that it was built in.
    "tensorrt": Backend("tensorrt", "tensorrt", ("fp32",), _tensorrt),
}


@dataclass(frozen=True)
class Candidate:
    """An engine considered for a file.

    Attributes:
        name: in ``ENGINES``.
        usable: whether it can be tried.
        why: it is preferred, comes second, or is not to be had.
    """

    name: str
    usable: bool
    why: str


def candidates(
    manifest: Manifest, settings: EngineSettings, path: str | os.PathLike[str] | None = None
) -> list[Candidate]:
    """What ``auto`` would try for a file, in this order, with reasons.

    Args:
        manifest: of the file.
        settings: wished for.
        path: of the file; told, a TensorRT plan gets the engine for plans.
    """
    if path is not None and is_plan(path):
        return [_for_plan(path, manifest, settings)]
    order, why = _preference(manifest, settings)
    found = []
    for name in order:
        backend = ENGINES[name]
        if settings.precision not in backend.precisions:
            found.append(Candidate(name, False, f"cannot compute in {settings.precision}"))
        elif not backend.installed:
            install = f'not installed: pip install "whycam[{backend.extra}]"'
            found.append(Candidate(name, False, install))
        elif any(each.usable for each in found):
            found.append(Candidate(name, True, "installed; used if the one before it fails"))
        elif name == order[0]:
            found.append(Candidate(name, True, why))
        elif manifest.precision == "int8" and name == "onnxruntime":
            slow = "the one that can be used here, but INT8 is slower than fp32 in it"
            found.append(Candidate(name, True, slow))
        else:
            found.append(Candidate(name, True, "the one that can be used here"))
    return found


def _for_plan(
    path: str | os.PathLike[str], manifest: Manifest, settings: EngineSettings
) -> Candidate:
    from .trt_load import extra_of, installed

    library = read_plan(path).library
    if settings.precision != "fp32":
        why = f"a plan computes as it was built, in {manifest.precision}: leave out the precision"
        return Candidate("tensorrt", False, why)
    if not installed(library):
        why = f'{library} is not installed: pip install "whycam[{extra_of(library)}]"'
        return Candidate("tensorrt", False, why)
    return Candidate("tensorrt", True, f"runs plans of {library}; nothing else does")


def _preference(manifest: Manifest, settings: EngineSettings) -> tuple[tuple[str, ...], str]:
    """Engines by preference, and why the first is first. docs/performance.md has the figures."""
    if settings.precision == "bf16":
        return ("openvino", "onnxruntime"), "computes in bf16 on CPUs"
    if manifest.precision == "bf16":
        return ("openvino", "onnxruntime"), "reads bf16 files on CPUs, which ONNX Runtime does not"
    if manifest.precision == "int8":
        return ("openvino", "onnxruntime"), "two to three times as fast for INT8 on CPUs"
    # As fast as OpenVINO for one picture, and what every export is held against PyTorch in.
    return ("onnxruntime", "openvino"), "the engine that the export was checked in"


def open_engine(
    path: str | os.PathLike[str],
    manifest: Manifest,
    engine: str = "auto",
    settings: EngineSettings | None = None,
) -> Engine:
    """Open a model file in an engine.

    Args:
        path: the ONNX file.
        manifest: what it says of itself.
        engine: a name in ``ENGINES``, or ``auto``: the first of ``candidates`` that opens it;
            the engine's ``reason`` says why that one.
        settings: how it should run.

    Raises:
        EngineError: unknown engine, or it cannot be used as asked.
        ModelFileError: the engine cannot load the file.
        MissingExtraError: the engine's package is not installed.
    """
    settings = settings or EngineSettings()
    name = os.fspath(path)
    if engine == "auto":
        return _first_that_opens(name, manifest, settings)
    if engine in ENGINES and (engine == "tensorrt") != is_plan(name):
        raise EngineError(_not_for(name, engine))
    if engine not in ENGINES:
        raise EngineError(
            f"there is no engine '{engine}'; choose from: auto, {', '.join(sorted(ENGINES))}"
        )
    backend = ENGINES[engine]
    if settings.precision not in backend.precisions:
        able = [each for each in ENGINES if settings.precision in ENGINES[each].precisions]
        raise EngineError(
            f"{engine} cannot compute in {settings.precision}; {' or '.join(able)} can"
        )
    return backend.open(name, manifest, settings)


def _not_for(path: str, engine: str) -> str:
    if engine == "tensorrt":
        return (
            f"tensorrt runs plans, and {path} is not one: make one of an ONNX file with: whycam "
            "build MODEL.onnx -o MODEL.plan"
        )
    return (
        f"{engine} cannot run {path}: a TensorRT plan runs in tensorrt alone. Give {engine} the "
        "ONNX file that whycam build made it from"
    )


def _first_that_opens(path: str, manifest: Manifest, settings: EngineSettings) -> Engine:
    considered = candidates(manifest, settings, path)
    usable = [each for each in considered if each.usable]
    if not usable:
        listed = "; ".join(f"{each.name}: {each.why}" for each in considered)
        raise EngineError(f"no engine here can run this file. {listed}")
    return _opened(usable, path, manifest, settings)


def _opened(
    usable: Sequence[Candidate], path: str, manifest: Manifest, settings: EngineSettings
) -> Engine:
    first, *others = usable
    try:
        engine = ENGINES[first.name].open(path, manifest, settings)
    except ModelFileError as error:
        if not others:
            raise
        engine = _opened(others, path, manifest, settings)
        engine.reason = f"{first.name} cannot load the file ({error})"
        return engine
    engine.reason = first.why
    return engine
