"""Learn which of TFT's thresholds are worth evaluating, and measure what evaluating fewer loses.

Every threshold of every map is evaluated once, on a calibration set. A Gaussian prior is fitted to
three quarters of the images for each method and reading of TFT (see ``runtime.search``). On the
others the search is replayed with 1 to 8 evaluations and compared with all ten.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import msgspec
import numpy as np

from ..runtime import pipeline, search
from ..runtime.batches import Read, join_batches, run_batches
from ..runtime.cam import Method
from ..runtime.errors import DataError, ImageError
from ..runtime.explainer import Explainer
from ..runtime.onnxfile import read_manifest, with_manifest
from ..runtime.pipeline import ClassMap, Prepared
from ..runtime.request import RequestPlan
from ..runtime.search import Prior
from ..runtime.sweep import Floats, Request, masked_probabilities, sweep
from ..runtime.tft import Mask, Tft, Thresholds
from ..runtime.timing import Tick
from .dataset import Dataset, Sample
from .evaluate import check_measurable, select_methods
from .thresholds_curve import EVALUATIONS, Curve, measure_curve
from .thresholds_prior import SweepRecord, fit_prior, is_held_out

TAUS = tuple(step / 20 for step in range(20))
READINGS: tuple[tuple[Mask, Thresholds], ...] = (("binary", "value"), ("soft", "rank"))
LEAST_IMAGES = 40
_TIMED = 6  # images whose searches are timed

_Key = tuple[Method, Mask, Thresholds]


class LearntThresholds(msgspec.Struct, frozen=True, kw_only=True):
    """The priors learnt from a data set, and what searches by them achieve.

    Attributes:
        model, engine, digest, data: the file, the engine it ran in, and the images.
        images: usable images.
        priors: one for each method and reading.
        curves: in the same order.
        unreadable: images left out, and why.
    """

    model: str
    engine: str
    digest: str
    data: str
    images: int
    priors: tuple[Prior, ...]
    curves: tuple[Curve, ...]
    unreadable: dict[str, str] = msgspec.field(default_factory=dict)


def learn_thresholds(
    explainer: Explainer,
    data: Dataset,
    *,
    methods: Sequence[Method] | None = None,
    readings: Sequence[tuple[Mask, Thresholds]] = READINGS,
    tick: Tick | None = None,
) -> LearntThresholds:
    """Learn the thresholds worth evaluating, for the most probable class of each image.

    Args:
        explainer: of a file with raw outputs and without embedded preprocessing, in any engine.
        data: from ``open_dataset``; every fourth usable image is held out.
        methods: by default those of the paper that the file supports.
        readings: of TFT, as (mask, thresholds).
        tick: called with (name, images done).

    Returns:
        Priors, to be stored in the manifest, and what they achieve on held-out images.

    Raises:
        RequestError: the file does not support a method.
        DataError: fewer than 40 usable images.
    """
    check_measurable(explainer.manifest)
    chosen = select_methods(methods, explainer.manifest.methods)
    _check_count(len(data.samples), data)
    unreadable: dict[str, str] = {}
    records: dict[_Key, SweepRecord] = {
        (method, *reading): SweepRecord() for reading in readings for method in chosen
    }
    timed: dict[Method, list[Request]] = {method: [] for method in chosen}
    count = 0
    work = partial(_sweep_batch, explainer, explainer.plan(chosen), readings)
    for name, image in run_batches(
        explainer.model, explainer.memory, data.samples, lambda sample: sample.path, work
    ):
        if isinstance(image, ImageError):
            unreadable[name] = str(image)
        else:
            _add(image, records)
            if is_held_out(count) and len(timed[chosen[0]]) < _TIMED:
                for method, class_map in image.maps.items():
                    timed[method].append(class_map)
            count += 1
        if tick is not None:
            tick(name, 1)
    _check_count(count, data)
    priors, curves = [], []
    for (method, mask, thresholds), record in records.items():
        prior = fit_prior(record, Tft(mask=mask, thresholds=thresholds, taus=TAUS), method)
        priors.append(prior)
        curves.append(measure_curve(record, prior, _measure_times(explainer, timed[method], prior)))
    return LearntThresholds(
        model=explainer.manifest.model,
        engine=explainer.engine.description,
        digest=explainer.manifest.digest,
        data=f"{data.path} ({data.kind})",
        images=count,
        priors=tuple(priors),
        curves=tuple(curves),
        unreadable=unreadable,
    )


def store_priors(path: Path, priors: Sequence[Prior]) -> None:
    """Store priors in a model file's manifest, replacing those of the same method and reading.

    The graph and its digest stay as they are; the file is replaced whole or not at all.

    Raises:
        ModelFileError: no file made by whycam.
        OutputError: it cannot be written.
    """
    manifest = read_manifest(path)
    merged = {(p.method, p.mask, p.thresholds): p for p in (*manifest.priors, *priors)}
    manifest = msgspec.structs.replace(manifest, priors=tuple(merged.values()))
    with_manifest(path, path, manifest)


def _check_count(count: int, data: Dataset) -> None:
    if count < LEAST_IMAGES:
        raise DataError(
            f"{data.path} has {count} usable images; learning thresholds needs "
            f"{LEAST_IMAGES} or more, better some hundreds"
        )


@dataclass(frozen=True)
class _Image:
    """One image's maps, and the class's probability under each threshold's mask.

    Attributes:
        maps: by method.
        masked: float32 [T] by method and reading.
    """

    maps: dict[Method, ClassMap]
    masked: dict[_Key, Floats]


def _sweep_batch(
    explainer: Explainer,
    plan: RequestPlan,
    readings: Sequence[tuple[Mask, Thresholds]],
    batch: Sequence[Read[Sample]],
) -> list[tuple[str, _Image | ImageError]]:
    """Evaluate every threshold on a batch; return each image's name with its sweep or error."""
    readable = [read for _, read in batch if isinstance(read, Prepared)]
    images: list[_Image] = [_Image({}, {}) for _ in readable]
    if readable:
        model = explainer.model
        inference = pipeline.infer(
            model, join_batches(readable).inputs, [[-1]] * len(readable), plan
        )
        maps = pipeline.map(model, inference, plan)
        for one in maps:
            images[one.row].maps[one.method] = one
        for mask, thresholds in readings:
            settings = Tft(mask=mask, thresholds=thresholds, taus=TAUS)
            masked = masked_probabilities(
                partial(pipeline.classify, model), maps, settings, model.batch
            )
            for one, values in zip(maps, masked, strict=True):
                images[one.row].masked[one.method, mask, thresholds] = values
    remaining = iter(images)
    return [
        (sample.name, read if isinstance(read, ImageError) else next(remaining))
        for sample, read in batch
    ]


def _add(image: _Image, records: dict[_Key, SweepRecord]) -> None:
    features = {
        method: search.features(one.map, np.float32(one.probability))
        for method, one in image.maps.items()
    }
    for key, values in image.masked.items():
        records[key].features.append(features[key[0]])
        records[key].probability.append(image.maps[key[0]].probability)
        records[key].masked.append(values)


def _measure_times(
    explainer: Explainer, requests: Sequence[Request], prior: Prior
) -> dict[int, float]:
    """Measure median milliseconds to threshold one map, by number of evaluations."""
    settings = {
        k: Tft(prior.mask, prior.thresholds, prior.taus, k) for k in range(1, EVALUATIONS + 1)
    }
    settings[len(Tft().taus)] = Tft(prior.mask, prior.thresholds)
    seconds: dict[int, list[float]] = {k: [] for k in settings}
    for request in requests:
        for k, tft in settings.items():
            begin = time.perf_counter()
            sweep(
                partial(pipeline.classify, explainer.model), [request], tft, explainer.batch, prior
            )
            seconds[k].append(time.perf_counter() - begin)
    return {k: 1e3 * float(np.median(values)) for k, values in seconds.items()}
