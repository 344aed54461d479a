"""Compare an explaining graph with its original network: names, then shapes, then values."""

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
from ..runtime.errors import TargetLayerError, VerificationError
from ..runtime.manifest import Manifest
from ..runtime.preprocess import crop_resized, normalise
from ..runtime.similarity import relative_difference
from ..runtime.sweep import Request, make_choice
from .attention import AttentionMaps
from .original_model import OriginalModel
from .reference_scores import compute_probabilities, compute_relative_drop, differentiate_score
from .references import Floats, Reference, directional_differences
from .verify_sweep import compare_masked_probabilities

# Reading more tensors lets the engine fuse fewer operators, at worst none of the original's.
_FUSING = 4
_CHANNELS_CHECKED = 4
_DIRECTIONS = 8
# Float32 leaves an error of about 1e-7 in an Ablation-CAM weight however small the weight is;
# untrained networks, whose classes are all alike, have no larger ones.
_LEAST_WEIGHT = 1e-4
_LEAST_PROBABILITY = 1e-12
# Maps whose range is a smaller share of the summed terms are compared less strictly, for min-max
# normalisation magnifies their rounding.
_FLAT = 0.1
_DRAWS = 6
_OF_ATTENTION = ("attention_maps", "attention_gradients")


class Runner(Protocol):
    """Runs an explaining graph with all outputs that were added."""

    def run(
        self, feeds: Mapping[str, NDArray[Any]], outputs: Sequence[str]
    ) -> dict[str, NDArray[Any]]:
        """Compute outputs by contract name, for ``image`` and ``target``."""
        ...

    def run_original_outputs(self, image: NDArray[Any]) -> list[NDArray[Any]]:
        """Compute the outputs that the file had before."""
        ...


@dataclass(frozen=True)
class AttentionReference:
    """The attention whose maps are explained, and the original network from these maps on."""

    attention: AttentionMaps
    reference: Reference


@dataclass(frozen=True)
class Subject:
    """An explaining graph and the references to compare it with.

    Attributes:
        engine: runs the graph.
        manifest: of the file.
        outputs: contract names and shapes of all outputs, without batch; None is k.
        reference: the original network.
        size: (H, W) of the network's input.
        original: the model before anything was added.
        earlier: references for each fused layer.
        attention: reference for the method ``legrad``; None without it.
        is_half: whether the network computes in half precision.
    """

    engine: Runner
    manifest: Manifest
    outputs: Mapping[str, tuple[int | None, ...]]
    reference: Reference
    size: tuple[int, int]
    original: OriginalModel | None = None
    earlier: tuple[Reference, ...] = ()
    attention: AttentionReference | None = None
    is_half: bool = False

    @property
    def tolerance(self) -> Tolerances:
        """The allowed differences; larger where the network computes in half precision."""
        return EXPORT_OF_HALF if self.is_half else EXPORT


def verify(subjects: Sequence[Subject], check: list[NDArray[Any]] | None = None) -> Comparison:
    """Compare on two inputs of two batch sizes, with one and two classes an image.

    Args:
        subjects: the graph and its references, for each input size to compare at; at the second
            one two images, at the third one image.
        check: further images, as the graph takes them, [1, ...] each, on which the file's original
            outputs are compared as well.

    Returns:
        The differences. ``own_outputs``, of the outputs that the file had before, relative to the
        largest value; where that exceeds 1e-6 also ``fusing``, by how much the original changes
        without operator fusion; ``probabilities``, absolute;
        ``activations``, ``gradients`` and ``ablation``, relative to the largest value;
        ``differences``: gradients against central differences in random directions, relative to
        the gradient's norm; ``earlier``, the same at fused layers;
        ``attention``, the same of attention maps; ``pixels``, of 255; ``maps``
        and ``tft``, absolute.

    Raises:
        VerificationError: an output is missing, has another shape, or differs too much.
        TargetLayerError: activations or gradients are zero on all test images.
    """
    rng = np.random.default_rng(0)
    subject = subjects[0]
    manifest = subject.manifest
    samples = []
    top = manifest.top
    counts = ((1, top or 1), (2, top or min(2, manifest.num_classes)))
    runs = [(subject, counts[0]), (subject, counts[1])]
    runs += [(other, counts[index % 2]) for index, other in enumerate(subjects[1:], 1)]
    is_lively = False
    for each, (batch, classes) in runs:
        errors, has_terms = _measure(each, rng, batch, classes)
        samples.append(errors)
        is_lively = is_lively or has_terms
        size = "" if len(subjects) == 1 else f", {each.size[0]} x {each.size[1]} pixels"
        _raise_on_problems(each, samples[-1], f"batch {batch}, {classes} classes{size}")
    if not is_lively:
        raise TargetLayerError(
            f"layer '{manifest.target_layer}' cannot be the target layer: on all test images its "
            "activations at places of the image, or the class scores' gradients there, are zero, "
            "so that all maps would be empty. Perhaps what follows reads other elements, as a "
            "class token. Name an earlier layer with --target-layer (--list-layers shows them)"
        )
    for image in check or []:
        samples.append(_original_output_differences(subject, image))
        _raise_on_problems(subject, samples[-1], "an image of yours")
    largest = {"fusing": max(sample.get("fusing", 0.0) for sample in samples)}
    return summarise(subject.reference.description, samples, _limits(subject, largest))


