"""Explain pictures with an explaining graph."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from . import cam, tft
from .cam import METHODS, Method
from .engine import Engine, open_engine
from .errors import EngineError, RequestError
from .explanation import Explanation
from .images import Picture, read_picture
from .manifest import Manifest
from .onnxfile import read_manifest
from .preprocess import Placement, crop_resized, normalise
from .sweep import Choice, Floats, Request, masked_image, sweep
from .targets import per_picture
from .tft import Tft

Thresholding = Tft | Literal["naive"] | bool | None
# Called with (done, total) forward passes of a long computation.
Progress = Callable[[int, int], None]

# Engines hold more than the activations alive at once: inputs, outputs, scratch space.
_ENGINE_OVERHEAD = 2


class Explainer:
    """A loaded model that explains its classifications.

    Safe to use from several threads, as far as the engine is.

    Attributes:
        manifest: what the model file says of itself.
        engine: what runs it.
        batch: how many images at most go through the network at once.
    """

    def __init__(self, engine: Engine, manifest: Manifest, memory_mb: int = 256) -> None:
        if memory_mb < 1:
            raise RequestError(f"memory_mb must be 1 or more, not {memory_mb}")
        self.engine = engine
        self.manifest = manifest
        per_image = max(1, manifest.image_bytes * _ENGINE_OVERHEAD)
        self.batch = max(1, memory_mb * 2**20 // per_image)

    def __repr__(self) -> str:
        return f"Explainer({self.manifest.model!r}, {self.engine.description})"

    def explain(
        self,
        images: Any,
        targets: Any = None,
        method: Method = "gradcam",
        tft: Thresholding = None,
        geometry: Literal["input", "picture"] = "input",
        progress: Progress | None = None,
    ) -> Any:
        """Explain one picture or many.

        Args:
            images: a path, a uint8 array [h, w, 3] in RGB order or a Pillow image; or a list,
                tuple or array [N, h, w, 3] of them.
            targets: the class to explain: its index, its label, or a rank from -1 (the most
                probable, the default) to -5. For several classes of one picture a list of these;
                for many pictures one target for all, or a list with one entry a picture.
            method: one of ``manifest.methods``.
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
        self._check_method(method)
        settings = self._thresholding(tft, method)
        if geometry not in ("input", "picture"):
            raise RequestError(f"geometry must be 'input' or 'picture', not {geometry!r}")
        pictures, many = _listed(images)
        wanted = per_picture(targets, len(pictures), many, self.manifest)
        results: list[Any] = []
        for start in range(0, len(pictures), self.batch):
            part = slice(start, start + self.batch)
            found = self._explain_batch(
                [read_picture(source) for source in pictures[part]],
                wanted[part],
                method,
                settings,
                geometry,
                progress,
            )
            results.extend(found)
        return results if many else results[0]

    def classify(self, images: Any) -> NDArray[np.float32]:
        """Class probabilities of one picture or many, float32 [N, C].

        Raises:
            ImageError: a picture cannot be read.
            EngineError: the engine failed, or the network returned NaN.
        """
        pictures, _ = _listed(images)
        rows = [
            self._probabilities(self._prepare([read_picture(p) for p in pictures[part]])[0])
            for part in _slices(len(pictures), self.batch)
        ]
        return (
            np.concatenate(rows) if rows else np.zeros((0, self.manifest.num_classes), np.float32)
        )

    def _check_method(self, method: str) -> None:
        if method not in METHODS:
            raise RequestError(f"there is no method '{method}'; choose from: {', '.join(METHODS)}")
        if method in self.manifest.methods:
            return
        if method == "cam":
            raise RequestError(
                "'cam' needs a head of global average pooling and one linear layer and gradients "
                f"of the logit; {self.manifest.model} was exported without these. Use 'gradcam', "
                "which equals it there and works for every head"
            )
        raise RequestError(
            f"this file was exported without '{method}' (it has: "
            f"{', '.join(self.manifest.methods)}). Export again with --methods {method}"
        )

    def _thresholding(self, wanted: Thresholding, method: Method) -> Tft | Literal["naive"] | None:
        if wanted is None or wanted is False:
            return None
        if wanted is True:
            return self.manifest.tft
        if wanted == "naive":
            if method not in tft.NAIVE:
                raise RequestError(
                    f"no customary threshold is known for '{method}' (paper table 1 has "
                    f"{', '.join(tft.NAIVE)}); use TFT, which finds one"
                )
            return "naive"
        if isinstance(wanted, Tft):
            return wanted
        raise RequestError(f"tft must be None, True, 'naive' or a Tft, not {wanted!r}")

    def _prepare(self, pictures: Sequence[Picture]) -> tuple[Floats, list[Placement]]:
        views, placements = zip(
            *(crop_resized(picture, self.manifest.preprocess) for picture in pictures), strict=True
        )
        return normalise(np.stack(views), self.manifest.preprocess), list(placements)

    def _probabilities(self, images: Floats) -> Floats:
        target = np.full((len(images), 1), -1, np.int64)
        found = self.engine.run({"image": images, "target": target}, ["probabilities"])
        return _finite(found["probabilities"])

    def _explain_batch(
        self,
        pictures: list[Picture],
        wanted: list[int | list[int]],
        method: Method,
        settings: Tft | Literal["naive"] | None,
        geometry: Literal["input", "picture"],
        progress: Progress | None,
    ) -> Iterator[Any]:
        images, placements = self._prepare(pictures)
        entries = [entry if isinstance(entry, list) else [entry] for entry in wanted]
        widest = max(map(len, entries))
        # Pictures with fewer classes repeat their first; those columns are not read.
        target = np.array([row + row[:1] * (widest - len(row)) for row in entries], np.int64)
        maps, probabilities, targets = self._maps(images, target, method, progress)
        cells = [(i, j) for i, row in enumerate(entries) for j in range(len(row))]
        requests = [
            Request(
                images[i], maps[i, j], int(targets[i, j]), float(probabilities[i, targets[i, j]])
            )
            for i, j in cells
        ]
        choices = self._threshold(requests, settings, method)
        explained = [
            self._explanation(
                pictures[i], placements[i], request, choice, method, settings, geometry
            )
            for (i, _), request, choice in zip(cells, requests, choices, strict=True)
        ]
        of_cell = dict(zip(cells, explained, strict=True))
        for i, entry in enumerate(wanted):
            found = [of_cell[i, j] for j in range(len(entries[i]))]
            yield found if isinstance(entry, list) else found[0]

    def _maps(
        self, images: Floats, target: NDArray[np.int64], method: Method, progress: Progress | None
    ) -> tuple[Floats, Floats, NDArray[np.int64]]:
        """Maps [N, k, H, W] in [0, 1], probabilities [N, C], classes [N, k]."""
        outputs = ["probabilities", "targets", "activations"]
        if method == "ablation":
            outputs.append("ablation_weights")
        elif method != "scorecam":
            outputs.append("gradients")
        found = self.engine.run({"image": images, "target": target}, outputs)
        probabilities = _finite(found["probabilities"])
        activations, targets = found["activations"], found["targets"]
        weights = found.get("ablation_weights")
        if method == "scorecam":
            weights = self._score_weights(images, activations, targets, progress)
        raw = cam.raw_map(method, activations, found.get("gradients"), weights)
        maps = np.asarray(cam.finish(raw, self.manifest.preprocess.size), dtype=np.float32)
        return maps, probabilities, targets

    def _score_weights(
        self,
        images: Floats,
        activations: Floats,
        targets: NDArray[np.int64],
        progress: Progress | None,
    ) -> Floats:
        """Score-CAM (Wang et al. 2020): alpha_k = p_c(x * s(up(A_k))), float32 [N, k, K].

        One forward pass a channel. As in its authors' code the weight is the probability under
        the mask, and a constant channel, which shows no place, weighs nothing.
        """
        n, channels = activations.shape[:2]
        weights = np.zeros((n, targets.shape[1], channels), np.float32)
        done = 0
        for i in range(n):
            for part in _slices(channels, self.batch):
                masks = cam.finish(activations[i, part], self.manifest.preprocess.size)
                rows = self._probabilities(masked_image(images[i], masks[:, None]))
                shown = masks.any(axis=(-2, -1))
                weights[i, :, part] = np.where(shown, rows[:, targets[i]].T, 0)
                done += len(rows)
                if progress is not None:
                    progress(done, n * channels)
        return weights

    def _threshold(
        self,
        requests: list[Request],
        settings: Tft | Literal["naive"] | None,
        method: Method,
    ) -> Sequence[Choice | None]:
        if settings is None:
            return [None] * len(requests)
        if settings == "naive":
            return [_naive(request, tft.NAIVE[method]) for request in requests]
        return sweep(self._probabilities, requests, settings, self.batch)

    def _explanation(
        self,
        picture: Picture,
        placement: Placement,
        request: Request,
        choice: Choice | None,
        method: Method,
        settings: Tft | Literal["naive"] | None,
        geometry: Literal["input", "picture"],
    ) -> Explanation:
        explanation = Explanation(
            index=request.target,
            label=self.manifest.label(request.target),
            probability=request.probability,
            method=method,
            map=request.map if choice is None else choice.map,
            original_map=request.map,
            picture=picture,
            placement=placement,
        )
        if choice is not None:
            explanation = replace(
                explanation, mask=choice.mask, threshold=choice.threshold, cut=choice.cut
            )
        if choice is not None and isinstance(settings, Tft):
            explanation = replace(
                explanation,
                rpi=choice.rpi,
                improved=choice.improved,
                masked_probability=choice.masked_probability,
                tft=settings,
            )
        return explanation.over_picture() if geometry == "picture" else explanation


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
) -> Explainer:
    """Load an explaining graph.

    Args:
        path: an ONNX file made by ``whycam export``.
        engine: ``auto`` or a name in ``runtime.engine.ENGINES``.
        threads: for one run; None lets the engine use every core.
        memory_mb: bound on the activations of one batch, in MiB; larger ones are run in parts.

    Raises:
        ModelFileError: the file is missing, damaged, or was not made by whycam.
        EngineError: the engine does not exist or cannot be used as asked.
        MissingExtraError: the engine's package is not installed.
    """
    manifest = read_manifest(path)
    return Explainer(open_engine(path, manifest, engine, threads), manifest, memory_mb)
