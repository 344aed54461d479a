"""Choose classes and regions to explain, from a segmentation network's scores of each image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from .background import is_background
from .engines.chunks import run_in_chunks
from .errors import EngineError, RequestError
from .explained_region import Floats, RegionSource, average_over_places, weigh_places
from .manifest import Manifest
from .pipeline import Model, Prepared
from .preprocess import Placement

_SCORES = "place_scores"


@dataclass(frozen=True, eq=False)
class Segment:
    """A class and the region whose mean score of it is explained.

    Attributes:
        index: of the class.
        weights: of the places, float32 [h, w].
        area: the share of the network's input that the region covers.
    """

    index: int
    weights: Floats
    area: float


@dataclass(frozen=True, eq=False)
class SegmentRows:
    """What goes through the network: a row for each segment of each image.

    Attributes:
        prepared: the images, each as often as it has segments.
        classes: of each row.
        regions: weights of places, float32 [rows, h, w].
        images: which image each row is of.
        segments: of each row.
    """

    prepared: Prepared
    classes: list[list[int]]
    regions: Floats
    images: list[int]
    segments: list[Segment]


def rows_of_segments(prepared: Prepared, segments: Sequence[Sequence[Segment]]) -> SegmentRows:
    """Give each segment a row of its own, for each has its own region."""
    images = [row for row, chosen in enumerate(segments) for _ in chosen]
    every = [each for chosen in segments for each in chosen]
    repeated = Prepared(
        tuple(prepared.images[row] for row in images),
        prepared.inputs[images],
        tuple(prepared.placements[row] for row in images),
    )
    regions = np.stack([each.weights for each in every])
    return SegmentRows(repeated, [[each.index] for each in every], regions, images, every)


def check_region(manifest: Manifest, region: RegionSource) -> None:
    """Refuse a region for a file that has no scores at places.

    Raises:
        RequestError: the file is no segmentation network's.
    """
    if region is not None and manifest.region is None:
        raise RequestError(
            f"a region is for segmentation networks, which score every place; {manifest.model} has "
            "one answer for the whole image"
        )


def choose_segments(
    model: Model,
    prepared: Prepared,
    classes: Sequence[Sequence[int]],
    regions: Sequence[RegionSource],
) -> list[list[Segment]]:
    """Choose what is explained of each image.

    Of a region that the user gives, rank -1 is the class with the best mean score there. Else it is
    the class that is predicted at most places, the background left out where there is anything
    else, and the region of a class is where it is predicted; everywhere if it is nowhere.

    Args:
        model: a segmentation network.
        prepared: one batch of images.
        classes: for each image indices or ranks.
        regions: for each image.

    Raises:
        RequestError, ImageError: see ``weigh_places``.
        EngineError: the engine failed, or the network returned NaN.
    """
    size = model.manifest.region
    assert size is not None
    needed = [region is None or min(row) < 0 for row, region in zip(classes, regions, strict=True)]
    scores = _place_scores(model, prepared) if any(needed) else None
    found = []
    for row, (wanted, region) in enumerate(zip(classes, regions, strict=True)):
        own = None if scores is None else scores[row]
        found.append(_segments(model.manifest, size, own, wanted, region, prepared.placements[row]))
    return found


def _place_scores(model: Model, prepared: Prepared) -> Floats:
    count = len(prepared.inputs)
    feeds = {"image": prepared.inputs, "target": np.full((count, 1), -1, np.int64)}
    run = partial(model.engine.run, outputs=[_SCORES])
    scores = run_in_chunks(run, feeds, model.manifest, model.batch)[_SCORES]
    if not np.isfinite(scores).all():
        raise EngineError("the network returned NaN or infinite scores: its weights are broken")
    return scores


def _segments(
    manifest: Manifest,
    size: tuple[int, int],
    scores: Floats | None,
    wanted: Sequence[int],
    region: RegionSource,
    placement: Placement,
) -> list[Segment]:
    whole = average_over_places(np.ones(placement.image, np.float32), placement, size)
    if region is not None:
        weights = weigh_places(region, placement, size)
        order = [] if scores is None else _rank_by_mean(scores, weights, manifest)
        return [_segment(_at_rank(index, order), weights, whole) for index in wanted]
    assert scores is not None
    predicted = predict_places(scores, manifest) & (whole > 0)
    order = _rank_by_area(predicted, manifest)
    segments = []
    for each in wanted:
        index = _at_rank(each, order)
        own = predicted[index] * whole
        segments.append(_segment(index, own if own.any() else whole, whole))
    return segments


def _segment(index: int, weights: Floats, whole: Floats) -> Segment:
    return Segment(index, weights, float(weights.sum() / max(float(whole.sum()), 1e-9)))


def _at_rank(index: int, order: Sequence[int]) -> int:
    if index >= 0:
        return index
    if -index > len(order):
        raise RequestError(f"there is no class of rank {index}: {len(order)} classes are ranked")
    return order[-1 - index]


def predict_places(scores: Floats, manifest: Manifest) -> NDArray[np.bool_]:
    """Tell at which places each class is predicted, [C, h, w].

    Args:
        scores: ``place_scores`` of one image.
        manifest: of the file. Classes that exclude each other are predicted where they have the
            best score, others where their probability is above one half; values are everywhere.
    """
    if manifest.task == "binary":
        return np.stack([scores[0] <= 0, scores[0] > 0])
    if manifest.task == "sigmoid":
        return np.asarray(scores > 0)
    if manifest.task == "none":
        return np.ones(scores.shape, np.bool_)
    best = scores.argmax(0)
    return np.asarray(best == np.arange(len(scores))[:, None, None])


def _rank_by_area(predicted: NDArray[np.bool_], manifest: Manifest) -> list[int]:
    areas = predicted.sum((1, 2))
    order = [int(index) for index in np.argsort(-areas, kind="stable")]
    behind = {i for i, label in enumerate(manifest.labels) if is_background(label)}
    if manifest.task == "binary":
        behind = {0}
    # The background comes last, unless there is nothing else.
    first = [index for index in order if index not in behind and areas[index] > 0]
    rest = [index for index in order if index in behind]
    return [*first, *rest, *(i for i in order if i not in behind and areas[i] == 0)]


def _rank_by_mean(scores: Floats, weights: Floats, manifest: Manifest) -> list[int]:
    means = (scores.astype(np.float64) * weights).sum((1, 2))
    if manifest.task == "binary":
        means = np.array([-means[0], means[0]])
    return [int(index) for index in np.argsort(-means, kind="stable")]
