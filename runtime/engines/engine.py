"""One face for every inference engine, and how one is chosen.

An engine is a file of its own beside this one, imported only when it is asked for.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal, Protocol, get_args

import msgspec
from numpy.typing import NDArray

from ..errors import EngineError, ModelFileError, WrongAnswerError
from ..manifest import Manifest
from .interface import Arrays
from .plan import is_plan, read_plan

if TYPE_CHECKING:
    from .selftest import Agreement

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
            feeds: ``image``, [N, *manifest.image_shape], uint8 where ``manifest.image_type`` is
                and else float32; and ``target`` int64 [N, k], ranks alone where the graph has no
                such input (``manifest.top``).
            outputs: the outputs wanted, by their contract names. Engines skip the work for others
                if they can.

        Raises:
            EngineError: the engine refused the inputs or failed.
        """
        ...


Opener = Callable[[str, Manifest, EngineSettings], Engine]


def _onnxruntime(path: str, manifest: Manifest, settings: EngineSettings) -> Engine:
    from .ort import OnnxRuntimeEngine

    return OnnxRuntimeEngine(path, manifest, settings)


def _onnxruntime_cuda(path: str, manifest: Manifest, settings: EngineSettings) -> Engine:
    from .ort import OnnxRuntimeEngine
    from .ort_options import CUDA

    return OnnxRuntimeEngine(path, manifest, settings, CUDA)


