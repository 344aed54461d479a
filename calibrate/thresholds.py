"""Learn which thresholds of TFT are worth trying, and measure what trying only those loses.

Every threshold of every map is tried once, on a calibration set. From three quarters of the
images a Gaussian prior is fitted for each method and reading of TFT (see ``runtime.search``);
on the others the search is replayed with 1 to 8 evaluations and compared with trying all ten.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Sequence
from csv import DictWriter
from dataclasses import dataclass, field
from functools import partial
from itertools import combinations
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from ..runtime import pipeline, search
from ..runtime.batches import Read, join_batches, run_batches
from ..runtime.cam import Method
from ..runtime.errors import DataError, ImageError
from ..runtime.explainer import Explainer
from ..runtime.onnxfile import read_manifest, with_manifest
from ..runtime.pipeline import ClassMap, Prepared
from ..runtime.request import RequestPlan
from ..runtime.search import Prior
from ..runtime.sweep import Request, masked_probabilities, sweep
from ..runtime.tft import Mask, Tft, Thresholds
from .dataset import Dataset, Sample
from .evaluate import check_measurable, select_methods

Tick = Callable[[str, int], None]
Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]

TAUS = tuple(step / 20 for step in range(20))
READINGS: tuple[tuple[Mask, Thresholds], ...] = (("binary", "value"), ("soft", "rank"))
LEAST_IMAGES = 40
FORWARDS = 8
_HELD_OUT = 4  # of so many images the last is held out
_FIXED = (3, 4)
_RIDGE = 100.0  # on standardised features
_JITTER = 1e-4  # added to the variances, so that the covariance can be inverted
_TIMED = 6  # images whose searches are timed


class Point(msgspec.Struct, frozen=True, kw_only=True):
    """What a number of evaluations achieves on the held-out images.

    Attributes:
        forwards: evaluations of the network for each map, at most.
        taus: the thresholds, where they are always the same; empty for a search.
        average_increase: share of images whose masked image has the higher probability.
        average_increase_standard_error: of that share.
        increase_kept: what that gains over the map as it is, as a share of what all ten
            thresholds gain; None where these gain nothing.
        mean_rpi: largest relative probability increase found, mean.
        rpi_kept: the same as a share of that of all ten; None where that is 0.
        milliseconds: median time of one map's sweep or search, alone; None where not measured.
    """

    forwards: int
    taus: tuple[float, ...] = ()
    average_increase: float
    average_increase_standard_error: float
    increase_kept: float | None
    mean_rpi: float
    rpi_kept: float | None
    milliseconds: float | None = None


class Curve(msgspec.Struct, frozen=True, kw_only=True):
    """Results of one method in one reading of TFT, by number of evaluations.

    Attributes:
        method, mask, thresholds: which.
        learnt_from, held_out: images.
        original_average_increase: of the map as it is.
        every: all ten thresholds of ``Tft``.
        search: with 1, 2, ... evaluations.
        fixed: the same thresholds for every map: the best three and four of those learnt from.
    """

    method: Method
    mask: Mask
    thresholds: Thresholds
    learnt_from: int
    held_out: int
    original_average_increase: float
    every: Point
    search: tuple[Point, ...]
    fixed: tuple[Point, ...]


class LearntThresholds(msgspec.Struct, frozen=True, kw_only=True):
    """The thresholds learnt from a data set, and how well searching them works.

    Attributes:
        model, engine, digest, data: what was run, and on which images.
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

    def to_csv(self) -> str:
        """Format as CSV, one line a point; ``tried`` is ``search``, ``fixed`` or ``every``."""
        text = io.StringIO()
        names = [name for name in Point.__struct_fields__ if name != "taus"]
        writer = DictWriter(text, ["method", "mask", "thresholds", "tried", *names, "taus"])
        writer.writeheader()
        for curve in self.curves:
            of = {"method": curve.method, "mask": curve.mask, "thresholds": curve.thresholds}
            for tried, points in (
                ("search", curve.search),
                ("fixed", curve.fixed),
                ("every", (curve.every,)),
            ):
                for point in points:
                    row = msgspec.structs.asdict(point)
                    row["taus"] = " ".join(f"{tau:g}" for tau in point.taus)
                    writer.writerow({**of, "tried": tried, **row})
        return text.getvalue()


@dataclass
class SweepRecord:
    """The sweeps of N images, for one method in one reading of TFT.

    Attributes:
        features: float32 [F] each.
        probability: of the class explained, for the whole image.
        masked: float32 [T] each, the same for the image under each threshold's mask.
    """

    features: list[Floats] = field(default_factory=list)
    probability: list[float] = field(default_factory=list)
    masked: list[Floats] = field(default_factory=list)

    def arrays(self) -> tuple[Floats, Floats, Floats]:
        """Stack the lists: features [N, F], probability [N], masked [N, T]."""
        return (
            np.stack(self.features),
            np.array(self.probability, np.float32),
            np.stack(self.masked),
        )


