"""Plan a benchmark: every combination that can run here, and why the others cannot."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import cast

from ..cam import METHODS, Method
from ..detection_plan import MOST_DETECTIONS
from ..engines.base import EngineSettings, Precision
from ..engines.plan import is_plan
from ..engines.registry import ENGINES, usable
from ..errors import RequestError
from ..manifest import Manifest
from ..onnxfile import read_manifest
from ..request import find_refusal

DETECTIONS = (1, 10)


@dataclass(frozen=True)
class Configuration:
    """A combination of file, engine, precision and method to measure.

    Attributes:
        model: the file.
        engine: its name in ``ENGINES``, or that of another tool.
        precision: of the arithmetic.
        batch: images explained at once.
        threads: for one run.
        method: of the map; None: plain classification.
        tft: whether the map is thresholded, by the file's reading of TFT.
        detections: of a detector, how many are explained, 0 in plain detection; None for
            classifiers.
    """

    model: str
    engine: str
    precision: Precision
    batch: int
    threads: int
    method: Method | None = None
    tft: bool = False
    detections: int | None = None

    @property
    def plain(self) -> Configuration:
        """Return plain classification, or detection, of the same file by the same engine."""
        none = None if self.detections is None else 0
        return replace(self, method=None, tft=False, detections=none)


@dataclass(frozen=True)
class LeftOut:
    """A combination that cannot be measured, and why."""

    what: str
    reason: str


@dataclass(frozen=True)
class Plan:
    """The combinations to measure, and those that cannot be."""

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
    detections: Sequence[int] | None = None,
) -> Plan:
    """List every combination of the arguments that can be measured, and why others cannot.

    Args:
        models: files made by ``whycam export``.
        engines: by default those installed that ``auto`` would try.
        precisions: of ``engine.PRECISIONS``.
        methods: by default the one whose maps the graph finishes, or Grad-CAM.
        tft: whether to run TFT; both by default.
        batches: batch sizes.
        threads: by default one for each processor.
        detections: of detectors, how many are explained; by default one, and ten.

    Raises:
        RequestError: an engine or method that does not exist, or nothing remains.
        EngineError: a precision that does not exist.
        ModelFileError: a file is missing, damaged, or not made by whycam.
    """
    _check_known("engine", engines or (), tuple(ENGINES))
    _check_known("method", methods or (), METHODS)
    for precision in precisions:
        EngineSettings(precision=cast(Precision, precision))
    configurations: dict[Configuration, None] = {}
    left_out: list[LeftOut] = []
    for model in models:
        manifest = read_manifest(model)
        name = Path(model).name
        if detections is not None and manifest.detector is None:
            raise RequestError(
                f"{name} classifies whole images, and only a detector explains a number of "
                "detections: leave them out"
            )
        counts: Sequence[int | None] = [None]
        if manifest.detector is not None:
            counts = detections or DETECTIONS
            _check_counts(counts, manifest.detector.candidates)
        runnable = list(_runnable(model, manifest, engines, precisions, left_out))
        combinations = list(_combinations(name, manifest, methods, tft, left_out))
        for (engine, precision), batch, count in product(
            runnable, batches, threads or (os.cpu_count() or 1,)
        ):
            none = None if manifest.detector is None else 0
            base = Configuration(model, engine, precision, batch, count, detections=none)
            explained = [
                replace(base, method=method, tft=on, detections=found)
                for (method, on), found in product(combinations, counts)
            ]
            # Classification comes first: engines that compile few shapes then compile its shape.
            configurations |= dict.fromkeys([base, *explained] if explained else [])
    if not configurations:
        raise nothing_remains(left_out)
    return Plan(tuple(configurations), tuple(left_out))


def _check_counts(counts: Sequence[int | None], candidates: int) -> None:
    most = min(MOST_DETECTIONS, candidates)
    for count in counts:
        if count is None or not 1 <= count <= most:
            raise RequestError(f"1 to {most} detections can be explained, not {count}")


def _check_known(kind: str, names: Sequence[str], known: Sequence[str]) -> None:
    for name in names:
        if name not in known:
            raise RequestError(f"there is no {kind} '{name}'; choose from: {', '.join(known)}")


def nothing_remains(left_out: Sequence[LeftOut]) -> RequestError:
    """Build the error for a benchmark without anything to measure."""
    reasons = "; ".join(f"{one.what}: {one.reason}" for one in left_out)
    return RequestError(f"nothing can be measured. {reasons}")


def _runnable(
    model: str,
    manifest: Manifest,
    engines: Sequence[str] | None,
    precisions: Sequence[str],
    left_out: list[LeftOut],
) -> Iterator[tuple[str, Precision]]:
    name, settings = Path(model).name, EngineSettings()
    chosen = engines or [one.name for one in usable(manifest, settings, model)] or ENGINES
    for engine, precision in product(chosen, precisions):
        backend = ENGINES[engine]
        what = f"{name}, {engine} {precision}"
        if (engine == "tensorrt") != is_plan(model):
            left_out.append(LeftOut(what, "plans run in tensorrt, and tensorrt runs plans alone"))
        elif precision not in backend.precisions:
            left_out.append(LeftOut(what, f"{engine} cannot compute in {precision}"))
        elif engine != "tensorrt" and (absent := backend.absent) is not None:
            # The library that a plan needs is named in the plan, and checked when it is loaded.
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
        refusal = find_refusal(manifest, cast(Method, method), on)
        if refusal is None:
            yield cast(Method, method), on
        else:
            left_out.append(LeftOut(f"{name}, {method}{' with TFT' if on else ''}", refusal))
