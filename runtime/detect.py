"""Detect objects in images and explain each, by the steps of ``pipeline``.

prepared = pipeline.prepare(images, model.manifest)
found = detect_prepared(model, prepared, plan_detection(model.manifest))
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from . import boxes as geometry_of
from . import cam, pipeline
from .batches import Read, join_batches, run_batches
from .boxes import Box, Boxes
from .cam import Method
from .detection import Detection
from .detection_plan import DETECTIONS, DetectionPlan
from .engines.chunks import run_in_chunks
from .errors import EngineError, ImageError
from .explanation import with_choice
from .images import ImageSource, RGBImage
from .manifest import Manifest
from .pipeline import ClassMap, Inference, Inputs, Model, Prepared
from .pixels import show_pixels
from .preprocess import Placement
from .sweep import Floats
from .targets import ClassScore
from .tft import Tft
from .threads import one_blas_thread

# A masked image's detection is the same object if its box overlaps by half, as Pascal VOC counts.
SAME_OBJECT = 0.5
_ALWAYS = ("detections", "scores", "boxes")
_CANDIDATES = ("candidate_scores", "candidate_boxes")
Mark = Callable[[str], None]
_Item = TypeVar("_Item")


@dataclass(frozen=True, eq=False)
class Objects:
    """The objects found in a batch of images, in the order of images and of their scores.

    Attributes:
        rows, columns: int64 [R]: the image of each, and its place among that image's.
        candidates, classes: int64 [R].
        scores: float32 [R].
        boxes: float32 [R, 4], in pixels of the input.
    """

    rows: NDArray[np.int64]
    columns: NDArray[np.int64]
    candidates: NDArray[np.int64]
    classes: NDArray[np.int64]
    scores: Floats
    boxes: Boxes


@dataclass(frozen=True, eq=False)
class ImageDetections:
    """The detections of one image.

    Attributes:
        image: uint8 [h, w, 3], RGB, as explanations show it.
        placement: where the network's input lies in it.
        by_method: by method the detections, the best first; may be none.
    """

    image: RGBImage
    placement: Placement
    by_method: dict[Method, list[Detection]]


def score_candidates(model: Model, inputs: Inputs) -> tuple[Floats, Boxes]:
    """Compute scores and boxes of all candidates, without maps.

    Args:
        model: the detector.
        inputs: from ``pipeline.prepare``, [N, ...].

    Returns:
        float32 [N, A, C] in [0, 1], and float32 [N, A, 4] in pixels of the input.

    Raises:
        EngineError: the engine failed, or the network returned NaN.
    """
    feeds = {"image": inputs, "target": np.zeros((len(inputs), 1, 2), np.int64)}
    run = partial(model.engine.run, outputs=_CANDIDATES)
    found = run_in_chunks(run, feeds, model.manifest, model.batch)
    scores, boxes = (found[name] for name in _CANDIDATES)
    return _finite(scores), _finite(boxes)


def find_boxes(model: Model, inputs: Inputs, most: int = DETECTIONS) -> Floats:
    """Detect without explaining: what plain use of the file costs, suppression included.

    Args:
        model: the detector.
        inputs: from ``pipeline.prepare``, [N, ...].
        most: detections of an image, at most.

    Returns:
        The scores of the best detections, float32 [N, most], 0 where there are none left.

    Raises:
        EngineError: the engine failed, or the network returned NaN.
    """
    detector = model.manifest.detector
    assert detector is not None
    if detector.ranks:
        feeds = {"image": inputs, "target": np.full((len(inputs), most, 2), -1, np.int64)}
        run = partial(model.engine.run, outputs=_ALWAYS)
        return _finite(run_in_chunks(run, feeds, model.manifest, model.batch)["scores"])
    found = np.zeros((len(inputs), most), np.float32)
    for row, (own, places) in enumerate(zip(*score_candidates(model, inputs), strict=True)):
        pairs = geometry_of.suppress(own, places, most, detector.min_score, detector.iou)
        found[row, : len(pairs)] = own[pairs[:, 0], pairs[:, 1]]
    return found


def score_objects(model: Model, objects: Objects, inputs: Inputs) -> Floats:
    """Compute how well objects are still found in other images, as ``sweep`` asks for classes.

    Args:
        model: the detector.
        objects: R of them.
        inputs: masked images, [B, ...].

    Returns:
        float32 [B, R]: for each object the best score of its class among the candidates that
        overlap its box by ``SAME_OBJECT``; 0 where there is none.
    """
    scores, boxes = score_candidates(model, inputs)
    found = np.zeros((len(inputs), len(objects.rows)), np.float32)
    for row, (own, places) in enumerate(zip(scores, boxes, strict=True)):
        near = geometry_of.overlaps(objects.boxes, places) >= SAME_OBJECT
        found[row] = np.where(near, own[:, objects.classes].T, 0).max(1)
    return found


def infer(model: Model, inputs: Inputs, plan: DetectionPlan) -> tuple[Inference, Objects]:
    """Find the objects of a batch, and compute their maps.

    The graph does both in one run where it can choose what is explained; else candidates are
    computed first, and suppressed here.

    Args:
        model: the detector.
        inputs: from ``pipeline.prepare``, [N, ...].
        plan: from ``plan_detection``.

    Raises:
        EngineError: the engine failed, or the network returned NaN.
    """
    targets = _targets(model, inputs, plan)
    # An image of fewer objects repeats its first one; with none it explains candidate 0 in vain.
    widest = max([1, *(len(row) for row in targets)])
    filled = np.zeros((len(inputs), widest, 2), np.int64)
    for row, pairs in enumerate(targets):
        filled[row] = pairs[0] if len(pairs) else 0
        filled[row, : len(pairs)] = pairs
    outputs: dict[str, NDArray[Any]] = {}
    counts = [len(row) for row in targets]
    if any(counts):
        feeds = {"image": inputs, "target": filled}
        run = partial(model.engine.run, outputs=plan.request.outputs)
        # The gradient of each detection takes as much memory as an image.
        outputs = run_in_chunks(run, feeds, model.manifest, max(1, model.batch // widest))
        counts = _count_found(outputs, counts, plan)
    rows = np.repeat(np.arange(len(counts)), counts)
    columns = np.concatenate([np.arange(count) for count in counts]).astype(np.int64)
    chosen = outputs.get("detections", filled)[rows, columns]
    empty = np.zeros((len(inputs), widest, 4), np.float32)
    objects = Objects(
        rows=rows,
        columns=columns,
        candidates=chosen[:, 0],
        classes=chosen[:, 1],
        scores=_finite(outputs.get("scores", empty[..., 0]))[rows, columns],
        boxes=_finite(outputs.get("boxes", empty)[rows, columns]),
    )
    return Inference(inputs, outputs, tuple(counts)), objects


def _targets(model: Model, inputs: Inputs, plan: DetectionPlan) -> Sequence[NDArray[np.int64]]:
    """List for each image what the graph is asked to explain: pairs, or as many ranks."""
    if plan.pairs is not None:
        return [np.array(plan.pairs, np.int64)] * len(inputs)
    if plan.in_graph:
        return [np.full((plan.most, 2), -1, np.int64)] * len(inputs)
    scores, boxes = score_candidates(model, inputs)
    return [
        geometry_of.suppress(own, places, plan.most, plan.min_score, plan.iou, plan.classes)
        for own, places in zip(scores, boxes, strict=True)
    ]


def _count_found(
    outputs: dict[str, NDArray[Any]], asked: list[int], plan: DetectionPlan
) -> list[int]:
    """Count each image's objects: the graph's ranks end where there are none, or too weak ones."""
    if not plan.in_graph:
        return asked
    there = (outputs["detections"][..., 0] >= 0) & (outputs["scores"] > plan.min_score)
    # They come by their scores, so the first that is absent ends them.
    return [int(row.argmin()) if not row.all() else len(row) for row in there]


def _finite(values: NDArray[Any]) -> NDArray[np.float32]:
    if not np.isfinite(values).all():
        raise EngineError(
            "the network returned NaN or infinite scores or boxes: its weights are broken, or the "
            "precision is too low for it"
        )
    return np.asarray(values, np.float32)


def map_objects(
    model: Model, inference: Inference, objects: Objects, plan: DetectionPlan
) -> tuple[ClassMap, ...]:
    """Take the maps that the graph finished: for each object and method, the methods in the plan's
    order.

    Maps that TFT thresholds are of the input's size, others are a grid over it.

    Raises:
        EngineError: the graph returned NaN.
    """
    maps = []
    for index, (row, column) in enumerate(zip(objects.rows, objects.columns, strict=True)):
        for one in plan.request.methods:
            values = _finite(inference.outputs[str(one.map_output)][row, column])
            if isinstance(one.settings, Tft):
                with one_blas_thread():
                    size = model.manifest.size_of(inference.inputs.shape)
                    values = np.asarray(cam.finish(values, size), np.float32)
            maps.append(
                ClassMap(
                    image=inference.inputs[row],
                    map=values,
                    target=index,  # a column of ``score_objects``
                    probability=float(objects.scores[index]),
                    layout=model.manifest.layout,
                    method=one.method,
                    row=int(row),
                    column=int(column),
                )
            )
    return tuple(maps)


def detect_prepared(
    model: Model, prepared: Prepared, plan: DetectionPlan, mark: Mark = lambda _: None
) -> list[ImageDetections]:
    """Detect and explain the objects of a batch.

    Args:
        model: the detector.
        prepared: from ``pipeline.prepare``; one batch.
        plan: from ``plan_detection``.
        mark: called with the name of each step when it is done.

    Returns:
        One for each image.

    Raises:
        EngineError: the engine failed, or the network returned NaN.
    """
    manifest = model.manifest
    inference, objects = infer(model, prepared.inputs, plan)
    mark("infer")
    maps = map_objects(model, inference, objects, plan)
    mark("map")
    score = partial(score_objects, model, objects)
    choices = pipeline.threshold(model, inference, maps, plan.request, score)
    mark("threshold")
    settings = {one.method: one.settings for one in plan.request.methods}
    found = [
        ImageDetections(
            show_pixels(image, manifest.preprocess, manifest.show_bands),
            placement,
            {method: [] for method in settings},
        )
        for image, placement in zip(prepared.images, prepared.placements, strict=True)
    ]
    for one, choice in zip(maps, choices, strict=True):
        plain = _make_detection(manifest, plan, objects, one, found[one.row])
        chosen = with_choice(plain, choice, settings[one.method])
        found[one.row].by_method[one.method].append(chosen)
    return found


def _make_detection(
    manifest: Manifest,
    plan: DetectionPlan,
    objects: Objects,
    one: ClassMap,
    of: ImageDetections,
) -> Detection:
    index = int(objects.classes[one.target])
    box = geometry_of.to_image(objects.boxes[one.target], of.placement, manifest.preprocess.size)
    label = manifest.label(index)
    return Detection(
        index=index,
        label=label,
        probability=one.probability,
        task="sigmoid",
        method=one.method,
        map=one.map,
        original_map=one.map,
        image=of.image,
        placement=of.placement,
        top=(ClassScore(index, label, one.probability),),
        box=Box(*map(float, box)),
        candidate=int(objects.candidates[one.target]),
        edge=None if plan.detector.score == "class" else plan.detector.score,
    )


def iterate(
    model: Model,
    memory: int,
    images: Iterable[ImageSource],
    plan: DetectionPlan,
    over_image: bool = False,
) -> Iterator[tuple[ImageSource, ImageDetections | ImageError]]:
    """Detect and explain the objects of any number of images, holding only a few in memory.

    Args:
        model: the detector.
        memory: bytes of the activations of one batch, at most.
        images: as ``read_pixels`` takes them.
        plan: from ``plan_detection``.
        over_image: whether maps lie over the image's own pixels.

    Returns:
        Each image as it was given, in order, with its detections, or why it cannot be read.
    """

    def work(
        batch: list[Read[ImageSource]],
    ) -> list[tuple[ImageSource, ImageDetections | ImageError]]:
        readable = [read for _, read in batch if isinstance(read, Prepared)]
        found = iter(detect_prepared(model, join_batches(readable), plan) if readable else [])
        return [
            (source, read if isinstance(read, ImageError) else _placed(next(found), over_image))
            for source, read in batch
        ]

    return run_batches(model, memory, images, lambda image: image, work)


def _placed(found: ImageDetections, over_image: bool) -> ImageDetections:
    if not over_image:
        return found
    return replace(
        found,
        by_method={
            method: [one.over_image() for one in listed]
            for method, listed in found.by_method.items()
        },
    )
