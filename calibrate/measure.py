"""Measure the maps of a batch of images: one row for each image, ready for JSON."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..runtime import pipeline, tft
from ..runtime.batches import Read, join_batches, run_batches
from ..runtime.errors import DataError, ImageError
from ..runtime.explainer import Explainer
from ..runtime.pipeline import ClassMap, Prepared
from ..runtime.preprocess import Placement, to_image
from ..runtime.sweep import Choice, Classify, Request, masked_image, mute_lowest, sweep
from .cross_asked import ask
from .dataset import Box, Classes, Sample, boxes_of
from .quality import (
    drops,
    energy_inside,
    gini,
    increases,
    insertion_deletion,
    pointing,
    region_iou,
)
from .road import road
from .settings import Settings, Variant
from .stability import stability

Floats = NDArray[np.float32]


def measure_samples(
    explainer: Explainer,
    samples: Sequence[Sample],
    classes: Classes,
    settings: Settings,
    asked: Explainer | None = None,
) -> Iterator[dict[str, Any]]:
    """Measure images, in batches; yield a row for each in order, see ``measure_batch``."""
    measure = partial(measure_batch, explainer, classes=classes, settings=settings, asked=asked)
    return run_batches(
        explainer.model, explainer.memory, samples, lambda sample: sample.path, measure
    )


def measure_batch(
    explainer: Explainer,
    batch: Sequence[Read[Sample]],
    classes: Classes,
    settings: Settings,
    asked: Explainer | None = None,
) -> list[dict[str, Any]]:
    """Measure a batch of images; return one row for each, ready for JSON.

    A row holds the image's ``name``, and

    - ``error``: why it cannot be read; or ``skipped``: why it is not measured; or else
    - ``label``: the class that the data states, where accuracy is measured, or None;
    - ``predicted``: the most probable class;
    - ``present``, ``probabilities``: of independent labels, those that the image has (None: not
      known), and the probabilities of ``settings.labels``;
    - ``explained``: for each class explained its ``target``, ``probability`` and ``methods``, the
      measures of a map by method and variant.
    """
    rows: list[dict[str, Any]] = [
        {"name": sample.name, "error": str(read)}
        if isinstance(read, ImageError)
        else _begin_row(sample, classes, settings)
        for sample, read in batch
    ]
    # Of those that can be measured: their row, annotated boxes and prepared image.
    measured = [
        (row, row.pop("boxes"), read)
        for row, (_, read) in zip(rows, batch, strict=True)
        if "boxes" in row and isinstance(read, Prepared)
    ]
    if not measured:
        return rows
    model, plan = explainer.model, explainer.plan(settings.methods)
    prepared = join_batches(read for _, _, read in measured)
    targets = [_select_targets(row, settings) for row, _, _ in measured]
    # An image without a label to explain is classified all the same.
    inference = pipeline.infer(model, prepared.inputs, [row or [-1] for row in targets], plan)
    for (row, _, _), classes_explained, probabilities in zip(
        measured, targets, inference.probabilities, strict=True
    ):
        row["predicted"] = int(probabilities.argmax())
        if settings.labels:
            row["probabilities"] = [float(probabilities[index]) for index in settings.labels]
        row["explained"] = [{} for _ in classes_explained]
    maps = [one for one in pipeline.map(model, inference, plan) if targets[one.row]]
    judge = partial(pipeline.classify, explainer.model)
    by_map = mask_variants(judge, maps, settings, explainer.model.batch)
    if asked is not None:
        shown = [
            (one, *each) for one, own in zip(maps, by_map, strict=True) for each in own.values()
        ]
        ask(asked, prepared.inputs, shown, settings.tft.mask)
    stable: Sequence[Mapping[str, float]] = [{}] * len(maps)
    if settings.stability:
        stable = stability(explainer, plan, maps, [seed_of(row) for row, _, _ in measured])
    for one, variants, steady in zip(maps, by_map, stable, strict=True):
        if "original" in variants:
            variants["original"][1].update(steady)
        row, boxes, _ = measured[one.row]
        explained = row["explained"][one.column]
        explained |= {"target": one.target, "probability": one.probability}
        relevant, place = select_boxes(boxes, classes, one.target), prepared.placements[one.row]
        explained.setdefault("methods", {})[one.method] = {
            name: measure_map(
                judge, one, name, values, numbers, relevant, place, settings, seed_of(row)
            )
            for name, (values, numbers) in variants.items()
        }
    return rows


def _begin_row(sample: Sample, classes: Classes, settings: Settings) -> dict[str, Any]:
    """Return the labels and boxes of an image, or the reason to leave it out."""
    label = classes.index(sample.label) if settings.accuracy else None
    present = _present_labels(sample, classes) if settings.labels else None
    try:
        boxes = boxes_of(sample) or ()
    except DataError as error:
        return {"name": sample.name, "error": str(error)}
    if settings.target == "label" and label is None and present is None:
        return {"name": sample.name, "skipped": "it has no label that is a class of the network"}
    row = {"name": sample.name, "label": label, "boxes": boxes}
    return row | ({"present": present} if settings.labels else {})


def _present_labels(sample: Sample, classes: Classes) -> list[int] | None:
    """List the classes that an image has; None where the data do not say."""
    if sample.labels is None:
        return None
    indices = {classes.index(label) for label in sample.labels}
    return sorted(index for index in indices if index is not None)


def _select_targets(row: dict[str, Any], settings: Settings) -> list[int]:
    """List the classes to explain, be it none, as indices or the rank -1."""
    if settings.target == "predicted":
        return [-1]
    return list(row["present"]) if settings.labels else [row["label"]]


# By variant: its map, and the numbers measured so far.
_Variants = dict[Variant, tuple[Floats, dict[str, Any]]]


def mask_variants(
    judge: Classify, maps: Sequence[ClassMap], settings: Settings, batch: int
) -> list[_Variants]:
    """Make each variant of each map, with what the masked image scores.

    Args:
        judge: returns the scores of masked images, [B, C]; a map's own is the column of its target.
        maps: of the input's size.
        settings: of the evaluation.
        batch: masked images of one run, at most.
    """
    by_map: list[_Variants] = [{} for _ in maps]
    pending: list[tuple[_Variants, Variant, ClassMap, Floats]] = []
    choices: Sequence[Choice | None] = [None] * len(maps)
    if "tft" in settings.variants:
        choices = sweep(judge, maps, settings.tft, batch)
    for one, into, choice in zip(maps, by_map, choices, strict=True):
        if "original" in settings.variants or (choice is not None and not choice.improved):
            pending.append((into, "original", one, one.map))
        if "naive" in settings.variants and one.method in tft.NAIVE:
            pending.append((into, "naive", one, mute_lowest(one, tft.NAIVE[one.method]).map))
    for start in range(0, len(pending), batch):  # an image may have many labels
        chunk = pending[start : start + batch]
        images = np.stack(
            [
                masked_image(one.image, tft.mask_of(values, settings.tft.mask), one.layout)
                for _, _, one, values in chunk
            ]
        )
        for (into, variant, one, values), row in zip(chunk, judge(images), strict=True):
            into[variant] = values, {"masked": float(row[one.target])}
    for into, choice in zip(by_map, choices, strict=True):
        if choice is not None:
            masked = choice.masked_probability if choice.improved else into["original"][1]["masked"]
            into["tft"] = (
                choice.map,
                {
                    "masked": masked,
                    "threshold": choice.threshold,
                    "improved": choice.improved,
                    "rpi": [float(value) for value in choice.rpi],
                },
            )
        if "original" not in settings.variants:
            into.pop("original", None)
    return by_map


def select_boxes(boxes: Sequence[Box], classes: Classes, index: int) -> list[Box]:
    """Return the boxes of the explained class; all, if the network knows none of the names."""
    known = {box.name: classes.index(box.name) for box in boxes}
    if any(value is not None for value in known.values()):
        return [box for box in boxes if known[box.name] == index]
    return list(boxes)


def seed_of(row: Mapping[str, Any]) -> int:
    """Choose an image's seed, so that a resumed evaluation gives the same numbers."""
    return zlib.crc32(row["name"].encode())


