"""Hold an explaining graph against the network it was made of: names, then shapes, then values."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..runtime import cam
from ..runtime.comparison import (
    EXPORT,
    EXPORT_OF_HALF,
    Comparison,
    Tolerances,
    describe_excess,
    summarise,
)
from ..runtime.engines import selftest
from ..runtime.errors import VerificationError
from ..runtime.manifest import Manifest
from ..runtime.preprocess import crop_resized, normalise
from ..runtime.similarity import relative_difference
from ..runtime.sweep import Request, make_choice
from .original_model import OriginalModel
from .reference_scores import compute_probabilities, compute_relative_drop, differentiate_score
from .references import Floats, Reference, directional_differences
from .verify_sweep import compare_masked_probabilities

# Where more tensors are read, fewer operators are fused: at most all that the original fuses.
_FUSING = 4
_CHANNELS_CHECKED = 4
_DIRECTIONS = 8
# Float32 leaves an error of about 1e-7 in an Ablation-CAM weight however small the weight is;
# untrained networks, whose classes are all alike, have no larger ones.
_LEAST_WEIGHT = 1e-4
_LEAST_PROBABILITY = 1e-12
# A map whose range is a smaller part of what was summed is judged the less strictly, for min-max
# magnifies its rounding.
_FLAT = 0.1
_DRAWS = 6


class Runner(Protocol):
    """Runs an explaining graph with all outputs that assembly made."""

    def run(
        self, feeds: Mapping[str, NDArray[Any]], outputs: Sequence[str]
    ) -> dict[str, NDArray[Any]]:
        """Outputs by contract name, for ``image`` and ``target``."""
        ...

    def own(self, image: NDArray[Any]) -> list[NDArray[Any]]:
        """The outputs that the file had before."""
        ...


@dataclass(frozen=True)
class Subject:
    """The graph that is verified.

    Attributes:
        engine: runs it.
        manifest: of the file.
        outputs: contract names and shapes of all it gives out, without batch; None is k.
        reference: what it is held against.
        size: (H, W) of the network's input.
        original: the model before anything was added.
        earlier: references for each fused layer.
        is_half: whether the network computes in half precision.
    """

    engine: Runner
    manifest: Manifest
    outputs: Mapping[str, tuple[int | None, ...]]
    reference: Reference
    size: tuple[int, int]
    original: OriginalModel | None = None
    earlier: tuple[Reference, ...] = ()
    is_half: bool = False

    @property
    def tolerance(self) -> Tolerances:
        """What may differ: more where the network itself computes in half precision."""
        return EXPORT_OF_HALF if self.is_half else EXPORT


def verify(subject: Subject, check: list[NDArray[Any]] | None = None) -> Comparison:
    """Compare on two inputs of two batch sizes, with one and two classes an image.

    Args:
        subject: the graph, and what it is held against.
        check: images of the user's own, as the graph takes them, [1, ...] each, on which the file's
            own outputs are compared as well.

    Returns:
        The differences found. ``own_outputs`` (relative to their largest value), of the outputs
        that the file had before, and where they differ by more than 1e-6 ``fusing``: how far the
        original is from itself when the engine fuses no operators; ``probabilities``, absolute;
        ``activations``, ``gradients`` and ``ablation``, relative to the largest value;
        ``differences``: gradients against central differences in random directions, relative to
        the gradient's norm; ``earlier``, the same at fused layers; ``pixels``, of 255; ``maps``
        and ``tft``, absolute.

    Raises:
        VerificationError: an output is missing, has another shape, or differs too much.
    """
    rng = np.random.default_rng(0)
    manifest = subject.manifest
    samples = []
    top = manifest.top
    for batch, classes in ((1, top or 1), (2, top or min(2, manifest.num_classes))):
        samples.append(_compared(subject, rng, batch, classes))
        _refuse(subject, samples[-1], f"batch {batch}, {classes} classes")
    for image in check or []:
        samples.append(_own_differences(subject, image))
        _refuse(subject, samples[-1], "an image of yours")
    largest = {"fusing": max(sample.get("fusing", 0.0) for sample in samples)}
    return summarise(subject.reference.description, samples, _limits(subject, largest))


def _compared(
    subject: Subject, rng: np.random.Generator, batch: int, classes: int
) -> dict[str, float]:
    """The differences on one test image; on another one where the network itself is not defined.

    That is so where its own float32 is far from its float64, or its gradient jumps.

    Raises:
        VerificationError: there was no image on which it is.
    """
    for _ in range(_DRAWS):
        image, found = _drawn(subject, rng, batch, classes)
        view = found.get("network_input", image)
        errors = _differences(subject, view, found, rng)
        if "network_input" in found:
            errors["pixels"] = _pixel_difference(image, view, subject.manifest)
        if subject.manifest.map_methods:
            errors["maps"] = _map_difference(subject, found)
        if "tft" in subject.manifest.outputs:
            errors["tft"] = _sweep_difference(subject, view, found)
        if subject.earlier:
            errors["earlier"] = _earlier_difference(subject, found, rng)
        if subject.original is not None and "network_input" not in found:
            errors |= _own_differences(subject, image)
        if not _problems(subject, errors):
            return errors
        rounding = _own_rounding(subject, view)
        if rounding <= 0.5 and not _at_a_kink(subject, found, rng):
            return errors
    if not rounding <= 1:
        raise VerificationError(
            f"the network magnifies rounding: of {_DRAWS} test images there was none on which "
            "PyTorch's own answers are defined; on the last, those in float32 and in float64 "
            f"differ by {rounding:.1g} times what a file's may. "
            "Statistics of batch normalisation that do not fit the images, as in an untrained "
            "network, do this. No file was written"
        )
    return errors


def _refuse(subject: Subject, errors: dict[str, float], where: str) -> None:
    problems = _problems(subject, errors)
    if problems:
        raise VerificationError(
            f"the exported graph is wrong: {'; '.join(problems)} ({where}). No file was written"
        )


def _problems(subject: Subject, errors: Mapping[str, float]) -> tuple[str, ...]:
    return describe_excess(errors, _limits(subject, errors))


def _limits(subject: Subject, errors: Mapping[str, float]) -> Tolerances:
    allowed = subject.tolerance
    fusing = _FUSING * errors.get("fusing", 0.0)
    return {**allowed, "own_outputs": max(allowed["own_outputs"], fusing)}


def _drawn(
    subject: Subject, rng: np.random.Generator, batch: int, classes: int
) -> tuple[NDArray[Any], dict[str, NDArray[Any]]]:
    """A test image, and what the graph says of it."""
    manifest = subject.manifest
    image = draw_natural_images(rng, batch, manifest)
    target = rng.integers(0, manifest.num_classes, (batch, classes))
    target[:, 0] = -1
    found = subject.engine.run({"image": image, "target": target}, list(subject.outputs))
    _check_shapes(found, subject, batch, classes)
    if manifest.top is None and not np.array_equal(found["targets"][:, 1:], target[:, 1:]):
        raise VerificationError(
            "the exported graph is wrong: it explains other classes than asked for. No file was "
            "written"
        )
    return image, found


def draw_random_fields(
    rng: np.random.Generator, batch: int, size: tuple[int, int], channels: int = 3
) -> NDArray[np.float32]:
    """Coarse ones with fine noise on top, as normalised images: float32 [batch, C, H, W]."""
    coarse = np.asarray(cam.resize(rng.standard_normal((batch, channels, 8, 8)), size))
    noise = rng.standard_normal((batch, channels, *size))
    return (1.2 * coarse + 0.3 * noise).astype(np.float32)


def draw_natural_images(rng: np.random.Generator, batch: int, manifest: Manifest) -> NDArray[Any]:
    """Random fields as the graph takes its images: with the mean and spread of natural ones."""
    spec = manifest.preprocess
    if manifest.embedded_preprocess:
        size = selftest.make_input(manifest, 0).shape[1:3]
        pixels = np.clip(128 + 50 * draw_random_fields(rng, batch, size), 0, 255)
        return np.moveaxis(pixels, 1, -1).astype(np.uint8)
    fields = draw_random_fields(rng, batch, spec.size, spec.channels)
    # As a photograph's pixels would come out of this preprocessing.
    mean, std = (np.asarray(each, np.float32)[:, None, None] for each in (spec.mean, spec.std))
    image = (np.clip(0.45 + 0.22 * fields, 0, 1) - mean) / std
    if manifest.image_dtype == "uint8":
        image = np.round(image)
    if manifest.layout == "NHWC":
        image = np.moveaxis(image, 1, -1)
    return np.ascontiguousarray(image.astype(manifest.image_dtype))


def _own_rounding(subject: Subject, view: NDArray[Any]) -> float:
    """How far the network's float32 is from its float64, over what the file may be."""
    if not subject.reference.is_exact:
        return 0.0
    task = subject.manifest.task
    exact, own = (each(view) for each in (subject.reference.forward, subject.reference.forward32))
    parts = [relative_difference(own[1], exact[1]) / EXPORT["probabilities"]]
    if task != "none":
        wide, narrow = (compute_probabilities(each[1], task) for each in (exact, own))
        parts = [float(np.abs(wide - narrow).max()) / EXPORT["probabilities"]]
    if exact[0] is not None and own[0] is not None:
        parts.append(relative_difference(own[0], exact[0]) / EXPORT["activations"])
    return max(parts)


