"""Measure the maps of a detector: one row for each image, as ``measure`` writes them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..runtime import cam, detect
from ..runtime.batches import Read, join_batches, run_batches
from ..runtime.boxes import overlaps, to_image
from ..runtime.detect import SAME_OBJECT
from ..runtime.detection_plan import DETECTIONS, DetectionPlan, plan_detection
from ..runtime.errors import DataError, ImageError
from ..runtime.explainer import Explainer
from ..runtime.pipeline import Prepared
from ..runtime.preprocess import Placement
from .dataset import Box, Classes, Sample, boxes_of
from .detection_accuracy import count_matches
from .measure import mask_variants, measure_map, seed_of
from .settings import Settings


def measure_detections(
    explainer: Explainer, samples: Sequence[Sample], classes: Classes, settings: Settings
) -> Iterator[dict[str, Any]]:
    """Measure images, in batches; yield a row for each in order.

    Rows are as ``measure.measure_batch`` says, with each detection among ``explained``, and its
    ``box`` in pixels of the image and ``matched``: whether an annotated box of its class overlaps
    it by half, None where the image has no annotation. Maps are measured against that box, and
    where images have no annotation against the detection's own. An annotated image has ``matches``
    of all its detections as well, see ``detection_accuracy.count_matches``.
    """
    plan = plan_detection(
        explainer.manifest,
        methods=settings.methods,
        most=settings.most or DETECTIONS,
        min_score=settings.min_score,
        iou=settings.iou,
    )
    measure = partial(_measure_batch, explainer, plan, classes, settings)
    return run_batches(
        explainer.model, explainer.memory, samples, lambda sample: sample.path, measure
    )


def _measure_batch(
    explainer: Explainer,
    plan: DetectionPlan,
    classes: Classes,
    settings: Settings,
    batch: Sequence[Read[Sample]],
) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    measured: list[tuple[dict[str, Any], Sequence[Box] | None, Prepared]] = []
    for sample, read in batch:
        row: dict[str, Any] = {"name": sample.name}
        rows.append(row)
        if isinstance(read, ImageError):
            row["error"] = str(read)
            continue
        try:
            boxes = boxes_of(sample)
        except DataError as error:
            row["error"] = str(error)
            continue
        row |= {"label": None, "predicted": None, "explained": []}
        measured.append((row, boxes, read))
    if measured:
        _measure_prepared(explainer, plan, classes, settings, measured)
    return rows


def _measure_prepared(
    explainer: Explainer,
    plan: DetectionPlan,
    classes: Classes,
    settings: Settings,
    measured: Sequence[tuple[dict[str, Any], Sequence[Box] | None, Prepared]],
) -> None:
    """Add what was measured to the rows of a batch."""
    model = explainer.model
    prepared = join_batches(read for _, _, read in measured)
    inference, objects = detect.infer(model, prepared.inputs, plan)
    size = model.manifest.size_of(prepared.inputs.shape)
    coarse = detect.map_objects(model, inference, objects, plan)
    maps = [replace(one, map=np.asarray(cam.finish(one.map, size), np.float32)) for one in coarse]
    judge = partial(detect.score_objects, model, objects)
    for row_index, (row, boxes, _) in enumerate(measured):
        if boxes is not None:
            chosen = np.flatnonzero(np.asarray(objects.rows) == row_index)
            placement = prepared.placements[row_index]
            row["matches"] = _count(objects, chosen, placement, size, boxes, classes)
    by_object: dict[int, dict[str, Any]] = {}
    relevant: dict[int, list[Box]] = {}
    left_out: set[int] = set()
    for index, row_index in enumerate(objects.rows):
        row, boxes, _ = measured[row_index]
        placement = prepared.placements[row_index]
        box = to_image(objects.boxes[index], placement, size)
        index_of_class = int(objects.classes[index])
        own = Box(model.manifest.label(index_of_class), *map(float, box))
        match = None if boxes is None else _match(own, boxes, classes, index_of_class)
        if settings.target == "label" and match is None:
            left_out.add(index)
            continue
        relevant[index] = [own] if boxes is None else [] if match is None else [match]
        by_object[index] = {
            "target": index_of_class,
            "probability": float(objects.scores[index]),
            "box": [float(edge) for edge in box],
            "matched": None if boxes is None else match is not None,
            "methods": {},
        }
        row["explained"].append(by_object[index])
    maps = [one for one in maps if one.target not in left_out]
    for one, variants in zip(maps, mask_variants(judge, maps, settings, model.batch), strict=True):
        row, place = measured[one.row][0], prepared.placements[one.row]
        by_object[one.target]["methods"][one.method] = {
            name: measure_map(
                judge, one, name, values, numbers, relevant[one.target], place, settings,
                seed_of(row),
            )
            for name, (values, numbers) in variants.items()
        }  # fmt: skip


def _count(
    objects: detect.Objects,
    chosen: NDArray[np.intp],
    placement: Placement,
    size: tuple[int, int],
    annotated: Sequence[Box],
    classes: Classes,
) -> list[list[int]]:
    """Count the matches of an image's detections with annotated boxes of the network's classes."""
    edges = [to_image(objects.boxes[index], placement, size) for index in chosen]
    indices = [classes.index(box.name) for box in annotated]
    known = [
        (box, index) for box, index in zip(annotated, indices, strict=True) if index is not None
    ]
    return count_matches(
        np.array(edges, np.float32).reshape(-1, 4),
        np.asarray(objects.classes, np.int64)[chosen],
        np.asarray(objects.scores, np.float32)[chosen],
        np.array([_edges(box) for box, _ in known], np.float32).reshape(-1, 4),
        np.array([index for _, index in known], np.int64),
    )


def _match(own: Box, boxes: Sequence[Box], classes: Classes, index: int) -> Box | None:
    """Find the annotated box of a detection's class that overlaps it most, by half at least."""
    alike = [box for box in boxes if classes.index(box.name) == index]
    if not alike:
        return None
    edges = np.array([_edges(box) for box in alike], np.float32)
    shares = overlaps(np.array([_edges(own)], np.float32), edges)[0]
    best = int(shares.argmax())
    return alike[best] if shares[best] >= SAME_OBJECT else None


def _edges(box: Box) -> tuple[float, float, float, float]:
    return box.left, box.top, box.right, box.bottom
