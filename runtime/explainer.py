"""Explain pictures with an explaining graph."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from . import cam, tft
from .cam import Method
from .engines.base import Engine, EngineSettings, Hint, Precision
from .engines.opening import open_engine
from .engines.plan import is_plan
from .errors import EngineError, RequestError
from .explanation import Explanation
from .images import Picture, read_picture
from .manifest import Manifest
from .onnxfile import check_digest, read_manifest
from .preprocess import Placement, arrange, crop_resized, place
from .route import Route, Thresholding, route
from .scorecam import Progress, score_weights
from .sweep import Choice, Floats, Request, choice_of, sweep
from .targets import per_picture
from .tft import Tft
from .threads import one_blas_thread

# Engines hold more than the activations alive at once: inputs, outputs, scratch space.
_ENGINE_OVERHEAD = 2
# Preprocessing inside the graph holds a picture as float32 up to three times.
_PICTURE_BYTES = 12

Images = NDArray[Any]  # what the graph is fed, see ``Explainer.inputs``


class Explainer:
    """A loaded model that explains its classifications.

    Safe to use from several threads, as far as the engine is.

    Attributes:
        manifest: what the model file says of itself.
        engine: what runs it.
        batch: how many images at most go through the network at once; the file's own where its
            batch is fixed.

    Args:
        engine: runs the graph; ``load`` finds one.
        manifest: of the graph, see ``read_manifest``.
        memory_mb: bound on the activations of one batch, in MiB.

    Raises:
        RequestError: no memory.
    """

    def __init__(self, engine: Engine, manifest: Manifest, memory_mb: int = 256) -> None:
        if memory_mb < 1:
            raise RequestError(f"memory_mb must be 1 or more, not {memory_mb}")
        self.engine = engine
        self.manifest = manifest
        per_image = max(1, manifest.image_bytes * _ENGINE_OVERHEAD)
        self._memory = memory_mb * 2**20
        self.batch = manifest.batch or max(1, self._memory // per_image)

    def __repr__(self) -> str:
        return f"Explainer({self.manifest.model!r}, {self.engine.description})"

    def explain(
        self,
        images: Any,
        targets: Any = None,
        method: Method | None = None,
        tft: Thresholding = None,
        geometry: Literal["input", "picture"] = "input",
        progress: Progress | None = None,
    ) -> Any:
        """Explain one picture or many.

        Args:
            images: a path, a uint8 array [h, w, 3] in RGB order or a Pillow image; or a list,
                tuple or array [N, h, w, 3] of them.
            targets: the class to explain: its index, its label, or a rank from -1 (the most
                probable, the default) to -5; only a rank where the file was exported with
                ``--top``. For several classes of one picture a list of these; for many pictures one
                target for all, or a list with one entry a picture.
            method: one of ``manifest.methods``; by default what the graph itself finishes, or
                Grad-CAM.
            tft: how to threshold: ``None``, ``"naive"`` (the method's customary share, paper
                table 1), ``True`` (TFT in the model's default reading) or a ``Tft``.
            geometry: whether maps lie over the network's input, or over the picture's own pixels.
            progress: told (done, total) forward passes while Score-CAM runs.

        Returns:
            An ``Explanation`` for one picture, a list of them for many; where several classes
            were asked for, a list of explanations in each one's place.

        Raises:
            ImageError: a picture cannot be read.
            RequestError: a class, method or setting that does not exist.
            EngineError: the engine failed, or the network returned NaN.
        """
        way = self._way(method, tft)
        if geometry not in ("input", "picture"):
            raise RequestError(f"geometry must be 'input' or 'picture', not {geometry!r}")
        sources, many = _listed(images)
        wanted = per_picture(targets, len(sources), many, self.manifest)
        results: list[Any] = []
        for pictures in self._batches(sources):
            part = wanted[len(results) : len(results) + len(pictures)]
            results.extend(self._explain_batch(pictures, part, way, geometry, progress))
        return results if many else results[0]

    def explain_prepared(
        self,
        picture: Picture,
        images: Images,
        placement: Placement,
        target: int | str = -1,
        method: Method | None = None,
        tft: Thresholding = None,
        choose: Callable[[Request, Tft], Choice] | None = None,
    ) -> tuple[Explanation, Floats]:
        """Explain one picture whose input was prepared before, as a stream's frames are.

        Args:
            picture: uint8 [h, w, 3], RGB.
            images, placement: of this picture alone, see ``inputs``.
            target, method, tft: see ``explain``.
            choose: finds the threshold with TFT, instead of a sweep.

        Returns:
            The explanation, and the probabilities of all classes, float32 [C].

        Raises:
            RequestError, EngineError: see ``explain``.
        """
        way = self._way(method, tft, outside=choose is not None)
        (wanted,) = per_picture(target, 1, False, self.manifest)
        found = self.graph_outputs(images, np.array([[wanted]], np.int64), way.outputs, way.swept)
        index = int(found["targets"][0, 0])
        values = self._maps(images, found, way, None)[0, 0]
        probability = float(found["probabilities"][0, index])
        request = Request(images[0], values, index, probability, self.manifest.layout)
        if choose is not None and isinstance(way.settings, Tft):
            choice: Choice | None = choose(request, way.settings)
        else:
            (choice,) = self._choices([request], [(0, 0)], found, way)
        explained = self._explanation(picture, placement, request, choice, way, "input")
        return explained, found["probabilities"][0]

    def _way(self, method: Method | None, tft: Thresholding, outside: bool = False) -> Route:
        """``outside``: thresholds are tried by somebody else."""
        way = route(self.manifest, method, tft)
        if not isinstance(way.settings, Tft) or not outside:
            return way
        # The graph's own sweep is not asked for.
        swept = ("rpi", "masked_probabilities")
        return replace(
            way, swept=False, outputs=tuple(name for name in way.outputs if name not in swept)
        )

    def classify(self, images: Any) -> NDArray[np.float32]:
        """Class probabilities of one picture or many, float32 [N, C].

        Raises:
            ImageError: a picture cannot be read.
            EngineError: the engine failed, or the network returned NaN.
        """
        sources, _ = _listed(images)
        rows = [self.probabilities(self.inputs(pictures)[0]) for pictures in self._batches(sources)]
        return (
            np.concatenate(rows) if rows else np.zeros((0, self.manifest.num_classes), np.float32)
        )

    def _batches(self, sources: Sequence[Any]) -> Iterator[list[Picture]]:
        """Pictures that go through the network together; each is read when its turn comes."""
        batch: list[Picture] = []
        for source in sources:
            picture = read_picture(source)
            limit = self.batch
            if self.manifest.embedded_preprocess:
                if batch and batch[0].shape != picture.shape:
                    yield batch
                    batch = []
                limit = min(limit, self._memory // (_PICTURE_BYTES * picture.size))
            batch.append(picture)
            if len(batch) >= limit:
                yield batch
                batch = []
        if batch:
            yield batch

    def inputs(self, pictures: Sequence[Picture]) -> tuple[Images, list[Placement]]:
        """What the graph is fed for pictures, and where its view lies in each.

        Args:
            pictures: from ``read_picture``, uint8 [h, w, 3]; of one size where the graph takes
                pictures itself.

        Returns:
            float32 [N, C, H, W] or [N, H, W, C] (``manifest.layout``), resized, cropped and
            normalised; uint8 and not normalised where the file's input is; or uint8 [N, h, w, 3]
            where the graph takes images of any size itself. Then a ``Placement`` for each.

        Raises:
            RequestError: a picture of another size than the file was exported for.
        """
        spec = self.manifest.preprocess
        if self.manifest.embedded_preprocess:
            wanted = self.manifest.picture_size
            for picture in pictures:
                if wanted is not None and picture.shape[:2] != wanted:
                    raise RequestError(
                        f"this file was exported for pictures of {wanted[0]} x {wanted[1]} pixels "
                        f"(height x width), not {picture.shape[0]} x {picture.shape[1]}"
                    )
            places = [place((p.shape[0], p.shape[1]), spec)[0] for p in pictures]
            return np.stack(pictures), places
        views, placements = zip(*(crop_resized(picture, spec) for picture in pictures), strict=True)
        return arrange(np.stack(views), self.manifest), list(placements)

    def probabilities(self, images: Images) -> Floats:
        """Class probabilities of prepared inputs (see ``inputs``), float32 [N, C].

        At most ``batch`` images go through the network at once.
        """
        target = np.full((len(images), 1), -1, np.int64)
        rows = [
            self.engine.run({"image": images[part], "target": target[part]}, ["probabilities"])[
                "probabilities"
            ]
            for part in _slices(len(images), self.batch)
        ]
        return _finite(rows[0] if len(rows) == 1 else np.concatenate(rows))

    def _explain_batch(
        self,
        pictures: list[Picture],
        wanted: list[int | list[int]],
        way: Route,
        geometry: Literal["input", "picture"],
        progress: Progress | None,
    ) -> Iterator[Any]:
        images, placements = self.inputs(pictures)
        entries = [entry if isinstance(entry, list) else [entry] for entry in wanted]
        widest = max(map(len, entries))
        # Pictures with fewer classes repeat their first; those columns are not read.
        target = np.array([row + row[:1] * (widest - len(row)) for row in entries], np.int64)
        found = self.graph_outputs(images, target, way.outputs, way.swept)
        found["maps"] = self._maps(images, found, way, progress)
        cells = [(i, j) for i, row in enumerate(entries) for j in range(len(row))]
        requests = [
            Request(
                images[i],
                found["maps"][i, j],
                int(found["targets"][i, j]),
                float(found["probabilities"][i, found["targets"][i, j]]),
                self.manifest.layout,
            )
            for i, j in cells
        ]
        choices = self._choices(requests, cells, found, way)
        explained = [
            self._explanation(pictures[i], placements[i], request, choice, way, geometry)
            for (i, _), request, choice in zip(cells, requests, choices, strict=True)
        ]
        of_cell = dict(zip(cells, explained, strict=True))
        for i, entry in enumerate(wanted):
            in_order = [of_cell[i, j] for j in range(len(entries[i]))]
            yield in_order if isinstance(entry, list) else in_order[0]

    def maps(
        self, images: Images, target: NDArray[np.int64], methods: Sequence[Method]
    ) -> tuple[Floats, NDArray[np.int64], dict[Method, Floats]]:
        """Maps of several methods from one run of the network, for prepared inputs.

        Args:
            images: from ``inputs``, [N, ...].
            target: classes or ranks, [N, k].
            methods: of ``manifest.methods``.

        Returns:
            Probabilities float32 [N, C], the classes explained int64 [N, k], and for each method
            its maps, float32 [N, k, H, W] in [0, 1].

        Raises:
            RequestError: a method that the file does not support.
            EngineError: the engine failed, or the network returned NaN.
        """
        ways = [route(self.manifest, method, None) for method in methods]
        outputs = dict.fromkeys(name for way in ways for name in way.outputs)
        found = self.graph_outputs(images, target, tuple(outputs), swept=False)
        maps = {way.method: self._maps(images, found, way, None) for way in ways}
        return found["probabilities"], found["targets"], maps

    def graph_outputs(
        self, images: Images, target: NDArray[np.int64], outputs: Sequence[str], swept: bool
    ) -> dict[str, NDArray[Any]]:
        """Run the graph for prepared inputs, in as many runs as memory asks for.

        Args:
            images: from ``inputs``, [N, ...].
            target: classes or ranks, [N, k].
            outputs: the outputs wanted, ``probabilities`` among them.
            swept: whether the graph itself sweeps thresholds for these outputs.

        Returns:
            The outputs by name.

        Raises:
            EngineError: the engine failed, or the network returned NaN.
        """
        n, k = target.shape
        # A sweep inside the graph takes one forward pass for each threshold of each class; a search
        # there takes them one after the other.
        settings = self.manifest.tft
        steps = len(settings.taus) if settings.forwards is None else 1
        width, height = k, n
        if swept and self.manifest.top is None:
            width = max(1, min(k, self.batch // steps))
        if swept and self.manifest.batch is None:
            height = max(1, self.batch // (steps * (self.manifest.top or width)))
        columns = [
            [
                self.engine.run({"image": images[row], "target": target[row, part]}, outputs)
                for row in _slices(n, height)
            ]
            for part in _slices(k, width)
        ]
        found = _joined(columns)
        found["probabilities"] = _finite(found["probabilities"])
        return found

    def _maps(
        self,
        images: Images,
        found: dict[str, NDArray[Any]],
        way: Route,
        progress: Progress | None,
    ) -> Floats:
        """Maps [N, k, H, W] in [0, 1], not thresholded."""
        if way.maps is not None:
            return _whole(found[way.maps])
        weights = found.get("ablation_weights") if way.method == "ablation" else None
        if way.method == "scorecam":
            size = self.manifest.preprocess.size
            weights = score_weights(
                self.probabilities,
                images,
                found["activations"],
                found["targets"],
                size,
                self.batch,
                progress,
                self.manifest.layout,
            )
        with one_blas_thread():
            raw = cam.raw_map(way.method, found["activations"], found.get("gradients"), weights)
            return np.asarray(cam.finish(raw, self.manifest.preprocess.size), np.float32)

    def _choices(
        self,
        requests: list[Request],
        cells: list[tuple[int, int]],
        found: dict[str, NDArray[Any]],
        way: Route,
    ) -> Sequence[Choice | None]:
        settings = way.settings
        if settings is None:
            return [None] * len(requests)
        if settings == "naive":
            return [_naive(request, tft.NAIVE[way.method]) for request in requests]
        if not way.swept:
            return sweep(self.probabilities, requests, settings, self.batch, way.prior)
        return [
            choice_of(r.map, found["rpi"][cell], found["masked_probabilities"][cell], settings)
            for r, cell in zip(requests, cells, strict=True)
        ]

    def _explanation(
        self,
        picture: Picture,
        placement: Placement,
        request: Request,
        choice: Choice | None,
        way: Route,
        geometry: Literal["input", "picture"],
    ) -> Explanation:
        explanation = Explanation(
            index=request.target,
            label=self.manifest.label(request.target),
            probability=request.probability,
            task=self.manifest.task,
            method=way.method,
            map=request.map if choice is None else choice.map,
            original_map=request.map,
            picture=picture,
            placement=placement,
        )
        if choice is not None:
            explanation = replace(
                explanation, mask=choice.mask, threshold=choice.threshold, cut=choice.cut
            )
        if choice is not None and isinstance(way.settings, Tft):
            explanation = replace(
                explanation,
                rpi=choice.rpi,
                improved=choice.improved,
                masked_probability=choice.masked_probability,
                tft=way.settings,
            )
        return explanation.over_picture() if geometry == "picture" else explanation


def _joined(columns: list[list[dict[str, NDArray[Any]]]]) -> dict[str, NDArray[Any]]:
    """Outputs of several runs as of one: pictures along the first axis, classes along the second.

    Probabilities are the same whatever classes are explained.
    """
    if len(columns) == 1 and len(columns[0]) == 1:
        return columns[0][0]
    found = {}
    for name in columns[0][0]:
        parts = [np.concatenate([run[name] for run in column]) for column in columns]
        found[name] = parts[0] if name == "probabilities" else np.concatenate(parts, axis=1)
    return found


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


def _listed(images: Any) -> tuple[list[Any], bool]:
    """The pictures one by one, and whether the caller passed many."""
    many = isinstance(images, list | tuple) or (isinstance(images, np.ndarray) and images.ndim == 4)
    return (list(images), True) if many else ([images], False)


def _naive(request: Request, share: float) -> Choice:
    """Mute the lowest ``share`` of the pixels, whatever the network makes of it."""
    cut = tft.cut_values(request.map, (share,), "rank")[0]
    values = tft.threshold_map(request.map, cut)
    return Choice(
        threshold=share,
        cut=float(cut),
        rpi=np.zeros(0, np.float32),
        improved=False,
        map=values,
        mask=tft.mask_of(values, "binary"),
        masked_probability=None,
    )


def _slices(count: int, size: int) -> Iterable[slice]:
    return (slice(start, min(start + size, count)) for start in range(0, count, size))


def load(
    path: str | os.PathLike[str],
    engine: str = "auto",
    threads: int | None = None,
    memory_mb: int = 256,
    *,
    precision: Precision = "fp32",
    hint: Hint = "latency",
    cache: str | os.PathLike[str] | None = None,
    gpu: int = 0,
    check: bool = True,
) -> Explainer:
    """Load an explaining graph.

    Args:
        path: an ONNX file made by ``whycam export``, or a TensorRT plan made by ``whycam build``.
        engine: ``auto`` or a name in ``engines.registry.ENGINES``; ``Explainer.engine`` says which
            one was chosen and why.
        threads: for one run; None lets the engine use every core.
        memory_mb: bound on the activations of one batch, in MiB; larger ones are run in parts.
        precision: ``fp32``, or ``bf16`` where processor and engine have it: faster, and slightly
            different numbers.
        hint: ``latency`` or ``throughput``, see ``EngineSettings``.
        cache: a folder for compiled models, which makes the next start faster.
        gpu: index of the GPU, for engines that use one.
        check: whether the file must be, bit for bit, what whycam wrote, and an engine other than
            ONNX Runtime on the CPU, where each export was checked, must first reproduce the
            export's reference answers for the test patterns in the file, in fp32.

    Returns:
        An ``Explainer``, ready to explain.

    Raises:
        ModelFileError: the file is missing, damaged, or was not made by whycam.
        EngineError: the engine does not exist or cannot be used as asked.
        WrongAnswerError: the engine does not reproduce the export's reference answers.
        MissingExtraError: the engine's package is not installed.
    """
    manifest = read_manifest(path)
    settings = EngineSettings(
        threads=threads,
        precision=precision,
        hint=hint,
        cache=None if cache is None else os.fspath(cache),
        gpu=gpu,
    )
    if check and not is_plan(path):  # a plan's digest is compared wherever one is loaded
        check_digest(path, manifest)
    opened = open_engine(path, manifest, engine, settings, check)
    return Explainer(opened, manifest, memory_mb)