def _rows(found: Mapping[str, NDArray[Any]]) -> tuple[Floats, NDArray[np.int64]]:
    """The file's own activations in float64, once per explained class, and the classes."""
    targets = np.asarray(found["targets"])
    activations = np.asarray(found["activations"], np.float64)
    return np.repeat(activations, targets.shape[1], axis=0), targets.ravel()


def _at_a_kink(
    subject: Subject, found: Mapping[str, NDArray[Any]], rng: np.random.Generator
) -> bool:
    """Whether the true gradient itself jumps here when A changes by float32 rounding.

    At such a point (two activations of a max-pool tie, a ReLU sits at zero) no float32 engine
    has a defined answer, so another input is drawn.
    """
    activations, targets = _rows(found)
    task, score = subject.manifest.task, subject.manifest.gradient_score

    def gradient(a: Floats) -> Floats | None:
        seed = differentiate_score(subject.reference.head(a), targets, score, task)
        return subject.reference.gradient(a, seed)

    exact = gradient(activations)
    if exact is None:
        return False
    moved = gradient(activations * (1 + 1e-6 * rng.standard_normal(activations.shape)))
    assert moved is not None
    return relative_difference(moved, exact) > EXPORT["gradients"] / 2


def _differences(
    subject: Subject,
    view: NDArray[Any],
    found: Mapping[str, NDArray[Any]],
    rng: np.random.Generator,
) -> dict[str, float]:
    manifest, reference = subject.manifest, subject.reference
    task, classes = manifest.task, found["targets"].shape[1]
    activations, raw = reference.forward(view)
    exact = compute_probabilities(raw, task)
    scale = max(1.0, float(np.abs(exact).max())) if task == "none" else 1.0
    errors = {"probabilities": float(np.abs(found["probabilities"] - exact).max()) / scale}
    if activations is not None:
        errors["activations"] = relative_difference(found["activations"], activations)
    _check_most_probable(exact, found, scale, subject.tolerance["probabilities"])
    # Gradients are compared at the file's own activations: what the backbone rounds is judged by
    # the activations, and must not be counted again through the kinks of the head.
    own, targets = _rows(found)
    needs_scores = "ablation_weights" in found or manifest.gradient_score == "prob"
    scores = reference.head(own) if needs_scores else np.repeat(raw, classes, axis=0)
    seed = differentiate_score(scores, targets, manifest.gradient_score, task)
    gradients = np.asarray(found["gradients"], np.float64).reshape(own.shape)
    true = reference.gradient(own, seed)
    if true is not None:
        errors["gradients"] = relative_difference(gradients, true)
    else:
        errors["differences"] = _directional_error(reference, own, seed, gradients, rng)
    if "ablation_weights" in found:
        errors["ablation"] = _ablation_error(subject, own, scores, targets, found, rng)
    return errors