def learn_thresholds(
    explainer: Explainer,
    data: Dataset,
    *,
    methods: Sequence[Method] | None = None,
    readings: Sequence[tuple[Mask, Thresholds]] = READINGS,
    tick: Tick | None = None,
) -> LearntThresholds:
    """Learn the thresholds worth trying, for the most probable class of each image.

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
    swept = {(method, *reading): SweepRecord() for reading in readings for method in chosen}
    timed: dict[Method, list[Request]] = {method: [] for method in chosen}
    count = 0
    work = partial(_sweep_batch, explainer, explainer.plan(chosen), readings)
    for name, image in run_batches(
        explainer.model, explainer.memory, data.samples, lambda sample: sample.path, work
    ):
        if isinstance(image, ImageError):
            unreadable[name] = str(image)
        else:
            _add(image, swept)
            if _is_held_out(count):
                for method, one in image.maps.items():
                    timed[method] += [one] if len(timed[method]) < _TIMED else []
            count += 1
        if tick is not None:
            tick(name, 1)
    _check_count(count, data)
    priors, curves = [], []
    for (method, mask, thresholds), sweeps in swept.items():
        prior = fit(sweeps, Tft(mask=mask, thresholds=thresholds, taus=TAUS), method)
        priors.append(prior)
        curves.append(_curve(sweeps, prior, _times(explainer, timed[method], prior)))
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
    every = {(p.method, p.mask, p.thresholds): p for p in (*manifest.priors, *priors)}
    manifest = msgspec.structs.replace(manifest, priors=tuple(every.values()))
    with_manifest(path, path, manifest)


def _check_count(count: int, data: Dataset) -> None:
    if count < LEAST_IMAGES:
        raise DataError(
            f"{data.path} has {count} usable images; learning thresholds needs "
            f"{LEAST_IMAGES} or more, better some hundreds"
        )


def _is_held_out(place: int) -> bool:
    return place % _HELD_OUT == _HELD_OUT - 1


def _held_out(count: int) -> NDArray[np.bool_]:
    return np.array([_is_held_out(place) for place in range(count)])


@dataclass(frozen=True)
class _Image:
    """One image's maps, and the class's probability under each threshold's mask.

    Attributes:
        maps: one a method.
        masked: float32 [T] by method and reading.
    """

    maps: dict[Method, ClassMap]
    masked: dict[tuple[Method, Mask, Thresholds], Floats]


def _sweep_batch(
    explainer: Explainer,
    plan: RequestPlan,
    readings: Sequence[tuple[Mask, Thresholds]],
    batch: Sequence[Read[Sample]],
) -> list[tuple[str, _Image | ImageError]]:
    """Try every threshold on a batch; return each image's name with its sweep or its error."""
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
            swept = masked_probabilities(
                partial(pipeline.classify, model), maps, settings, model.batch
            )
            for one, values in zip(maps, swept, strict=True):
                images[one.row].masked[one.method, mask, thresholds] = values
    rest = iter(images)
    return [
        (sample.name, read if isinstance(read, ImageError) else next(rest))
        for sample, read in batch
    ]


def _add(image: _Image, swept: dict[tuple[Method, Mask, Thresholds], SweepRecord]) -> None:
    features = {
        method: search.features(one.map, np.float32(one.probability))
        for method, one in image.maps.items()
    }
    for key, values in image.masked.items():
        swept[key].features.append(features[key[0]])
        swept[key].probability.append(image.maps[key[0]].probability)
        swept[key].masked.append(values)


def fit(swept: SweepRecord, settings: Tft, method: Method) -> Prior:
    """Fit a prior: ridge regression of the gains on the features, and the residuals' covariance.

    Held-out images are left out. B = argmin |Y - X B|^2 + 100 |B|^2 on standardised features
    X, the constant's row of B unpenalised; S = E^T E / N + 1e-4 I with E = Y - X B.
    """
    features, probability, masked = swept.arrays()
    train = ~_held_out(len(probability))
    x = features[train].astype(np.float64)
    y = _gains(probability, masked)[train].astype(np.float64)
    mean, scale = x.mean(0), x.std(0)
    mean[0], scale[0] = 0, 1
    scale[scale < 1e-6] = 1  # a feature that never changed says nothing
    x = (x - mean) / scale
    penalty = _RIDGE * np.eye(search.FEATURES)
    penalty[0, 0] = 0
    coefficients = np.linalg.solve(x.T @ x + penalty, x.T @ y)
    rest = y - x @ coefficients
    covariance = rest.T @ rest / len(x) + _JITTER * np.eye(y.shape[1])
    return Prior(
        method=method,
        mask=settings.mask,
        thresholds=settings.thresholds,
        taus=settings.taus,
        mean=_rounded(mean),
        scale=_rounded(scale),
        coefficients=tuple(map(_rounded, coefficients)),
        covariance=tuple(map(_rounded, covariance)),
        images=len(x),
    )


