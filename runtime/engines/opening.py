"""Open a model file in an inference engine, and check its answers first."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from ..comparison import ENGINE, ENGINE_INT8
from ..errors import EngineError, ModelFileError, WrongAnswerError
from ..manifest import Manifest
from . import detection_selftest, selftest
from .base import Engine, EngineSettings
from .plan import is_plan
from .registry import CHECKED_AT_EXPORT, ENGINES, Candidate, candidates, usable


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
    if manifest.detector is not None:
        wrong = detection_selftest.find_problem(engine.run, manifest)
        if wrong is not None:
            raise WrongAnswerError(
                f"{engine.description} answers wrongly for {path}: {wrong}. Use another engine"
            )
        return engine
    found = selftest.check(engine, manifest, ENGINE_INT8 if quantised else ENGINE)
    for reference, compared in zip(manifest.references, found, strict=True):
        problem = compared.complaint
        if problem is None:
            continue
        if quantised:
            raise WrongAnswerError(
                f"{engine.description} computes other numbers than {path} says ({problem}). "
                f"{_why_other_numbers(selftest.sensitivity(engine, manifest, reference))}"
            )
        raise WrongAnswerError(
            f"{engine.description} answers wrongly for {path}: {problem}. Use another engine; "
            f"for more, see: whycam verify {path} --engine {name}"
        )
    return engine


def _first_that_opens(
    path: str, manifest: Manifest, settings: EngineSettings, check: bool
) -> Engine:
    tried = usable(manifest, settings, path)
    if not tried:
        listed = "; ".join(
            f"{each.name}: {each.why}" for each in candidates(manifest, settings, path)
        )
        raise EngineError(f"no engine here can run this file. {listed}")
    return _opened(tried, path, manifest, settings, check)


def _opened(
    tried: Sequence[Candidate],
    path: str,
    manifest: Manifest,
    settings: EngineSettings,
    check: bool,
) -> Engine:
    first, *others = tried
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


def _why_other_numbers(moved: Mapping[str, float]) -> str:
    """Explain why an INT8 file gives other numbers: overflow, or an unstable network."""
    if max(moved[name] / ENGINE_INT8[name] for name in moved) < _RESTLESS:
        return (
            "Processors without VNNI add products of 8-bit weights with overflow: whycam calibrate "
            "int8 --weight-bits 7 avoids that"
        )
    return (
        "In 8 bits, single roundings decide this network's answers: an image that changes by next "
        f"to nothing moves the engine's own probability by {moved['probabilities']:.1e} and its "
        f"map by {moved['maps']:.1e}. Use the float file, or leave more layers in float with a "
        "higher --floor"
    )