def _check_most_probable(
    exact: Floats, found: Mapping[str, NDArray[Any]], scale: float, tolerance: float
) -> None:
    first = np.asarray(found["targets"])[:, 0]
    lead = exact.max(-1) - exact[np.arange(len(exact)), first]
    if float(lead.max()) > tolerance * scale:
        raise VerificationError(
            "the exported graph is wrong: it explains other classes than asked for. No file was "
            "written"
        )


def _directional_error(
    reference: Reference,
    activations: Floats,
    seed: Floats,
    gradients: Floats,
    rng: np.random.Generator,
) -> float:
    """Of gradients against central differences, relative to the gradient's norm.

    Zeros, as ReLU leaves them, stay zeros: among them a max-pool has no derivative.
    """
    moving = (activations != 0).astype(np.float64)
    directions = [moving * rng.standard_normal(activations.shape) for _ in range(_DIRECTIONS)]
    expected = directional_differences(reference, activations, seed, directions)
    own = np.stack([(gradients * each).sum((1, 2, 3)) for each in directions], axis=-1)
    norm = np.sqrt(((gradients * moving) ** 2).sum((1, 2, 3)))[:, None]
    scale = np.maximum(norm, np.abs(expected).max(-1, keepdims=True) / 4)
    difference = np.abs(own - expected)
    return float((difference / np.where(scale > 0, scale, 1.0)).max())