def _onnxruntime_tensorrt(path: str, manifest: Manifest, settings: EngineSettings) -> Engine:
    from .ort import OnnxRuntimeEngine
    from .ort_options import TENSORRT

    return OnnxRuntimeEngine(path, manifest, settings, TENSORRT)


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
        provider: of ONNX Runtime, that it uses; its package comes with or without.
        reserved: why ``auto`` leaves it to those who ask for it by name; None: it does not.
    """

    package: str
    extra: str
    precisions: tuple[Precision, ...]
    open: Opener
    provider: str | None = None
    reserved: str | None = None

    @property
    def installed(self) -> bool:
        """Whether its package is there; ``runtime.doctor`` tells whether all else is."""
        return self.absent is None

    @property
    def absent(self) -> str | None:
        """Why it is not to be had, and the command that installs it; None if it is installed."""
        if find_spec(self.package) is None:
            return f'not installed: pip install "whycam[{self.extra}]"'
        if self.provider is None:
            return None
        from .ort_gpu import not_built_in

        return not_built_in(self.provider)


# Every export is checked in this one, so it need not prove itself again.
CHECKED_AT_EXPORT = "onnxruntime"
ENGINES: dict[str, Backend] = {
    CHECKED_AT_EXPORT: Backend("onnxruntime", "cpu", ("fp32",), _onnxruntime),
    "onnxruntime-cuda": Backend(
        "onnxruntime",
        "gpu",
        ("fp32",),
        _onnxruntime_cuda,
        "CUDAExecutionProvider",
        "takes seconds to start, and memory of a GPU",
    ),
    "onnxruntime-tensorrt": Backend(
        "onnxruntime",
        "gpu",
        ("fp32",),
        _onnxruntime_tensorrt,
        "TensorrtExecutionProvider",
        "builds for minutes before it starts, and takes memory of a GPU",
    ),
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
        elif (absent := backend.absent) is not None:
            found.append(Candidate(name, False, absent))
        elif any(each.usable for each in found):
            found.append(Candidate(name, True, "installed; used if the one before it fails"))
        elif name == order[0]:
            found.append(Candidate(name, True, why))
        elif manifest.precision == "int8" and name == "onnxruntime":
            slow = "the one that can be used here, but INT8 is slower than fp32 in it"
            found.append(Candidate(name, True, slow))
        else:
            found.append(Candidate(name, True, "the one that can be used here"))
    return [*found, *_reserved(settings)]


def _reserved(settings: EngineSettings) -> Iterator[Candidate]:
    for name, backend in ENGINES.items():
        if backend.reserved is not None and settings.precision in backend.precisions:
            why = backend.absent or f"only when asked for by name: {backend.reserved}"
            yield Candidate(name, False, why)


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
    # As fast as OpenVINO for one image, and what every export is checked in.
    return ("onnxruntime", "openvino"), "the engine that the export was checked in"


def open_engine(
    path: str | os.PathLike[str],
    manifest: Manifest,
    engine: str = "auto",
    settings: EngineSettings | None = None,
    check: bool = True,
) -> Engine:
    """Open a model file in an engine.

    Args:
        path: the ONNX file.
        manifest: what it says of itself.
        engine: a name in ``ENGINES``, or ``auto``: the first of ``candidates`` that opens it;
            the engine's ``reason`` says why that one.
        settings: how it should run.
        check: whether an engine other than ``CHECKED_AT_EXPORT`` must first reproduce the
            export's reference answers in the file, and any engine what an INT8 file says. In half
            precision, of file or arithmetic, nothing is checked: numbers differ by design.

    Raises:
        EngineError: unknown engine, or it cannot be used as asked.
        WrongAnswerError: it does not reproduce the export's reference answers.
        ModelFileError: the engine cannot load the file.
        MissingExtraError: the engine's package is not installed.
    """
    settings = settings or EngineSettings()
    name = os.fspath(path)
    if engine == "auto":
        return _first_that_opens(name, manifest, settings, check)
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
    return _open(engine, name, manifest, settings, check)


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


def _open(
    name: str, path: str, manifest: Manifest, settings: EngineSettings, check: bool
) -> Engine:
    engine = ENGINES[name].open(path, manifest, settings)
    exact = (manifest.precision, settings.precision) == ("fp32", "fp32")
    quantised = manifest.precision == "int8"
    if not check or not (quantised or (exact and name != CHECKED_AT_EXPORT)):
        return engine
    from . import selftest

    for reference, agreement in zip(
        manifest.references, selftest.check(engine, manifest), strict=True
    ):
        problem = agreement.problem(selftest.QUANTISED if quantised else selftest.EXACT)
        if problem is not None and quantised:
            raise WrongAnswerError(
                f"{engine.description} computes other numbers than {path} says ({problem}). "
                f"{_why_other_numbers(selftest.shaken(engine, manifest, reference))}"
            )
        if problem is not None:
            raise WrongAnswerError(
                f"{engine.description} answers wrongly for {path}: {problem}. Use another engine; "
                f"for more, see: whycam verify {path} --engine {name}"
            )
    return engine


def _first_that_opens(
    path: str, manifest: Manifest, settings: EngineSettings, check: bool
) -> Engine:
    considered = candidates(manifest, settings, path)
    usable = [each for each in considered if each.usable]
    if not usable:
        listed = "; ".join(f"{each.name}: {each.why}" for each in considered)
        raise EngineError(f"no engine here can run this file. {listed}")
    return _opened(usable, path, manifest, settings, check)


def _opened(
    usable: Sequence[Candidate],
    path: str,
    manifest: Manifest,
    settings: EngineSettings,
    check: bool,
) -> Engine:
    first, *others = usable
    try:
        engine = _open(first.name, path, manifest, settings, check)
    except (ModelFileError, WrongAnswerError) as error:
        if not others:
            raise
        engine = _opened(others, path, manifest, settings, check)
        how = "cannot load the file" if isinstance(error, ModelFileError) else "answers wrongly"
        engine.reason = f"{first.name} {how} ({error})"
        return engine
    engine.reason = first.why
    return engine


_RESTLESS = 0.5  # of what engines may differ by


def _why_other_numbers(shaken: Agreement) -> str:
    """Of an INT8 file, from what next to nothing in the image changes."""
    from . import selftest

    allowed = selftest.QUANTISED
    if max(shaken.probability / allowed.probability, shaken.map / allowed.map) < _RESTLESS:
        return (
            "Processors without VNNI add products of 8-bit weights with overflow: whycam calibrate "
            "int8 --weight-bits 7 avoids that"
        )
    return (
        "In 8 bits, single roundings decide this network's answers: an image that changes by next "
        f"to nothing moves the engine's own probability by {shaken.probability:.1e} and its map by "
        f"{shaken.map:.1e}. Use the float file, or leave more layers in float with a higher --floor"
    )
