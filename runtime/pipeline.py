"""The four steps from images to thresholded maps: prepare, infer, map, threshold.

Each is a function of values that it does not change, for a batch of images x classes x methods.
Explanations, evaluations, benchmarks, training and video streams are made of these and nothing
else:

    prepared = prepare(images, model.manifest)
    inference = infer(model, prepared.inputs, [[-1]] * len(images), plan)
    maps = map(model, inference, plan)
    choices = threshold(model, inference, maps, plan)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import cam, tft
from .cam import Method
from .engines.base import Engine
from .engines.chunks import run_in_chunks
from .errors import EngineError, RequestError
from .manifest import Manifest
from .pixels import Pixels
from .place_weights import REGION
from .preprocess import Placement, arrange, crop_resized, place, spec_for
from .request import MethodPlan, RequestPlan
from .scorecam import Progress, score_weights
from .sweep import Choice, Classify, Floats, Request, make_choice, mute_lowest, sweep
from .tft import Tft
from .threads import one_blas_thread

__all__ = [
    "ClassMap",
    "Inference",
    "Model",
    "Prepared",
    "classify",
    "infer",
    "map",
    "prepare",
    "threshold",
]

Inputs = NDArray[Any]  # what the graph is fed, see ``prepare``


@dataclass(frozen=True, eq=False)
class Model:
    """A network in an engine.

    Attributes:
        engine: what runs it.
        manifest: what its file says of itself.
        batch: how many images at most go through the network at once; the file's own number where
            its batch is fixed.
    """

    engine: Engine
    manifest: Manifest
    batch: int


@dataclass(frozen=True, eq=False)
class Prepared:
    """Images with what the network is fed of them.

    Attributes:
        images: from ``read_pixels``, [h, w, C] each.
        inputs: [N, ...], see ``prepare``.
        placements: where the network's input lies in each image.
    """

    images: tuple[Pixels, ...]
    inputs: Inputs
    placements: tuple[Placement, ...]


@dataclass(frozen=True, eq=False)
class Inference:
    """What the graph returned for a batch.

    Attributes:
        inputs: what it was fed, [N, ...].
        outputs: the plan's outputs by name; ``probabilities`` float32 [N, C] and ``targets``
            int64 [N, k] among them.
        classes: how many classes of each image were asked for; further columns only fill up.
        regions: of segmentation networks, what was explained of each, float32 [N, h, w]; None: all
            places alike, and of other networks.
    """

    inputs: Inputs
    outputs: Mapping[str, NDArray[Any]]
    classes: tuple[int, ...]
    regions: Floats | None = None

    @property
    def probabilities(self) -> Floats:
        """Return the probabilities of all classes, float32 [N, C]."""
        return self.outputs["probabilities"]


@dataclass(frozen=True, kw_only=True)
class ClassMap(Request):
    """One method's map of one class of one image, not thresholded.

    Attributes:
        method: how it was made.
        row: which image of the batch.
        column: which of the classes asked for of that image.
    """

    method: Method
    row: int
    column: int


def prepare(images: Sequence[Pixels], manifest: Manifest) -> Prepared:
    """Resize, crop and normalise images as the network was trained.

    Args:
        images: from ``read_pixels``, [h, w, C]; of one size where the graph takes images of any
            size itself, or in their own resolution.
        manifest: of the graph.

    Returns:
        Their inputs float32 [N, C, H, W] or [N, H, W, C] (``manifest.layout``), resized, cropped
        and normalised; uint8 and not normalised where the file's input is; uint8 [N, h, w, 3]
        where the graph does all that itself.

    Raises:
        RequestError: an image of another size than the file was exported for, or images of
            several sizes for a file that keeps their resolution.
    """
    spec = manifest.preprocess
    if manifest.embedded_preprocess:
        wanted = manifest.source_size
        for image in images:
            if wanted is not None and image.shape[:2] != wanted:
                raise RequestError(
                    f"this file was exported for images of {wanted[0]} x {wanted[1]} pixels "
                    f"(height x width), not {image.shape[0]} x {image.shape[1]}"
                )
        places = tuple(place((image.shape[0], image.shape[1]), spec)[0] for image in images)
        return Prepared(tuple(images), np.stack(images), places)
    specs = [spec_for(image, manifest) for image in images]
    if len({each.size for each in specs}) > 1:
        raise RequestError(
            "this file takes images in their own resolution, and a batch is of one: prepare images "
            "of several sizes one by one"
        )
    views, placements = zip(
        *(crop_resized(image, each) for image, each in zip(images, specs, strict=True)), strict=True
    )
    return Prepared(tuple(images), arrange(np.stack(views), manifest), placements)


def classify(model: Model, inputs: Inputs, regions: Floats | None = None) -> Floats:
    """Compute class probabilities of prepared inputs, float32 [N, C].

    Args:
        model: the network.
        inputs: from ``prepare``, [N, ...].
        regions: of a segmentation network, see ``Inference``.

    Returns:
        Class probabilities, float32 [N, C].

    Raises:
        EngineError: the engine failed, or the network returned NaN.
    """
    feeds = {"image": inputs, "target": np.full((len(inputs), 1), -1, np.int64)}
    feeds |= {} if regions is None else {REGION: regions}
    run = partial(model.engine.run, outputs=["probabilities"])
    return _finite(run_in_chunks(run, feeds, model.manifest, model.batch)["probabilities"])


def infer(
    model: Model,
    inputs: Inputs,
    classes: Sequence[Sequence[int]],
    plan: RequestPlan,
    regions: Floats | None = None,
) -> Inference:
    """Run the graph once for all methods of a request, in as many parts as memory asks for.

    Args:
        model: the network.
        inputs: from ``prepare``, [N, ...].
        classes: for each image the classes to explain, as indices or ranks from -1.
        plan: from ``Explainer.plan``.
        regions: of a segmentation network, see ``Inference``.

    Returns:
        The plan's outputs, and what they were computed of.

    Raises:
        EngineError: the engine failed, or the network returned NaN.
    """
    widest = max(len(row) for row in classes)
    # Images with fewer classes repeat their first; those columns are not read.
    target = np.array([[*row, *[row[0]] * (widest - len(row))] for row in classes], np.int64)
    feeds = {"image": inputs, "target": target}
    feeds |= {} if regions is None else {REGION: regions}
    images, columns = _limits(model, widest, plan)
    run = partial(model.engine.run, outputs=plan.outputs)
    outputs = run_in_chunks(run, feeds, model.manifest, images, columns)
    outputs["probabilities"] = _finite(outputs["probabilities"])
    return Inference(inputs, outputs, tuple(len(row) for row in classes), regions)


def _limits(model: Model, classes: int, plan: RequestPlan) -> tuple[int, int]:
    """Compute the most images, and classes of each, that fit into memory at once."""
    manifest, batch = model.manifest, model.batch
    if not plan.in_graph:
        return batch, classes
    # A sweep inside the graph takes one evaluation for each threshold of each class; a search
    # there takes them one after the other.
    steps = len(manifest.tft.taus) if manifest.tft.evaluations is None else 1
    columns = classes if manifest.top is not None else max(1, min(classes, batch // steps))
    if manifest.batch is not None:
        return batch, columns
    return max(1, batch // (steps * (manifest.top or columns))), columns


def map(
    model: Model, inference: Inference, plan: RequestPlan, progress: Progress | None = None
) -> tuple[ClassMap, ...]:
    """Compute the maps of all methods of a request, or take those that the graph finished.

    Args:
        model: the network, which Score-CAM runs once for each channel.
        inference: from ``infer``.
        plan: the same as there.
        progress: told (done, total) evaluations while Score-CAM runs.

    Returns:
        A map for each image, class and method, in this order; the methods in the plan's.

    Raises:
        EngineError: the graph returned NaN.
    """
    maps = {one.method: _maps(model, inference, one, progress) for one in plan.methods}
    targets, probabilities = inference.outputs["targets"], inference.probabilities
    return tuple(
        ClassMap(
            image=inference.inputs[row],
            map=maps[method][row, column],
            target=int(targets[row, column]),
            probability=float(probabilities[row, targets[row, column]]),
            layout=model.manifest.layout,
            method=method,
            row=row,
            column=column,
        )
        for row, width in enumerate(inference.classes)
        for column in range(width)
        for method in maps
    )


def _maps(
    model: Model, inference: Inference, plan: MethodPlan, progress: Progress | None
) -> Floats:
    """Compute one method's maps [N, k, H, W] in [0, 1]."""
    outputs, manifest = inference.outputs, model.manifest
    if plan.map_output is not None:
        return _whole(outputs[plan.map_output])
    size = manifest.size_of(inference.inputs.shape)
    weights = outputs["ablation_weights"] if plan.method == "ablation" else None
    if plan.method == "scorecam":
        weights = score_weights(
            partial(classify, model),
            inference.inputs,
            outputs["activations"],
            outputs["targets"],
            size,
            model.batch,
            progress,
            manifest.layout,
        )
    with one_blas_thread():
        raw = cam.raw_map(plan.method, outputs["activations"], outputs.get("gradients"), weights)
        return np.asarray(cam.finish(raw, size), np.float32)