def _measure(
    subject: Subject, rng: np.random.Generator, batch: int, classes: int
) -> tuple[dict[str, float], bool]:
    """Measure the differences on a test image on which the network is numerically stable.

    It is not where its float32 and float64 differ much, or its gradient jumps.

    Returns:
        The differences, and whether any activation and any gradient is other than zero.

    Raises:
        VerificationError: there was no such image.
    """
    for _ in range(_DRAWS):
        image, outputs = _draw(subject, rng, batch, classes)
        view = outputs.get("network_input", image)
        errors = _differences(subject, view, outputs, rng)
        if "network_input" in outputs:
            errors["pixels"] = _pixel_difference(image, view, subject.manifest)
        if subject.manifest.map_methods:
            errors["maps"] = _map_difference(subject, outputs)
        if "tft" in subject.manifest.outputs:
            errors["tft"] = _sweep_difference(subject, view, outputs)
        if subject.earlier:
            errors["earlier"] = max(
                _gradient_error(subject, reference, _of_layer(index), view, outputs, rng)
                for index, reference in enumerate(subject.earlier)
            )
        if subject.attention is not None:
            errors["attention"] = _gradient_error(
                subject, subject.attention.reference, _OF_ATTENTION, view, outputs, rng
            )
        if subject.original is not None and "network_input" not in outputs:
            errors |= _original_output_differences(subject, image)
        is_lively = bool(outputs["activations"].any() and outputs["gradients"].any())
        if not _problems(subject, errors):
            return errors, is_lively
        rounding = _float32_error(subject, view)
        if rounding <= 0.5 and not _at_a_kink(subject, view, outputs, rng):
            return errors, is_lively
    if not rounding <= 1:
        raise VerificationError(
            f"the network magnifies rounding: on {_DRAWS} test images its float32 and float64 "
            f"answers differ too much, on the last by {rounding:.1g} times the tolerance. Batch "
            "normalisation of untrained networks does this. No file was written"
        )
    return errors, is_lively


def _raise_on_problems(subject: Subject, errors: dict[str, float], where: str) -> None:
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


def _draw(
    subject: Subject, rng: np.random.Generator, batch: int, classes: int
) -> tuple[NDArray[Any], dict[str, NDArray[Any]]]:
    """Draw test images and run the graph on them."""
    manifest = subject.manifest
    image = draw_natural_images(rng, batch, manifest)
    target = rng.integers(0, manifest.num_classes, (batch, classes))
    target[:, 0] = -1
    outputs = subject.engine.run({"image": image, "target": target}, list(subject.outputs))
    _check_shapes(outputs, subject, batch, classes)
    if manifest.top is None and not np.array_equal(outputs["targets"][:, 1:], target[:, 1:]):
        raise VerificationError(
            "the exported graph is wrong: it explains other classes than requested. No file was "
            "written"
        )
    return image, outputs


def draw_random_fields(
    rng: np.random.Generator, batch: int, size: tuple[int, int], channels: int = 3
) -> NDArray[np.float32]:
    """Draw coarse structure with fine noise, like normalised images: float32 [batch, C, H, W]."""
    coarse = np.asarray(cam.resize(rng.standard_normal((batch, channels, 8, 8)), size))
    noise = rng.standard_normal((batch, channels, *size))
    return (1.2 * coarse + 0.3 * noise).astype(np.float32)


