"""Plan a benchmark: every combination that can run here, and why the others cannot."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import cast

from ..cam import METHODS, Method
from ..engines.base import EngineSettings, Precision
from ..engines.plan import is_plan
from ..engines.registry import ENGINES, candidates
from ..errors import RequestError
from ..manifest import Manifest
from ..onnxfile import read_manifest
from ..request import plan_request


@dataclass(frozen=True)
class Configuration:
    """One thing to measure.

    Attributes:
        model: the file.
        engine: in ``ENGINES``; of other tools, the tool's name.
        precision: of the arithmetic.
        batch: images explained at once.
        threads: for one run.
        method: of the map; None: plain classification.
        tft: whether the map is thresholded, by the file's reading of TFT.
    """

    model: str
    engine: str
    precision: Precision
    batch: int
    threads: int
    method: Method | None = None
    tft: bool = False

    @property
    def plain(self) -> Configuration:
        """Classification alone by the same engine, cut from the same file."""
        return replace(self, method=None, tft=False)


@dataclass(frozen=True)
class LeftOut:
    """What was asked for and cannot be had, and why."""

    what: str
    reason: str


@dataclass(frozen=True)
class Plan:
    """What to measure; what not, with reasons."""

    configurations: tuple[Configuration, ...]
    left_out: tuple[LeftOut, ...] = ()


def plan(
    models: Sequence[str],
    engines: Sequence[str] | None = None,
    precisions: Sequence[str] = ("fp32",),
    methods: Sequence[str] | None = None,
    tft: Sequence[bool] = (False, True),
    batches: Sequence[int] = (1,),
    threads: Sequence[int] | None = None,
) -> Plan:
    """List every combination that can be measured, and why others cannot.

    Args:
        models: files made by ``whycam export``.
        engines: by default those installed that ``auto`` would try.
        precisions: of ``engine.PRECISIONS``.
        methods: by default what the graph finishes itself, or Grad-CAM.
        tft: without, with, or both.
        batches: images at once.
        threads: by default one a processor.

    Raises:
        RequestError: an engine or method that does not exist, or nothing remains.
        EngineError: a precision that does not exist.
        ModelFileError: a file is missing, damaged, or not made by whycam.
    """
    _check_known("engine", engines or (), tuple(ENGINES))
    _check_known("method", methods or (), METHODS)
    for each in precisions:
        EngineSettings(precision=cast(Precision, each))
    configurations: dict[Configuration, None] = {}
    left_out: list[LeftOut] = []
    for model in models:
        manifest = read_manifest(model)
        name = Path(model).name
        runnable = list(_runnable(model, manifest, engines, precisions, left_out))
        combinations = list(_combinations(name, manifest, methods, tft, left_out))
        for (engine, precision), batch, count in product(
            runnable, batches, threads or (os.cpu_count() or 1,)
        ):
            base = Configuration(model, engine, precision, batch, count)
            found = [replace(base, method=method, tft=on) for method, on in combinations]
            # Classification comes first: an engine that compiles only so many shapes meets its own.
            configurations |= dict.fromkeys([base, *found] if found else [])
    if not configurations:
        raise nothing_remains(left_out)
    return Plan(tuple(configurations), tuple(left_out))


def _check_known(kind: str, given: Sequence[str], known: Sequence[str]) -> None:
    for name in given:
        if name not in known:
            raise RequestError(f"there is no {kind} '{name}'; choose from: {', '.join(known)}")


def nothing_remains(left_out: Sequence[LeftOut]) -> RequestError:
    """Build the error for a benchmark of which everything was left out."""
    reasons = "; ".join(f"{each.what}: {each.reason}" for each in left_out)
    return RequestError(f"nothing can be measured. {reasons}")


def _runnable(
    model: str,
    manifest: Manifest,
    engines: Sequence[str] | None,
    precisions: Sequence[str],
    left_out: list[LeftOut],
) -> Iterator[tuple[str, Precision]]:
    name, settings = Path(model).name, EngineSettings()
    installed = [each.name for each in candidates(manifest, settings, model) if each.usable]
    for engine, precision in product(engines or installed or ENGINES, precisions):
        backend = ENGINES[engine]
        what = f"{name}, {engine} {precision}"
        if (engine == "tensorrt") != is_plan(model):
            left_out.append(LeftOut(what, "plans run in tensorrt, and tensorrt runs plans alone"))
        elif precision not in backend.precisions:
            left_out.append(LeftOut(what, f"{engine} cannot compute in {precision}"))
        elif engine != "tensorrt" and (absent := backend.absent) is not None:
            # Which library a plan needs, the plan says.
            left_out.append(LeftOut(what, absent))
        else:
            yield engine, precision


def _combinations(
    name: str,
    manifest: Manifest,
    methods: Sequence[str] | None,
    tft: Sequence[bool],
    left_out: list[LeftOut],
) -> Iterator[tuple[Method, bool]]:
    for method, on in product(methods or [manifest.map_method or "gradcam"], tft):
        refusal = _refusal(manifest, cast(Method, method), on)
        if refusal is None:
            yield cast(Method, method), on
        else:
            left_out.append(LeftOut(f"{name}, {method}{' with TFT' if on else ''}", refusal))


def _refusal(manifest: Manifest, method: Method, tft: bool) -> str | None:
    """Say why a file cannot give a map; None if it can."""
    try:
        plan_request(manifest, method, tft)
    except RequestError as error:
        return str(error)
    return None