def threshold(
    model: Model,
    inference: Inference,
    maps: Sequence[ClassMap],
    plan: RequestPlan,
    score: Classify | None = None,
) -> tuple[Choice | None, ...]:
    """Choose the threshold of each map, as the plan says.

    Masked images of all maps share full batches.

    Args:
        model: the network.
        inference: from ``infer``, which holds the numbers of a sweep inside the graph.
        maps: from ``map``.
        plan: the same as there.
        score: returns what thresholds are judged by of masked images, [B, C]; a map's own is the
            column of its target. None: the probabilities of the classes.

    Returns:
        A choice for each map, in the same order; None without thresholding, and for classes beyond
        ``plan.thresholded``.
    """
    by_method = {one.method: one for one in plan.methods}
    choices: dict[int, Choice] = {}
    swept: dict[tuple[Tft, int, int], list[int]] = {}
    for index, each in enumerate(maps):
        one = by_method[each.method]
        if plan.thresholded is not None and each.column >= plan.thresholded:
            continue
        if one.settings == "naive":
            choices[index] = mute_lowest(each, tft.NAIVE[each.method])
        elif isinstance(one.settings, Tft) and one.in_graph:
            cell = each.row, each.column
            rpi = inference.outputs["rpi"][cell]
            masked = inference.outputs["masked_probabilities"][cell]
            choices[index] = make_choice(each.map, rpi, masked, one.settings)
        elif isinstance(one.settings, Tft):
            # A search starts from what was learnt of its own method; else all share batches, of
            # a segmentation network those of one region.
            group = -1 if one.prior is None else plan.methods.index(one)
            row = -1 if inference.regions is None else each.row
            swept.setdefault((one.settings, group, row), []).append(index)
    for (settings, group, row), indices in swept.items():
        prior = None if group < 0 else plan.methods[group].prior
        requests = [maps[index] for index in indices]
        judge = score or _judge(model, inference, row)
        found = sweep(judge, requests, settings, model.batch, prior)
        choices |= dict(zip(indices, found, strict=True))
    return tuple(choices.get(index) for index in range(len(maps)))


def _judge(model: Model, inference: Inference, row: int) -> Classify:
    """Return what computes the probabilities of masked images; of those of one row's region."""
    if inference.regions is None:
        return partial(classify, model)
    region = inference.regions[row]
    return lambda images: classify(model, images, np.repeat(region[None], len(images), axis=0))


def _whole(maps: NDArray[Any]) -> Floats:
    if not np.isfinite(maps).all():
        raise EngineError("the graph returned a map with NaN or infinite values")
    return np.asarray(maps, dtype=np.float32)


def _finite(probabilities: NDArray[Any]) -> Floats:
    if not np.isfinite(probabilities).all():
        raise EngineError(
            "the network returned NaN or infinite probabilities: its weights are broken, or the "
            "precision is too low for it"
        )
    return np.asarray(probabilities, dtype=np.float32)