def _ablation_error(
    subject: Subject,
    activations: Floats,
    scores: Floats,
    targets: NDArray[np.int64],
    found: Mapping[str, NDArray[Any]],
    rng: np.random.Generator,
) -> float:
    """Of Ablation-CAM's weights against the head without a channel, for a few channels."""
    task, score = subject.manifest.task, subject.manifest.ablation_score
    weights = np.asarray(found["ablation_weights"], np.float64).reshape(len(targets), -1)
    channels = rng.choice(weights.shape[1], min(_CHANNELS_CHECKED, weights.shape[1]), False)
    columns = []
    for channel in channels:
        without = activations.copy()
        without[:, channel] = 0
        other = subject.reference.head(without)
        columns.append(compute_relative_drop(scores, other, targets, score, task))
    expected = np.stack(columns, axis=1)
    # A class that the network all but excludes says nothing: its ratios of rounded zeros.
    rows = (
        compute_probabilities(scores, task)[np.arange(len(targets)), targets] > _LEAST_PROBABILITY
    )
    weights, expected = weights[rows], expected[rows]
    if not rows.any():
        return 0.0
    scale = max(float(np.abs(weights).max()), float(np.abs(expected).max()), _LEAST_WEIGHT)
    return float(np.abs(weights[:, channels] - expected).max()) / scale


def _own_differences(subject: Subject, image: NDArray[Any]) -> dict[str, float]:
    """Of the outputs that the file had before; and of fusing, if they are not the same."""
    assert subject.original is not None
    before = subject.original.outputs(image)
    errors = {"own_outputs": _largest_relative(subject.engine.own(image), before)}
    if errors["own_outputs"] > EXPORT["own_outputs"]:
        errors["fusing"] = _largest_relative(subject.original.unfused(image), before)
    return errors


def _largest_relative(found: Sequence[NDArray[Any]], expected: Sequence[NDArray[Any]]) -> float:
    """Over several outputs, relative to the largest value of each; 0: bit for bit."""
    worst = 0.0
    for after, before in zip(found, expected, strict=True):
        if before.shape != after.shape or before.dtype != after.dtype:
            return math.inf
        if not np.array_equal(before, after, equal_nan=before.dtype.kind == "f"):
            worst = max(
                worst, relative_difference(after.astype(np.float64), before.astype(np.float64))
            )
    return worst


