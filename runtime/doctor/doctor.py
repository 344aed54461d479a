"""Examine which engines run here, what the others lack, and whether the answers are right."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec
import numpy as np

from ..engines.nvidia import Driver
from ..engines.plan import is_plan, read_plan
from ..engines.registry import ENGINES
from ..engines.selftest import PATTERNS
from ..errors import EngineError, RequestError
from ..images import RGBImage, read_image
from ..machine import conflicts, describe_machine
from ..manifest import Manifest
from ..onnxfile import read_manifest
from .check import Check, Settings, Tick, check_model
from .job import Job, Survey, run_job
from .privacy import redact

VERSION = 2
_MOST_PICTURES, _LONGEST_SIDE = 16, 1024
_SURVEY_S = 120
_Found = TypeVar("_Found")


class EngineState(msgspec.Struct, frozen=True, kw_only=True):
    """An engine on this machine.

    Attributes:
        name: in ``engine.ENGINES``.
        state: ``ready``, ``not installed`` or ``does not load``.
        version: of its library.
        devices: that it can use.
        precisions: that it computes in.
        problem: why it is not ready, and the command that installs what is missing.
    """

    name: str
    state: Literal["ready", "not installed", "does not load"]
    version: str | None = None
    devices: tuple[str, ...] = ()
    precisions: tuple[str, ...] = ()
    problem: str | None = None


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """Everything found. Holds no path, and no name of user, machine or image.

    Attributes:
        version: of this layout.
        machine: see ``machine.describe_machine``.
        driver: of NVIDIA's.
        engines: all that whycam knows.
        checks: one for each model, engine and precision.
        images: how many were shown, test patterns included.
        problems: what is wrong here; empty: all is well.
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
    """Examine this machine and, given models, compare every engine with the reference.

    Each engine is asked in a process of its own.

    Args:
        models: ONNX files; TensorRT plans, each with the ONNX file it was built from.
        images: shown beside the test patterns, at most 16 of them, at most 1024 pixels wide and
            high.
        settings: how.
        tick: told what is done and how many steps that was; see ``steps``.

    Raises:
        ModelFileError: a model is missing, damaged, or not made by whycam.
        ImageError: an image cannot be read.
        RequestError: a plan without its ONNX file.
    """
    wanted = settings or Settings()
    told: Tick = tick or (lambda _name, _steps: None)
    manifests = {model: _manifest(model) for model in models}
    plans = _references(manifests)
    shown = [_shrunk(read_image(path)) for path in _some(images)]
    states = []
    for name in ENGINES:
        told(f"looking for {name}", 1)
        states.append(_state(name, wanted.gpu))
    ready = [each.name for each in states if each.state == "ready"]
    checks: list[Check] = []
    for model in models:
        checks += check_model(model, manifests[model], plans.get(model), shown, ready, wanted, told)
    about = describe_machine()
    return Report(
        machine=about,
        driver=_asked(Job(kind="driver"), Driver, lambda said: Driver(problem=said)),
        engines=tuple(states),
        checks=tuple(checks),
        images=PATTERNS + len(shown) if models else 0,
        problems=tuple(_problems(states, checks, conflicts(about["packages"]), wanted)),
    )


def steps(models: Sequence[Path]) -> int:
    """Count the steps that ``examine`` reports to its ``tick``, at most."""
    runs = sum(len(backend.precisions) for backend in ENGINES.values()) + 1
    return len(ENGINES) + len(models) * runs


def _manifest(path: Path) -> Manifest:
    return read_plan(path).manifest if is_plan(path) else read_manifest(path)


def _references(manifests: dict[Path, Manifest]) -> dict[Path, Path]:
    """Find the ONNX file of each plan."""
    found = {}
    files = {own.digest: path for path, own in manifests.items() if not is_plan(path)}
    for path, own in manifests.items():
        if not is_plan(path):
            continue
        if own.digest not in files:
            raise RequestError(
                f"{path} is checked against the ONNX file it was built from, {own.model}: give "
                "that as well, with --check"
            )
        found[path] = files[own.digest]
    return found


def _some(paths: Sequence[Path]) -> list[Path]:
    """Pick at most 16 paths, evenly spread over a list."""
    count = min(len(paths), _MOST_PICTURES)
    return [paths[index * len(paths) // count] for index in range(count)]


def _shrunk(source: RGBImage) -> RGBImage:
    from PIL import Image

    image = Image.fromarray(source)
    image.thumbnail((_LONGEST_SIDE, _LONGEST_SIDE))
    return np.asarray(image)


def _asked(job: Job, kind: type[_Found], broken: Callable[[str], _Found]) -> _Found:
    with tempfile.TemporaryDirectory(prefix="whycam-doctor-") as folder:
        try:
            found: _Found = run_job(job, Path(folder), _SURVEY_S, kind)
        except EngineError as error:
            found = broken(redact(str(error), [folder]))
    return found


def _state(name: str, gpu: int) -> EngineState:
    job = Job(kind="survey", engine=name, gpu=gpu)
    found = _asked(job, Survey, lambda said: Survey(problem=said))
    state: Literal["ready", "not installed", "does not load"] = "ready"
    if found.problem is not None:
        state = "does not load" if found.installed else "not installed"
    return EngineState(
        name=name,
        state=state,
        version=found.version,
        devices=found.devices,
        precisions=ENGINES[name].precisions,
        problem=None if found.problem is None else redact(found.problem),
    )


def _problems(
    states: Sequence[EngineState],
    checks: Sequence[Check],
    conflicting: Sequence[str],
    settings: Settings,
) -> Iterator[str]:
    yield from conflicting
    if all(each.state != "ready" for each in states):
        yield 'no engine is ready: pip install "whycam[cpu]"'
    for state in states:
        named = settings.engines is not None and state.name in settings.engines
        if named and state.state != "ready":
            yield f"{state.name} was asked for and is not ready: {state.problem}"
    for each in checks:
        if each.outcome in ("wrong", "failed"):
            verb = "answers wrongly" if each.outcome == "wrong" else "failed"
            yield f"{each.model}: {each.engine} {each.precision} {verb}: {each.why}"