def draw_natural_images(rng: np.random.Generator, batch: int, manifest: Manifest) -> NDArray[Any]:
    """Draw random images as the graph takes them, with the mean and spread of natural ones."""
    spec = manifest.preprocess
    if manifest.embedded_preprocess:
        size = selftest.make_input(manifest, 0).shape[1:3]
        pixels = np.clip(128 + 50 * draw_random_fields(rng, batch, size), 0, 255)
        return np.moveaxis(pixels, 1, -1).astype(np.uint8)
    fields = draw_random_fields(rng, batch, spec.size, spec.channels)
    mean, std = (np.asarray(values, np.float32)[:, None, None] for values in (spec.mean, spec.std))
    if spec.accepts_rgb or spec.value_range is None or set(spec.std) == {1.0}:
        image = (np.clip(0.45 + 0.22 * fields, 0, 1) - mean) / std
    else:  # of other images only the normalisation says how they are spread
        image = fields
    if manifest.image_dtype == "uint8":
        image = np.round(image)
    if manifest.layout == "NHWC":
        image = np.moveaxis(image, 1, -1)
    return np.ascontiguousarray(image.astype(manifest.image_dtype))


def _float32_error(subject: Subject, view: NDArray[Any]) -> float:
    """Measure how far the network's float32 is from its float64, in multiples of the tolerance."""
    if not subject.reference.is_exact:
        return 0.0
    heads = subject.manifest.output_heads
    exact, single = subject.reference.forward(view), subject.reference.forward32(view)
    parts = [relative_difference(single[1], exact[1]) / EXPORT["probabilities"]]
    if subject.manifest.task != "none":
        p64, p32 = (compute_probabilities(raw, heads) for _, raw in (exact, single))
        parts = [float(np.abs(p64 - p32).max()) / EXPORT["probabilities"]]
    if exact[0] is not None and single[0] is not None:
        parts.append(relative_difference(single[0], exact[0]) / EXPORT["activations"])
    return max(parts)


def _rows(
    outputs: Mapping[str, NDArray[Any]], view: NDArray[Any], name: str = "activations"
) -> tuple[Floats, NDArray[np.int64], NDArray[Any]]:
    """Repeat activations (float64) and images for each explained class; with the classes."""
    targets = np.asarray(outputs["targets"])
    activations = np.asarray(outputs[name], np.float64)
    count = targets.shape[1]
    return np.repeat(activations, count, axis=0), targets.ravel(), np.repeat(view, count, axis=0)


def _at_a_kink(
    subject: Subject,
    view: NDArray[Any],
    outputs: Mapping[str, NDArray[Any]],
    rng: np.random.Generator,
) -> bool:
    """Tell whether the exact gradient jumps when A changes by float32 rounding.

    At such a point (a tie in a max-pool, a ReLU at zero) float32 engines may differ, so another
    input is drawn.
    """
    activations, targets, images = _rows(outputs, view)
    heads, score = subject.manifest.output_heads, subject.manifest.gradient_score

    def gradient(a: Floats) -> Floats | None:
        seed = differentiate_score(subject.reference.head(a, images), targets, score, heads)
        return subject.reference.gradient(a, seed, images)

    exact = gradient(activations)
    if exact is None:
        return False
    moved = gradient(activations * (1 + 1e-6 * rng.standard_normal(activations.shape)))
    assert moved is not None
    return relative_difference(moved, exact) > EXPORT["gradients"] / 2


def _differences(
    subject: Subject,
    view: NDArray[Any],
    outputs: Mapping[str, NDArray[Any]],
    rng: np.random.Generator,
) -> dict[str, float]:
    manifest, reference = subject.manifest, subject.reference
    heads, classes = manifest.output_heads, outputs["targets"].shape[1]
    activations, raw = reference.forward(view)
    exact = compute_probabilities(raw, heads)
    scale = max(1.0, float(np.abs(exact).max())) if manifest.task == "none" else 1.0
    errors = {"probabilities": float(np.abs(outputs["probabilities"] - exact).max()) / scale}
    if activations is not None:
        errors["activations"] = relative_difference(outputs["activations"], activations)
    first = exact[:, : heads[0].num_classes]
    _check_most_probable(first, outputs, scale, subject.tolerance["probabilities"])
    # Gradients are compared at the file's activations: the backbone's rounding is measured on the
    # activations, and must not count a second time through the kinks of the head.
    own, targets, images = _rows(outputs, view)
    needs_scores = "ablation_weights" in outputs or manifest.gradient_score == "prob"
    scores = reference.head(own, images) if needs_scores else np.repeat(raw, classes, axis=0)
    seed = differentiate_score(scores, targets, manifest.gradient_score, heads)
    gradients = np.asarray(outputs["gradients"], np.float64).reshape(own.shape)
    true = reference.gradient(own, seed, images)
    if true is not None:
        errors["gradients"] = relative_difference(gradients, true)
    else:
        errors["differences"] = _directional_error(reference, own, seed, images, gradients, rng)
    if "ablation_weights" in outputs:
        errors["ablation"] = _ablation_error(subject, own, images, scores, targets, outputs, rng)
    return errors


