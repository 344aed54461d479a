"""Compare activations, gradients and Ablation-CAM weights with the original network's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..runtime.comparison import EXPORT
from ..runtime.errors import VerificationError
from ..runtime.similarity import relative_difference
from .reference_scores import compute_probabilities, compute_relative_drop, differentiate_score
from .references import Floats, Reference, directional_differences
from .verify_subject import Subject, rows_of_classes

_CHANNELS_CHECKED = 4


_DIRECTIONS = 8


# Float32 leaves an error of about 1e-7 in an Ablation-CAM weight however small the weight is;
# untrained networks, whose classes are all alike, have no larger ones.
_LEAST_WEIGHT = 1e-4


_LEAST_PROBABILITY = 1e-12


def measure_float32(subject: Subject, view: NDArray[Any]) -> float:
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


def is_at_kink(
    subject: Subject,
    view: NDArray[Any],
    outputs: Mapping[str, NDArray[Any]],
    rng: np.random.Generator,
) -> bool:
    """Tell whether the exact gradient jumps when A changes by float32 rounding.

    At such a point (a tie in a max-pool, a ReLU at zero) float32 engines may differ, so another
    input is drawn.
    """
    activations, targets, images = rows_of_classes(outputs, view)
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


def measure_differences(
    subject: Subject,
    view: NDArray[Any],
    outputs: Mapping[str, NDArray[Any]],
    rng: np.random.Generator,
) -> dict[str, float]:
    """Measure probabilities, activations, gradients and Ablation-CAM weights, by name."""
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
    own, targets, images = rows_of_classes(outputs, view)
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

    Zeros and the smallest value stay as they are, as ReLU and bounds from below leave them: there a
    max-pool has no derivative, and roots and powers have no smooth one.
    """
    moving = ((activations != 0) & (activations != activations.min())).astype(np.float64)
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


def measure_layer(
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
    own, targets, images = rows_of_classes(outputs, view, names[0])
    seed = differentiate_score(
        reference.head(own, images), targets, manifest.gradient_score, manifest.output_heads
    )
    gradients = np.asarray(outputs[names[1]], np.float64).reshape(own.shape)
    true = reference.gradient(own, seed, images)
    if true is not None:
        norm = float(np.linalg.norm(true))
        return float(np.linalg.norm(gradients - true)) / (norm or 1.0)
    return _directional_error(reference, own, seed, images, gradients, rng)
