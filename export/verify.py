"""Compare an explaining graph with its original network: names, then shapes, then values."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..runtime.comparison import (
    EXPORT,
    Comparison,
    Tolerances,
    describe_excess,
    summarise,
)
from ..runtime.errors import TargetLayerError, VerificationError
from ..runtime.similarity import relative_difference
from .original_model import OriginalModel
from .verify_gradients import is_at_kink, measure_differences, measure_float32, measure_layer
from .verify_maps import measure_maps, measure_pixels, measure_sweep, name_outputs_of_layer
from .verify_subject import OUTPUTS_OF_ATTENTION, Runner, Subject, draw_natural_images

# Reading more tensors lets the engine fuse fewer operators, at worst none of the original's.
FUSING = 4
_DRAWS = 6


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
        assert subject.original is not None
        samples.append(compare_original_outputs(subject.original, subject.engine, image))
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
        errors = measure_differences(subject, view, outputs, rng)
        if "network_input" in outputs:
            errors["pixels"] = measure_pixels(image, view, subject.manifest)
        if subject.manifest.map_methods:
            errors["maps"] = measure_maps(subject, outputs)
        if "tft" in subject.manifest.outputs:
            errors["tft"] = measure_sweep(subject, view, outputs)
        if subject.earlier:
            errors["earlier"] = max(
                measure_layer(subject, reference, name_outputs_of_layer(index), view, outputs, rng)
                for index, reference in enumerate(subject.earlier)
            )
        if subject.attention is not None:
            errors["attention"] = measure_layer(
                subject, subject.attention.reference, OUTPUTS_OF_ATTENTION, view, outputs, rng
            )
        if subject.original is not None and "network_input" not in outputs:
            errors |= compare_original_outputs(subject.original, subject.engine, image)
        is_lively = bool(outputs["activations"].any() and outputs["gradients"].any())
        if not _problems(subject, errors):
            return errors, is_lively
        rounding = measure_float32(subject, view)
        if rounding <= 0.5 and not is_at_kink(subject, view, outputs, rng):
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
    fusing = FUSING * errors.get("fusing", 0.0)
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


def compare_original_outputs(
    original: OriginalModel, engine: Runner, image: NDArray[Any]
) -> dict[str, float]:
    """Compare the outputs that the file had before; if they differ, measure fusion as well."""
    before = original.run(image)
    after = engine.run_original_outputs(image)
    errors = {"own_outputs": _largest_relative(after, before)}
    if errors["own_outputs"] > EXPORT["own_outputs"]:
        errors["fusing"] = _largest_relative(original.run_unfused(image), before)
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
