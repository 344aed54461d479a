"""Describe the explanations of an image as a report's page reads them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np

from ..box_drawing import draw_box
from ..explanation import Explanation
from ..manifest import Manifest
from ..preprocess import Placement
from ..targets import RANKS, count_ranks
from .encode import Grid, encode_thumbnail, reduce_map

Edges = tuple[float, float, float, float]


class MapEntry(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One map of an image. Numbers are of the explanation, see there.

    Attributes:
        source: which of the report's models made it, from 0.
        method, index, probability: how it was made, of which class.
        shape: rows and columns of its grid, see ``encode.Grid``.
        low, high: values of the grid's levels 0 and 255.
        reduced: whether the map is finer than its grid.
        threshold, cut, rpi, improved, masked: of thresholding; absent without it, ``threshold``
            also where none improves.
        naive: whether the threshold is the method's customary one.
        share: of the image's pixels that lie in the region above the threshold.
        box: left, top, right, bottom of that region, in pixels of the image; absent where it is
            empty.
        increase, drop: whether the class is more probable in the masked image, and by which share
            it is less probable, as an evaluation measured them.
    """

    method: str
    index: int
    probability: float
    shape: tuple[int, int]
    low: float
    high: float
    source: int = 0
    reduced: bool = False
    threshold: float | None = None
    cut: float = 0.0
    rpi: tuple[float | None, ...] | None = None
    improved: bool | None = None
    masked: float | None = None
    naive: bool = False
    share: float | None = None
    box: tuple[int, int, int, int] | None = None
    increase: bool | None = None
    drop: float | None = None


class ImageEntry(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One image.

    Attributes:
        name: of the file.
        size: (width, height) in pixels.
        inputs: for each model where its input lies, in shares of the image's width and height.
        maps: in the order in which they are shown.
        top: for each model its most probable classes, with their probabilities.
        label: the class that the data states.
        similarity: of two models' maps, by method: their correlation.
    """

    name: str
    size: tuple[int, int]
    inputs: tuple[Edges, ...]
    maps: tuple[MapEntry, ...]
    top: tuple[tuple[tuple[int, float], ...], ...]
    label: int | None = None
    similarity: dict[str, float] = msgspec.field(default_factory=dict)


@dataclass(frozen=True)
class Encoded:
    """An image's entry and what is drawn of it, in base64.

    Attributes:
        entry: its numbers.
        parts: the image, then the grid of each map of the entry.
        labels: names of the classes that the entry has, by their indices.
    """

    entry: ImageEntry
    parts: tuple[str, ...]
    labels: dict[int, str]


def ranks_to_show(manifest: Manifest) -> list[int]:
    """List the ranks of the classes that a report shows of each image: the five most probable."""
    count = manifest.top or count_ranks(manifest.output_heads[0].num_classes)
    return [-rank for rank in range(1, min(RANKS, count) + 1)]


def encode_explanations(
    name: str,
    explanations: Sequence[Sequence[Explanation]],
    label: tuple[int, str] | None = None,
    quality: Mapping[tuple[str, int], tuple[bool, float]] | None = None,
    similarity: Mapping[str, float] | None = None,
) -> Encoded:
    """Encode the explanations of one image.

    Args:
        name: of the file.
        explanations: for each model, at least one, of any methods and classes; those of a class
            and method that came before are left out.
        label: the class that the data states, with its name.
        quality: increase and drop of the first model's maps, by method and class.
        similarity: of the two models' maps, by method.
    """
    first = explanations[0][0]
    height, width = first.image.shape[:2]
    maps: list[MapEntry] = []
    shown = first.image
    if first.box is not None:
        shown = np.array(shown, order="C")
        draw_box(shown, first.box, edge=first.edge)
    parts = [encode_thumbnail(shown)]
    labels = {} if label is None else {label[0]: label[1]}
    for source, listed in enumerate(explanations):
        merge_labels(labels, {score.index: score.label for score in listed[0].top})
        known: set[tuple[str, int]] = set()
        for one in listed:
            merge_labels(labels, {one.index: one.label})
            if (one.method, one.index) in known:
                continue
            known.add((one.method, one.index))
            grid = reduce_map(one.original_map)
            parts.append(grid.encode())
            measured = None if source or quality is None else quality.get((one.method, one.index))
            maps.append(_entry(one, source, grid, measured))
    entry = ImageEntry(
        name=name,
        size=(width, height),
        inputs=tuple(_edges(listed[0].placement) for listed in explanations),
        maps=tuple(maps),
        top=tuple(
            tuple((score.index, score.probability) for score in listed[0].top)
            for listed in explanations
        ),
        label=None if label is None else label[0],
        similarity=dict(similarity or {}),
    )
    return Encoded(entry, tuple(parts), labels)


def merge_labels(labels: dict[int, str], others: Mapping[int, str]) -> None:
    """Add names of classes; where only one of two files holds names, these are kept."""
    for index, name in others.items():
        if name != str(index) or index not in labels:
            labels[index] = name


def _edges(placement: Placement) -> Edges:
    height, width = placement.image
    return (
        placement.left / width,
        placement.top / height,
        placement.right / width,
        placement.bottom / height,
    )


def _entry(
    one: Explanation, source: int, grid: Grid, measured: tuple[bool, float] | None
) -> MapEntry:
    rows, columns = grid.levels.shape
    increase, drop = measured or (None, None)
    entry = MapEntry(
        source=source,
        method=one.method,
        index=one.index,
        probability=one.probability,
        shape=(rows, columns),
        low=grid.low,
        high=grid.high,
        reduced=grid.is_reduced,
        increase=increase,
        drop=drop,
    )
    if one.threshold is None and one.rpi is None:
        return entry
    rpi = None
    if one.rpi is not None:
        rpi = tuple(None if np.isnan(value) else float(value) for value in one.rpi)
    return msgspec.structs.replace(
        entry,
        threshold=one.threshold,
        cut=one.cut,
        rpi=rpi,
        improved=one.improved,
        masked=one.masked_probability,
        naive=one.tft is None,
        share=one.region.share,
        box=one.region.box,
    )