def _check_most_probable(
    exact: Floats, outputs: Mapping[str, NDArray[Any]], scale: float, tolerance: float
) -> None:
    first = np.asarray(outputs["targets"])[:, 0]
    lead = exact.max(-1) - exact[np.arange(len(exact)), first]
    if float(lead.max()) > tolerance * scale:
        raise VerificationError(
            "the exported graph is wrong: it explains other classes than requested. No file was "
            "written"
        )


def _directional_error(
    reference: Reference,
    activations: Floats,
    seed: Floats,
    images: NDArray[Any],
    gradients: Floats,
    rng: np.random.Generator,
) -> float:
    """Compare gradients with central differences, relative to the gradient's norm.

    Zeros, as ReLU leaves them, stay zeros, for a max-pool has no derivative there.
    """
    moving = (activations != 0).astype(np.float64)
    directions = [moving * rng.standard_normal(activations.shape) for _ in range(_DIRECTIONS)]
    expected = directional_differences(reference, activations, seed, images, directions)
    actual = np.stack([(gradients * d).sum((1, 2, 3)) for d in directions], axis=-1)
    norm = np.sqrt(((gradients * moving) ** 2).sum((1, 2, 3)))[:, None]
    scale = np.maximum(norm, np.abs(expected).max(-1, keepdims=True) / 4)
    difference = np.abs(actual - expected)
    return float((difference / np.where(scale > 0, scale, 1.0)).max())


def _ablation_error(
    subject: Subject,
    activations: Floats,
    images: NDArray[Any],
    scores: Floats,
    targets: NDArray[np.int64],
    outputs: Mapping[str, NDArray[Any]],
    rng: np.random.Generator,
) -> float:
    """Compare a few channels' Ablation-CAM weights with the head without that channel."""
    heads, score = subject.manifest.output_heads, subject.manifest.ablation_score
    weights = np.asarray(outputs["ablation_weights"], np.float64).reshape(len(targets), -1)
    channels = rng.choice(weights.shape[1], min(_CHANNELS_CHECKED, weights.shape[1]), False)
    columns = []
    for channel in channels:
        without = activations.copy()
        without[:, channel] = 0
        other = subject.reference.head(without, images)
        columns.append(compute_relative_drop(scores, other, targets, score, heads))
    expected = np.stack(columns, axis=1)
    # Of a class with nearly no probability the weights are ratios of rounding errors.
    rows = (
        compute_probabilities(scores, heads)[np.arange(len(targets)), targets] > _LEAST_PROBABILITY
    )
    weights, expected = weights[rows], expected[rows]
    if not rows.any():
        return 0.0
    scale = max(float(np.abs(weights).max()), float(np.abs(expected).max()), _LEAST_WEIGHT)
    return float(np.abs(weights[:, channels] - expected).max()) / scale


def _original_output_differences(subject: Subject, image: NDArray[Any]) -> dict[str, float]:
    """Compare the outputs that the file had before; if they differ, measure fusion as well."""
    assert subject.original is not None
    before = subject.original.run(image)
    after = subject.engine.run_original_outputs(image)
    errors = {"own_outputs": _largest_relative(after, before)}
    if errors["own_outputs"] > EXPORT["own_outputs"]:
        errors["fusing"] = _largest_relative(subject.original.run_unfused(image), before)
    return errors


def _largest_relative(outputs: Sequence[NDArray[Any]], expected: Sequence[NDArray[Any]]) -> float:
    """Compute the largest difference relative to each output's largest value; 0 if identical."""
    worst = 0.0
    for after, before in zip(outputs, expected, strict=True):
        if before.shape != after.shape or before.dtype != after.dtype:
            return math.inf
        if not np.array_equal(before, after, equal_nan=before.dtype.kind == "f"):
            worst = max(
                worst, relative_difference(after.astype(np.float64), before.astype(np.float64))
            )
    return worst


def _map_difference(subject: Subject, outputs: Mapping[str, NDArray[Any]]) -> float:
    """Compare the file's maps with the runtime's formulas on the file's raw outputs."""
    manifest = subject.manifest
    worst = 0.0
    for method in manifest.map_methods:
        raw, terms = _raw_map(subject, method, outputs)
        maps = outputs[manifest.map_output(method) or ""]
        differences = np.abs(maps - cam.finish(raw, subject.size)).max((-2, -1))
        largest = np.maximum(terms.max((-2, -1)), np.finfo(np.float32).tiny)
        share = np.ptp(raw, axis=(-2, -1)) / largest
        worst = max(worst, float((differences * np.minimum(1.0, share / _FLAT)).max()))
    return worst