def _rounded(row: Doubles) -> tuple[float, ...]:
    return tuple(float(f"{value:.6g}") for value in row)


def _gains(probability: Floats, masked: Floats) -> Floats:
    return np.asarray(search.logit(masked) - search.logit(probability)[..., None])


def replay(prior: Prior, features: Floats, probability: Floats, masked: Floats) -> NDArray[np.intp]:
    """Replay a search of 8 evaluations on known answers; return the thresholds it tries, in order.

    Args:
        prior: what it starts from.
        features: [N, F].
        probability: [N].
        masked: [N, T].

    Returns:
        int [N, 8].
    """
    gains = _gains(probability, masked)
    belief = search.begin(prior, features)
    tried = []
    for _ in range(min(FORWARDS, len(prior.taus))):
        step = search.next_step(belief)
        tried.append(step.argmax(-1))
        belief = search.observe(belief, step, (gains * step).sum(-1))
    return np.stack(tried, axis=-1)


def _curve(swept: SweepRecord, prior: Prior, times: dict[int, float]) -> Curve:
    features, probability, masked = swept.arrays()
    held_out = _held_out(len(probability))
    p, m = probability[held_out], masked[held_out]
    tried = replay(prior, features[held_out], p, m)
    measure = _Measure(p, m)
    sets = [_best_set(probability[~held_out], masked[~held_out], size) for size in _FIXED]
    return Curve(
        method=prior.method,
        mask=prior.mask,
        thresholds=prior.thresholds,
        learnt_from=prior.images,
        held_out=len(p),
        original_average_increase=float((m[:, 0] > p).mean()),
        every=measure.of(m[:, _TENTHS], times.get(len(_TENTHS))),
        search=tuple(
            measure.of(np.take_along_axis(m, tried[:, :k], 1), times.get(k))
            for k in range(1, tried.shape[1] + 1)
        ),
        fixed=tuple(
            measure.of(m[:, list(places)], None, tuple(prior.taus[i] for i in places))
            for places in sets
        ),
    )


# TFT's ten default thresholds. The first of all, 0, mutes nothing: the map as it is.
_TENTHS = [TAUS.index(tau) for tau in Tft().taus]


class _Measure:
    """Compares masked probabilities [N, k] with those of all ten thresholds."""

    def __init__(self, probability: Floats, masked: Floats) -> None:
        self._p = probability
        self._original = masked[:, 0] > probability
        every = masked[:, _TENTHS].max(1)
        self._gain = float((every > probability).mean() - self._original.mean())
        self._rpi = self._mean_rpi(every)

    def _mean_rpi(self, best: Floats) -> float:
        return float((np.maximum(best - self._p, 0) / np.maximum(self._p, 1e-30)).mean())

    def of(self, masked: Floats, milliseconds: float | None, taus: tuple[float, ...] = ()) -> Point:
        best = masked.max(1)
        # Where nothing tried improves, the map stays as it is.
        increase = (best > self._p) | self._original
        share, rpi = float(increase.mean()), self._mean_rpi(best)
        gained = share - float(self._original.mean())
        return Point(
            forwards=masked.shape[1],
            taus=taus,
            average_increase=share,
            average_increase_standard_error=float(np.sqrt(share * (1 - share) / len(best))),
            increase_kept=gained / self._gain if self._gain > 0 else None,
            mean_rpi=rpi,
            rpi_kept=rpi / self._rpi if self._rpi > 0 else None,
            milliseconds=milliseconds,
        )


def _best_set(probability: Floats, masked: Floats, size: int) -> tuple[int, ...]:
    """Find the fixed set of thresholds with the largest average increase, then mean rpi."""
    above = masked > probability[:, None]
    rpi = np.maximum(masked - probability[:, None], 0) / np.maximum(probability[:, None], 1e-30)

    def worth(places: tuple[int, ...]) -> tuple[float, float]:
        chosen = list(places)
        increase = above[:, chosen].any(1) | above[:, 0]
        return float(increase.mean()), float(rpi[:, chosen].max(1).mean())

    return max(combinations(range(masked.shape[1]), size), key=worth)


def _times(explainer: Explainer, requests: Sequence[Request], prior: Prior) -> dict[int, float]:
    """Measure median milliseconds of one map's search, and of all ten thresholds."""
    settings = {k: Tft(prior.mask, prior.thresholds, prior.taus, k) for k in range(1, FORWARDS + 1)}
    settings[len(_TENTHS)] = Tft(prior.mask, prior.thresholds)
    seconds: dict[int, list[float]] = {k: [] for k in settings}
    for request in requests:
        for k, tft in settings.items():
            begin = time.perf_counter()
            sweep(
                partial(pipeline.classify, explainer.model), [request], tft, explainer.batch, prior
            )
            seconds[k].append(time.perf_counter() - begin)
    return {k: 1e3 * float(np.median(values)) for k, values in seconds.items()}