def measure_map(
    judge: Classify,
    request: Request,
    variant: Variant,
    values: Floats,
    numbers: dict[str, Any],
    boxes: Sequence[Box],
    place: Placement,
    settings: Settings,
    seed: int,
) -> dict[str, Any]:
    """Measure one variant of a map.

    Args:
        judge: as for ``mask_variants``.
        request: the whole map, and what is explained.
        variant, values, numbers: from ``mask_variants``.
        boxes: of the object; none: nothing is measured against them.
        place: where the input lies in the image.
        settings: of the evaluation.
        seed: of the image.
    """
    masked = numbers["masked"]
    measures = {
        **numbers,
        "increase": bool(increases(masked, request.probability)),
        "drop": float(drops(masked, request.probability)),
        "coverage": float(tft.mask_of(values, settings.tft.mask).mean()),
        "sparsity": gini(values),
    }
    if boxes:
        edges = [(box.left, box.top, box.right, box.bottom) for box in boxes]
        over = to_image(values, place)
        # A map that is not thresholded is above 0 nearly everywhere.
        cut = 0.0 if variant == "naive" or numbers.get("improved") else 0.5
        measures |= {
            "pointing": pointing(over, edges),
            "energy": energy_inside(over, edges),
            "iou": region_iou(over, edges, cut),
        }
    if settings.road:
        most, least = road(judge, request.image, values, request.target, seed, request.layout)
        measures |= {"road_most": most, "road_least": least}
    if settings.curve_steps:
        insertion, deletion = insertion_deletion(
            judge,
            request.image,
            values,
            request.target,
            settings.curve_steps,
            request.layout,
        )
        measures |= {"insertion": insertion, "deletion": deletion}
    return measures