def _raw_map(
    subject: Subject, method: cam.Method, outputs: Mapping[str, NDArray[Any]]
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Compute a method's raw map, and its summed absolute terms, [N, k, h, w] each.

    A map's rounding error is proportional to the summed terms, which may cancel, as where a head
    ignores the scale of its activations.
    """
    if method == "legrad":
        assert subject.attention is not None
        relevance = cam.attention_relevance(outputs[_OF_ATTENTION[1]])
        raw = subject.attention.attention.take(relevance)
        return raw, raw
    weights = outputs.get("ablation_weights") if method == "ablation" else None
    raw = cam.raw_map(method, outputs["activations"], outputs["gradients"], weights)
    if subject.earlier and method == subject.manifest.map_method:
        names = [_of_layer(index) for index in range(len(subject.earlier))]
        before = [cam.raw_map(method, outputs[a], outputs[g]) for a, g in names]
        fused = cam.fuse([*before, raw])
        return fused, fused
    terms = selftest.absolute_map(method, outputs["activations"], outputs["gradients"], weights)
    return raw, terms


def _of_layer(index: int) -> tuple[str, str]:
    """Name the outputs with a fused layer's activations and gradients."""
    return f"activations_{index}", f"gradients_{index}"


def _gradient_error(
    subject: Subject,
    reference: Reference,
    names: tuple[str, str],
    view: NDArray[Any],
    outputs: Mapping[str, NDArray[Any]],
    rng: np.random.Generator,
) -> float:
    """Compare the gradients at a further layer, by central differences in random directions.

    Args:
        names: of the outputs with that layer's activations and gradients.
    """
    manifest = subject.manifest
    own, targets, images = _rows(outputs, view, names[0])
    seed = differentiate_score(
        reference.head(own, images), targets, manifest.gradient_score, manifest.output_heads
    )
    gradients = np.asarray(outputs[names[1]], np.float64).reshape(own.shape)
    true = reference.gradient(own, seed, images)
    if true is not None:
        norm = float(np.linalg.norm(true))
        return float(np.linalg.norm(gradients - true)) / (norm or 1.0)
    return _directional_error(reference, own, seed, images, gradients, rng)


def _sweep_difference(
    subject: Subject, view: NDArray[Any], outputs: Mapping[str, NDArray[Any]]
) -> float:
    """Compare the file's sweep with the runtime's on the original network and the file's maps.

    Returns the largest difference of a probability; infinite where thresholds or thresholded maps
    do not follow from the file's outputs.
    """
    manifest = subject.manifest
    classes = outputs["targets"]

    def classify(images: NDArray[np.float32]) -> NDArray[np.float32]:
        _, raw = subject.reference.forward32(images)
        return compute_probabilities(raw, manifest.output_heads).astype(np.float32)

    worst = 0.0
    for i, j in np.ndindex(*classes.shape):
        probability = float(outputs["probabilities"][i, classes[i, j]])
        request = Request(
            view[i],
            outputs["original_maps"][i, j],
            int(classes[i, j]),
            probability,
            manifest.layout,
        )
        rpi, masked = outputs["rpi"][i, j], outputs["masked_probabilities"][i, j]
        worst = max(worst, compare_masked_probabilities(classify, request, rpi, masked, manifest))
        choice = make_choice(request.map, rpi, masked, manifest.tft)
        same = np.float32(choice.threshold) == outputs["thresholds"][i, j]
        if not same or not np.array_equal(choice.map, outputs["maps"][i, j]):
            return math.inf
    return worst


def _pixel_difference(images: NDArray[np.uint8], view: NDArray[Any], manifest: Manifest) -> float:
    """Compare preprocessing in the graph with Pillow's, in units of 1/255, but for 0.1 % of pixels.

    Those may round either way, or lie where Pillow resizes in the other order.
    """
    spec = manifest.preprocess
    cropped = np.stack([crop_resized(image, spec)[0] for image in images])
    expected = normalise(cropped, spec, manifest.layout)
    step = np.asarray(spec.std, np.float32) * 255
    if manifest.layout == "NCHW":
        step = step[:, None, None]
    return float(np.quantile(np.abs(view - expected) * step, 0.999))


def _check_shapes(
    outputs: Mapping[str, NDArray[Any]], subject: Subject, batch: int, classes: int
) -> None:
    for name, inner in subject.outputs.items():
        expected = (batch, *(classes if side is None else side for side in inner))
        if outputs[name].shape != expected:
            raise VerificationError(
                f"the exported graph is wrong: output '{name}' has shape {outputs[name].shape}, "
                f"not {expected}. No file was written"
            )