def _map_difference(subject: Subject, found: Mapping[str, NDArray[Any]]) -> float:
    """The file's own maps against the runtime's arithmetic on the file's raw outputs."""
    manifest = subject.manifest
    worst = 0.0
    for method in manifest.map_methods:
        weights = found.get("ablation_weights") if method == "ablation" else None
        raw = cam.raw_map(method, found["activations"], found["gradients"], weights)
        if subject.earlier and method == manifest.map_method:
            before = [
                cam.raw_map(method, found[f"activations_{i}"], found[f"gradients_{i}"])
                for i in range(len(subject.earlier))
            ]
            raw = terms = cam.fuse([*before, raw])
        else:
            # A map's rounding is a part of the terms of its sums, which may cancel: the gradient of
            # a head that ignores scale is at right angles to the mean.
            terms = selftest.absolute_map(method, found["activations"], found["gradients"], weights)
        maps = found[manifest.map_output(method) or ""]
        differences = np.abs(maps - cam.finish(raw, subject.size)).max((-2, -1))
        largest = np.maximum(terms.max((-2, -1)), np.finfo(np.float32).tiny)
        share = np.ptp(raw, axis=(-2, -1)) / largest
        worst = max(worst, float((differences * np.minimum(1.0, share / _FLAT)).max()))
    return worst


def _earlier_difference(
    subject: Subject, found: Mapping[str, NDArray[Any]], rng: np.random.Generator
) -> float:
    """Of the gradients at fused layers, by central differences in random directions."""
    targets = np.asarray(found["targets"])
    manifest = subject.manifest
    worst = 0.0
    for index, reference in enumerate(subject.earlier):
        own = np.repeat(
            np.asarray(found[f"activations_{index}"], np.float64), targets.shape[1], axis=0
        )
        seed = differentiate_score(
            reference.head(own), targets.ravel(), manifest.gradient_score, manifest.task
        )
        gradients = np.asarray(found[f"gradients_{index}"], np.float64).reshape(own.shape)
        true = reference.gradient(own, seed)
        if true is not None:
            norm = float(np.linalg.norm(true))
            error = float(np.linalg.norm(gradients - true)) / (norm or 1.0)
        else:
            error = _directional_error(reference, own, seed, gradients, rng)
        worst = max(worst, error)
    return worst


def _sweep_difference(
    subject: Subject, view: NDArray[Any], found: Mapping[str, NDArray[Any]]
) -> float:
    """The file's sweep against the runtime's with the network behind it, on the file's own maps.

    The largest difference of the class's probability; infinite where thresholds, or the maps cut
    at them, do not follow from the file's own numbers.
    """
    manifest = subject.manifest
    classes = found["targets"]

    def classify(images: NDArray[np.float32]) -> NDArray[np.float32]:
        _, raw = subject.reference.forward32(images)
        return compute_probabilities(raw, manifest.task).astype(np.float32)

    worst = 0.0
    for i, j in np.ndindex(*classes.shape):
        probability = float(found["probabilities"][i, classes[i, j]])
        request = Request(
            view[i],
            found["original_maps"][i, j],
            int(classes[i, j]),
            probability,
            manifest.layout,
        )
        rpi, masked = found["rpi"][i, j], found["masked_probabilities"][i, j]
        worst = max(worst, compare_masked_probabilities(classify, request, rpi, masked, manifest))
        own = make_choice(request.map, rpi, masked, manifest.tft)
        same = np.float32(own.threshold) == found["thresholds"][i, j]
        if not same or not np.array_equal(own.map, found["maps"][i, j]):
            return math.inf
    return worst


def _pixel_difference(images: NDArray[np.uint8], view: NDArray[Any], manifest: Manifest) -> float:
    """The file's view of images against Pillow's, in steps of 1 of 255, but for 0.1 % of pixels.

    Those may lie half way between two values, or where Pillow resizes in the other order.
    """
    spec = manifest.preprocess
    cropped = np.stack([crop_resized(image, spec)[0] for image in images])
    expected = normalise(cropped, spec, manifest.layout)
    step = np.asarray(spec.std, np.float32) * 255
    if manifest.layout == "NCHW":
        step = step[:, None, None]
    return float(np.quantile(np.abs(view - expected) * step, 0.999))


def _check_shapes(
    found: Mapping[str, NDArray[Any]], subject: Subject, batch: int, classes: int
) -> None:
    for name, inner in subject.outputs.items():
        expected = (batch, *(classes if side is None else side for side in inner))
        if found[name].shape != expected:
            raise VerificationError(
                f"the exported graph is wrong: output '{name}' has the shape {found[name].shape}, "
                f"not {expected}. No file was written"
            )
