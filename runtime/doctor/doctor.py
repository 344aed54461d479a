"""Examine which engines run here, what the others lack, and whether the answers are right."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec

from ..engines.nvidia import Driver
from ..engines.plan import is_plan, read_plan
from ..engines.registry import ENGINES
from ..engines.selftest import PATTERNS
from ..errors import EngineError, RequestError
from ..machine import conflicts, describe_machine
from ..manifest import Manifest
from ..onnxfile import read_manifest
from ..pixels import Pixels, read_pixels
from ..preprocess import resize
from ..timing import Tick
from .check import Check, Settings, check_model
from .job import Job, Survey, run_job
from .privacy import redact

VERSION = 2
_MAX_IMAGES, _MAX_SIDE = 16, 1024
_SURVEY_S = 120
_Result = TypeVar("_Result")


class EngineState(msgspec.Struct, frozen=True, kw_only=True):
    """An engine on this machine.

    Attributes:
        name: in ``registry.ENGINES``.
        state: ``ready``, ``not installed`` or ``does not load``.
        version: of its library.
        devices: names of the devices that it can use.
        precisions: that it can compute in.
        problem: why it is not ready, and the command that installs what is missing.
    """

    name: str
    state: Literal["ready", "not installed", "does not load"]
    version: str | None = None
    devices: tuple[str, ...] = ()
    precisions: tuple[str, ...] = ()
    problem: str | None = None


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """The result of an examination, without paths and names of users, machines or images.

    Attributes:
        version: of this format.
        machine: from ``machine.describe_machine``.
        driver: NVIDIA's.
        engines: every engine that whycam supports.
        checks: one for each model, engine and precision.
        images: number of images explained, test patterns included.
        problems: in words; empty if there are none.
    """

    version: int = VERSION
    machine: dict[str, Any]
    driver: Driver
    engines: tuple[EngineState, ...]
    checks: tuple[Check, ...] = ()
    images: int = 0
    problems: tuple[str, ...] = ()


def examine(
    models: Sequence[Path] = (),
    images: Sequence[Path] = (),
    settings: Settings | None = None,
    tick: Tick | None = None,
) -> Report:
    """Find out which engines can be loaded, and check models in each of them.

    Each engine runs in a process of its own.

    Args:
        models: ONNX files; TensorRT plans, each with the ONNX file it was built from.
        images: to explain in addition to the test patterns; at most 16 are used, each shrunk to
            at most 1024 pixels a side.
        settings: of the examination.
        tick: called with what is done and the steps done since, see ``count_steps``.

    Raises:
        ModelFileError: a model is missing, damaged, or not made by whycam.
        ImageError: an image cannot be read.
        RequestError: a plan without its ONNX file.
    """
    settings = settings or Settings()
    report: Tick = tick or (lambda _name, _steps: None)
    manifests = {model: _read_manifest(model) for model in models}
    onnx_files = _find_onnx_files(manifests)
    chosen = _choose_images(images)
    inputs = {
        model: [_shrink(read_pixels(path, manifest.preprocess)) for path in chosen]
        for model, manifest in manifests.items()
    }
    states = []
    for name in ENGINES:
        report(f"looking for {name}", 1)
        states.append(_state(name, settings.gpu))
    ready = [one.name for one in states if one.state == "ready"]
    checks = [
        check
        for model, manifest in manifests.items()
        for check in check_model(
            model, manifest, onnx_files.get(model), inputs[model], ready, settings, report
        )
    ]
    machine = describe_machine()
    return Report(
        machine=machine,
        driver=_run(Job(kind="driver"), Driver, lambda text: Driver(problem=text)),
        engines=tuple(states),
        checks=tuple(checks),
        images=PATTERNS + len(chosen) if models else 0,
        problems=tuple(_problems(states, checks, conflicts(machine["packages"]), settings)),
    )


def count_steps(models: Sequence[Path]) -> int:
    """Count the steps that ``examine`` reports to its ``tick``, at most."""
    runs = sum(len(backend.precisions) for backend in ENGINES.values()) + 1
    return len(ENGINES) + len(models) * runs


def _read_manifest(path: Path) -> Manifest:
    return read_plan(path).manifest if is_plan(path) else read_manifest(path)


def _find_onnx_files(manifests: dict[Path, Manifest]) -> dict[Path, Path]:
    """Find, for each plan, the ONNX file that it was built from."""
    by_digest = {one.digest: path for path, one in manifests.items() if not is_plan(path)}
    plans = {path: one for path, one in manifests.items() if is_plan(path)}
    for path, manifest in plans.items():
        if manifest.digest not in by_digest:
            raise RequestError(
                f"{path} is checked against the ONNX file it was built from, {manifest.model}: "
                "give that as well, with --check"
            )
    return {path: by_digest[manifest.digest] for path, manifest in plans.items()}


def _choose_images(paths: Sequence[Path]) -> list[Path]:
    """Choose at most 16 paths, evenly spread over a list."""
    count = min(len(paths), _MAX_IMAGES)
    return [paths[index * len(paths) // count] for index in range(count)]


def _shrink(image: Pixels) -> Pixels:
    height, width = image.shape[:2]
    share = min(1.0, _MAX_SIDE / max(height, width))
    if share == 1.0:
        return image
    size = max(1, round(height * share)), max(1, round(width * share))
    return resize(image, size, "bicubic")


def _run(job: Job, kind: type[_Result], failed: Callable[[str], _Result]) -> _Result:
    """Run a job; of one that crashes or hangs, make a result that holds the reason."""
    with tempfile.TemporaryDirectory(prefix="whycam-doctor-") as folder:
        try:
            result: _Result = run_job(job, Path(folder), _SURVEY_S, kind)
        except EngineError as error:
            result = failed(redact(str(error), [folder]))
    return result


def _state(name: str, gpu: int) -> EngineState:
    job = Job(kind="survey", engine=name, gpu=gpu)
    survey = _run(job, Survey, lambda text: Survey(problem=text))
    state: Literal["ready", "not installed", "does not load"] = "ready"
    if survey.problem is not None:
        state = "does not load" if survey.installed else "not installed"
    return EngineState(
        name=name,
        state=state,
        version=survey.version,
        devices=survey.devices,
        precisions=ENGINES[name].precisions,
        problem=None if survey.problem is None else redact(survey.problem),
    )


def _problems(
    states: Sequence[EngineState],
    checks: Sequence[Check],
    conflicting: Sequence[str],
    settings: Settings,
) -> Iterator[str]:
    yield from conflicting
    if all(state.state != "ready" for state in states):
        yield 'no engine is ready: pip install "whycam[cpu]"'
    for state in states:
        named = settings.engines is not None and state.name in settings.engines
        if named and state.state != "ready":
            yield f"{state.name} was asked for and is not ready: {state.problem}"
    for check in checks:
        if check.outcome in ("wrong", "failed"):
            verb = "answers wrongly" if check.outcome == "wrong" else "failed"
            yield f"{check.model}: {check.engine} {check.precision} {verb}: {check.why}"
