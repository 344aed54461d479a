"""Explain images with an explaining graph."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from . import detect, pipeline
from .batches import CALLERS, Read, join_batches, run_batches
from .cam import Method
from .detect import ImageDetections
from .detection_plan import DETECTIONS, DetectionPlan, plan_detection
from .engines.base import Engine
from .engines.prompted import PromptedEngine
from .errors import ImageError, RequestError
from .explained_region import RegionSource
from .explanation import Explanation, make_explanation
from .images import ChannelOrder, ImageSource, find_images, to_rgb
from .manifest import Manifest
from .manifest_parts import ExplainedScore
from .pipeline import Model, Prepared
from .pixels import read_pixels
from .prompts import Prompts, apply_prompts, choose_prompts
from .request import RequestPlan, Thresholding, check_classifier, plan_request
from .scorecam import Progress
from .segments import check_region, choose_segments, rows_of_segments
from .targets import class_rows, resolve_targets

# Engines hold more than the activations alive at once: inputs, outputs, scratch space.
_ENGINE_OVERHEAD = 2

Geometry = Literal["input", "image"]
# What is done to each of ``pipeline``'s steps' results: nothing, or a clock is read.
Mark = Callable[[str], None]
_Entry = int | list[int]  # an image's class, or several
# An image, its classes, and what of it is explained by a segmentation network.
_Item = tuple[ImageSource, _Entry, RegionSource]
# A region for all images, or what finds each one's.
Regions = RegionSource | Callable[[ImageSource], RegionSource]


class Explainer:
    """A loaded model that explains its classifications.

    Safe to use from several threads, as far as the engine is.

    Attributes:
        model: the network in its engine, which the steps of ``pipeline`` take.
        memory: bound on the activations of one batch, in bytes.

    Args:
        engine: runs the graph; ``load`` finds one.
        manifest: of the graph, see ``read_manifest``.
        memory_mb: bound on the activations of one batch, in MiB.

    Raises:
        RequestError: no memory.

    Example:
        >>> explainer = whycam.load("model.onnx", engine="onnxruntime")
        >>> explainer.manifest.labels
        ('tabby', 'espresso', 'missile')
        >>> explainer.classify(["cat.jpg", "images/missile/0.jpg"]).shape
        (2, 3)
    """

    def __init__(self, engine: Engine, manifest: Manifest, memory_mb: int = 256) -> None:
        if memory_mb < 1:
            raise RequestError(f"memory_mb must be 1 or more, not {memory_mb}")
        per_image = max(1, manifest.image_bytes * _ENGINE_OVERHEAD)
        self.memory = memory_mb * 2**20
        batch = manifest.batch or max(1, self.memory // per_image)
        self.model = Model(engine, manifest, batch)

    @property
    def engine(self) -> Engine:
        """Return the engine that runs the graph."""
        return self.model.engine

    @property
    def manifest(self) -> Manifest:
        """Return the manifest of the model file."""
        return self.model.manifest

    @property
    def batch(self) -> int:
        """Return the most images that go through the network at once."""
        return self.model.batch

    def __repr__(self) -> str:
        return f"Explainer({self.manifest.model!r}, {self.engine.description})"

    def with_prompts(self, prompts: Prompts | str | os.PathLike[str]) -> Explainer:
        """Choose among other prompts, in the same engine.

        Args:
            prompts: see ``load``.

        Returns:
            Another explainer; this one stays as it is.

        Raises:
            RequestError: the file has classes of its own, or takes other embeddings.
            DataError: the prompts cannot be read.
        """
        chosen = choose_prompts(self.manifest, prompts)
        if chosen is None or not isinstance(self.engine, PromptedEngine):
            raise RequestError("prompts are for files exported with --classes input")
        engine = PromptedEngine(self.engine.unprompted, chosen)
        return Explainer(engine, apply_prompts(self.manifest, chosen), self.memory // 2**20)

    def explain(
        self,
        images: Any,
        targets: Any = None,
        method: Method | Sequence[Method] | None = None,
        tft: Thresholding = None,
        geometry: Geometry = "input",
        progress: Progress | None = None,
        *,
        region: RegionSource | list[RegionSource] = None,
        color: ChannelOrder = "RGB",
    ) -> Any:
        """Explain one image or many, by one method or several.

        Many images are read on threads of their own and go through the network in batches; all
        methods share one run of it.

        Args:
            images: a path, the bytes of an image file, a uint8 array [h, w, 3] or a Pillow image;
                a list, tuple or array [N, h, w, 3] of them; or a folder or a pattern as
                ``a/*.jpg``, which are many images. Networks of bands or of more than 8 bits take
                arrays [h, w, C] or [C, h, w], see ``pixels.read_pixels``.
            targets: the class to explain: its index, its label, or a rank from -1 (the most
                probable, the default) to -5; only a rank where the file was exported with
                ``--top``. For several classes of one image a list of these; for many images one
                target for all, or a list with one entry an image.
            method: one of ``manifest.methods``, or a list of them; by default what the graph
                itself finishes, or Grad-CAM.
            tft: how to threshold: ``None``, ``"naive"`` (the method's customary share, paper
                table 1), ``True`` (TFT in the model's default reading) or a ``Tft``.
            geometry: whether maps lie over the network's input, or over the image's own pixels.
            progress: called with (done, total) evaluations while Score-CAM runs.
            region: of segmentation networks, where the class's mean score is explained: None (the
                default) where it is predicted; ``"image"``, everywhere; a point (x, y) in pixels; a
                mask or weights [h, w] of the image's pixels; or the file of a mask, in which all
                that is not black counts. For many images one for all, or a list. Without targets
                the class explained is the one predicted at most places besides the background;
                with a region the one with the best mean score there.
            color: order of the channels of arrays: ``BGR`` for OpenCV's.

        Returns:
            An ``Explanation`` for one image, a list of them for many; where several classes
            were asked for, a list of explanations in each one's place; where ``method`` is a
            list, a dict from each method to all that.

        Raises:
            ImageError: an image cannot be read.
            RequestError: a class, method or setting that does not exist.
            EngineError: the engine failed, or the network returned NaN.

        Example:
            >>> explainer = whycam.load("model.onnx")
            >>> explainer.explain("cat.jpg").label
            'tabby'
            >>> both = explainer.explain("cat.jpg", method=["gradcam", "layercam"], tft=True)
            >>> both["layercam"].threshold
            0.2
            >>> first, second = explainer.explain("cat.jpg", targets=[-1, "espresso"])
            >>> frame = cv2.imread("cat.jpg")
            >>> explainer.explain(frame, color="BGR").label
            'tabby'
            >>> len(explainer.explain("images/*/1.jpg"))
            3
        """
        plan = self.plan(method, tft)
        _check_geometry(geometry)
        sources, many = _listed(images, color)
        entries = resolve_targets(targets, len(sources), many, self.manifest)
        regions = _listed_regions(region, len(sources), self.manifest)
        found: dict[Method, list[Any]] = {one.method: [] for one in plan.methods}
        items = list(zip(sources, entries, regions, strict=True))
        if len(items) == 1:  # needs no threads
            prepared = pipeline.prepare(
                [read_pixels(sources[0], self.manifest.preprocess)], self.manifest
            )
            results_in_order = self._explain_batch([(items[0], prepared)], plan, geometry, progress)
        else:
            results_in_order = self._explained(items, plan, geometry, progress)
        for _, result in results_in_order:
            if isinstance(result, ImageError):
                raise result
            for name, explanations in result.items():
                found[name].append(explanations)
        results = found if many else {name: listed[0] for name, listed in found.items()}
        return results if _several(method) else next(iter(results.values()))

    def iter_explanations(
        self,
        images: Iterable[ImageSource] | str | os.PathLike[str],
        target: Any = None,
        method: Method | Sequence[Method] | None = None,
        tft: Thresholding = None,
        geometry: Geometry = "input",
        progress: Progress | None = None,
        thresholded: int | None = None,
        *,
        region: Regions = None,
        color: ChannelOrder = "RGB",
    ) -> Iterator[tuple[ImageSource, dict[Method, Any] | ImageError]]:
        """Explain any number of images, holding only a few in memory.

        Args:
            images: as in ``explain``, one by one; or a folder or a pattern.
            target: the class to explain in each, or a list of several.
            method, tft, geometry, progress, color: see ``explain``.
            thresholded: how many of the classes have thresholded maps, from the first; None: all.
            region: see ``explain``; or a function from each image to that.

        Returns:
            Each image as it was given, in order, with its explanation by each method (a list of
            explanations where several classes were asked for), or why it cannot be read.

        Raises:
            RequestError, EngineError: see ``explain``.

        Example:
            >>> explainer = whycam.load("model.onnx")
            >>> for path, result in explainer.iter_explanations("images/tabby/", tft=True):
            ...     if not isinstance(result, whycam.WhyCamError):
            ...         (explanation,) = result.values()
        """
        plan = replace(self.plan(method, tft), thresholded=thresholded)
        _check_geometry(geometry)
        (entry,) = resolve_targets(target, 1, False, self.manifest)
        if isinstance(images, str | os.PathLike):
            images = _listed(images)[0]
        if not callable(region):
            check_region(self.manifest, region)
        items = (
            (
                image if color == "RGB" else to_rgb(image, color),
                entry,
                region(image) if callable(region) else region,
            )
            for image in images
        )
        return self._explained(items, plan, geometry, progress)

    def plan(
        self, method: Method | Sequence[Method] | None = None, tft: Thresholding = None
    ) -> RequestPlan:
        """Plan which graph outputs a request needs, see ``plan_request``.

        Args:
            method, tft: see ``explain``.

        Returns:
            The outputs that are needed, and how each method's maps are made of them.

        Raises:
            RequestError: the file cannot do that.
        """
        return plan_request(self.manifest, method, tft)

    def explain_prepared(
        self,
        prepared: Prepared,
        classes: Sequence[Sequence[int]],
        plan: RequestPlan,
        progress: Progress | None = None,
        mark: Mark = lambda _: None,
        regions: NDArray[np.float32] | None = None,
    ) -> list[dict[Method, list[Explanation]]]:
        """Infer, map and threshold a batch.

        Args:
            prepared: from ``pipeline.prepare``; one batch.
            classes: for each image indices or ranks.
            plan: from ``plan``.
            progress: see ``explain``.
            mark: called with the name of each step when it is done.
            regions: of a segmentation network the weights of places, [N, h, w]; None: all alike.

        Returns:
            For each image by method its explanations, one a class.

        Raises:
            EngineError: the engine failed, or the network returned NaN.
        """
        inference = pipeline.infer(self.model, prepared.inputs, classes, plan, regions)
        mark("infer")
        maps = pipeline.map(self.model, inference, plan, progress)
        mark("map")
        choices = pipeline.threshold(self.model, inference, maps, plan)
        mark("threshold")
        settings = {one.method: one.settings for one in plan.methods}
        found: list[dict[Method, list[Explanation]]] = [
            {method: [] for method in settings} for _ in prepared.images
        ]
        for one, choice in zip(maps, choices, strict=True):
            found[one.row][one.method].append(
                make_explanation(
                    self.manifest,
                    one,
                    choice,
                    settings[one.method],
                    prepared.images[one.row],
                    prepared.placements[one.row],
                    inference.probabilities[one.row],
                )
            )
        return found

    def classify(self, images: Any, *, color: ChannelOrder = "RGB") -> NDArray[np.float32]:
        """Compute class probabilities of one image or many.

        Args:
            images, color: see ``explain``.

        Returns:
            float32 [N, C].

        Raises:
            ImageError: an image cannot be read.
            EngineError: the engine failed, or the network returned NaN.
        """
        check_classifier(self.manifest)
        sources, _ = _listed(images, color)
        rows = [np.zeros((0, self.manifest.num_classes), np.float32)]
        found = run_batches(
            self.model, self.memory, sources, lambda source: source, self._classified
        )
        return np.concatenate([*rows, *(row[None] for row in found)])

    def detect(
        self,
        images: Any,
        target: Any = None,
        method: Method | Sequence[Method] | None = None,
        tft: Thresholding = None,
        *,
        k: int = DETECTIONS,
        min_score: float | None = None,
        iou: float | None = None,
        score: ExplainedScore | None = None,
        geometry: Geometry = "input",
        color: ChannelOrder = "RGB",
    ) -> Any:
        """Detect the objects of one image or many, and explain each.

        Args:
            images, color: see ``explain``.
            target: what is explained: a class, by its label or index, or a list of them, which
                alone are then looked for; or a pair (candidate, class) or a list of pairs, whatever
                their score; None: the best detections of any class.
            method: one of ``manifest.methods``, or a list of them; by default the file's first.
            tft: as for ``explain``; TFT looks for the threshold whose masked image has the best
                score of the class among the candidates that overlap the box by half.
            k: detections explained of each image, at most, 1 to 100.
            min_score: a detection scores more than that; by default the file's.
            iou: the overlap from which on a worse candidate of the same class is suppressed; by
                default the file's. Other values than the file's, a lower ``min_score`` and named
                classes take one more run of the network.
            score: what the maps explain, ``class`` or an edge of the box, as the file was exported:
                said here, it is an error where the file explains something else.
            geometry: whether maps lie over the network's input, or over the image's own pixels.

        Returns:
            A list of ``Detection`` for one image, the best first and possibly empty, a list of such
            lists for many; where ``method`` is a list, a dict from each method to all that.

        Raises:
            ImageError: an image cannot be read.
            RequestError: the file is no detector, or a class, candidate, method or setting does
                not exist.
            EngineError: the engine failed, or the network returned NaN.

        Example:
            >>> explainer = whycam.load("detector.onnx")
            >>> [(one.label, round(one.score, 2)) for one in explainer.detect("street.jpg")]
            [('dog', 0.92), ('car', 0.7)]
            >>> (car,) = explainer.detect("street.jpg", "car", tft=True)
            >>> car.region.box
            (39, 71, 105, 128)
        """
        plan = plan_detection(
            self.manifest, target, method, tft, most=k, min_score=min_score, iou=iou, score=score
        )
        _check_geometry(geometry)
        sources, many = _listed(images, color)
        found: dict[Method, list[Any]] = {one.method: [] for one in plan.request.methods}
        over_image = geometry == "image"
        for _, result in detect.iterate(self.model, self.memory, sources, plan, over_image):
            if isinstance(result, ImageError):
                raise result
            for name, detections in result.by_method.items():
                found[name].append(detections)
        results = found if many else {name: listed[0] for name, listed in found.items()}
        return results if _several(method) else next(iter(results.values()))

    def iter_detections(
        self,
        images: Iterable[ImageSource] | str | os.PathLike[str],
        plan: DetectionPlan,
        geometry: Geometry = "input",
        *,
        color: ChannelOrder = "RGB",
    ) -> Iterator[tuple[ImageSource, ImageDetections | ImageError]]:
        """Detect and explain in any number of images, holding only a few in memory.

        Args:
            images: as in ``detect``, one by one; or a folder or a pattern.
            plan: from ``plan_detection``.
            geometry, color: see ``detect``.

        Returns:
            Each image as it was given, in order, with its detections, or why it cannot be read.

        Raises:
            RequestError, EngineError: see ``detect``.
        """
        _check_geometry(geometry)
        if isinstance(images, str | os.PathLike):
            images = _listed(images)[0]
        sources = (image if color == "RGB" else to_rgb(image, color) for image in images)
        return detect.iterate(self.model, self.memory, sources, plan, geometry == "image")

    def _classified(self, batch: list[Read[Any]]) -> NDArray[np.float32]:
        return pipeline.classify(self.model, join_batches(_readable(batch)).inputs)

    def _explained(
        self,
        items: Iterable[_Item],
        plan: RequestPlan,
        geometry: Geometry,
        progress: Progress | None,
    ) -> Iterator[tuple[ImageSource, dict[Method, Any] | ImageError]]:
        # Score-CAM takes minutes and must hear of Ctrl-C: in the calling thread.
        slow = any(one.method == "scorecam" for one in plan.methods)
        return run_batches(
            self.model,
            self.memory,
            items,
            lambda item: item[0],
            lambda batch: list(self._explain_batch(batch, plan, geometry, progress)),
            callers=1 if slow else CALLERS,
        )

    def _explain_batch(
        self,
        batch: list[Read[_Item]],
        plan: RequestPlan,
        geometry: Geometry,
        progress: Progress | None,
    ) -> Iterator[tuple[ImageSource, dict[Method, Any] | ImageError]]:
        readable = [(item, read) for item, read in batch if isinstance(read, Prepared)]
        explained: Iterator[Any] = iter(())
        if readable:
            classes = class_rows([entry for (_, entry, _), _ in readable])
            prepared = join_batches(read for _, read in readable)
            if self.manifest.region is None:
                explained = iter(self.explain_prepared(prepared, classes, plan, progress))
            else:
                regions = [region for (_, _, region), _ in readable]
                explained = iter(self._explain_segments(prepared, classes, regions, plan))
        for (source, entry, _), read in batch:
            if isinstance(read, ImageError):
                yield source, read
                continue
            found = {
                method: [one.over_image() if geometry == "image" else one for one in listed]
                for method, listed in next(explained).items()
            }
            single = not isinstance(entry, list)
            yield source, {m: listed[0] if single else listed for m, listed in found.items()}

    def _explain_segments(
        self,
        prepared: Prepared,
        classes: Sequence[Sequence[int]],
        regions: Sequence[RegionSource],
        plan: RequestPlan,
    ) -> list[dict[Method, list[Explanation]]]:
        """Explain each class of each image by a row of its own, for each has its own region."""
        segments = choose_segments(self.model, prepared, classes, regions)
        rows = rows_of_segments(prepared, segments)
        explained = self.explain_prepared(rows.prepared, rows.classes, plan, regions=rows.regions)
        found: list[dict[Method, list[Explanation]]] = [
            {one.method: [] for one in plan.methods} for _ in segments
        ]
        for row, each, of_method in zip(rows.images, rows.segments, explained, strict=True):
            for method, (one,) in of_method.items():
                shown = replace(one, explained_area=each.area, weights=each.weights)
                found[row][method].append(shown)
        return found


def _listed_regions(
    region: RegionSource | list[RegionSource], count: int, manifest: Manifest
) -> list[RegionSource]:
    """List the region of each image.

    Raises:
        RequestError: a list of another length, or a file that has no regions.
    """
    listed = region if isinstance(region, list) else [region] * count
    if len(listed) != count:
        raise RequestError(f"{len(listed)} regions for {count} images: pass one for all, or each")
    for each in listed:
        check_region(manifest, each)
    return listed


def _readable(batch: list[Read[Any]]) -> Iterator[Prepared]:
    for _, read in batch:
        if isinstance(read, ImageError):
            raise read
        yield read


def _check_geometry(geometry: str) -> None:
    if geometry not in ("input", "image"):
        raise RequestError(f"geometry must be 'input' or 'image', not {geometry!r}")


def _several(method: Method | Sequence[Method] | None) -> bool:
    return method is not None and not isinstance(method, str)


def _listed(images: Any, color: ChannelOrder = "RGB") -> tuple[list[Any], bool]:
    """List the images, and tell whether the caller passed many."""
    if isinstance(images, str | os.PathLike):
        found = find_images(images)
        images = images if found is None else found
    many = isinstance(images, list | tuple) or (isinstance(images, np.ndarray) and images.ndim == 4)
    listed = list(images) if many else [images]
    return [to_rgb(image, color) for image in listed], many
