"""Measure the images of a data set on the workers of a Ray cluster."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from ..runtime.distributed.cluster import run_on_workers
from ..runtime.distributed.coordinator import ClusterModel, Workers
from ..runtime.explainer import Explainer
from .dataset import Classes, Sample
from .measure import measure_samples
from .settings import Settings

_LARGEST = 256  # images of a part, whose rows come together
_PARTS = 8  # of each worker at least, so that they end together


def measure_on_cluster(
    ray: Any, model: ClusterModel, workers: Workers
) -> partial[Iterator[dict[str, Any]]]:
    """Return what ``evaluate`` takes to measure samples on a cluster.

    Every worker must reach the images under the same paths.

    Args:
        ray: from ``cluster.connect``.
        model: that the workers load.
        workers: that share the images.
    """
    return partial(_measure, ray, model, workers)


def _measure(
    ray: Any,
    model: ClusterModel,
    workers: Workers,
    _: Explainer,
    samples: Sequence[Sample],
    classes: Classes,
    settings: Settings,
) -> Iterator[dict[str, Any]]:
    size = max(1, min(_LARGEST, len(samples) // (_PARTS * workers.count)))
    # Paths that are the same wherever a worker runs.
    whole = [
        replace(
            sample,
            path=sample.path.absolute(),
            annotation=None if sample.annotation is None else sample.annotation.absolute(),
        )
        for sample in samples
    ]
    parts = [whole[start : start + size] for start in range(0, len(whole), size)]
    if not parts:
        return
    work = partial(_measure_part, classes=classes, settings=settings)
    for rows in run_on_workers(ray, model, work, parts, workers, ordered=True):
        yield from rows


def _measure_part(
    explainer: Explainer, samples: Sequence[Sample], classes: Classes, settings: Settings
) -> list[dict[str, Any]]:
    return list(measure_samples(explainer, samples, classes, settings))
