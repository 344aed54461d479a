"""An engine's answers for pictures held against the reference's, and what is too far off."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from ..engines.selftest import Tolerance
from ..likeness import overlap, pearson

Arrays = Mapping[str, NDArray[Any]]
# Of maps that agree, where no map is nearly constant: in float32, and in less precision.
_CORRELATION, _CORRELATION_REDUCED = 0.999, 0.9
# A pixel that falls on the other side of a threshold changes the masked picture a little.
_SWEEP = 10


class MapLikeness(msgspec.Struct, frozen=True, kw_only=True):
    """One method's maps.

    Attributes:
        correlation, correlation_low: of the pixels; median and lowest over pictures.
        apart: largest absolute difference of a pixel.
    """

    correlation: float
    correlation_low: float
    apart: float


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """An engine's answers beside the reference's, for the same classes.

    Attributes:
        pictures: how many.
        same_class: share with the same most probable class.
        probability: largest absolute difference, of any class; of values that are no
            probabilities, as a share of the largest where that is above 1.
        activations, gradients: largest absolute difference as a share of the reference's largest
            value, worst picture; None where the file does not return them. Gradients jump where
            two activations of a max-pool nearly tie, so they are reported and not judged.
        maps: by method.
        same_threshold: share of pictures with the same tau*; None where TFT was not run.
        mask_overlap: mean intersection over union of the masks under it.
        masked: largest absolute difference of the probability that masking raises, median
            over pictures.
        problems: what is further off than it may be.
    """

    pictures: int
    same_class: float
    probability: float
    activations: float | None = None
    gradients: float | None = None
    maps: dict[str, MapLikeness]
    same_threshold: float | None = None
    mask_overlap: float | None = None
    masked: float | None = None
    problems: tuple[str, ...] = ()


def compare(
    reference: Arrays, other: Arrays, targets: Sequence[int], allowed: Tolerance, exact: bool
) -> Comparison:
    """Hold answers against the reference's.

    Args:
        reference, other: see ``doctor_job.Answers``, from one file or from two of one network.
        targets: the classes explained.
        allowed: differences.
        exact: whether both are float32. Then every picture must be right, else the median one.
    """
    pictures = range(len(targets))
    typical = np.max if exact else np.median
    ours, theirs = (_stacked(each, "probabilities", pictures) for each in (reference, other))
    chosen = np.asarray(targets)
    # Values that are no probabilities may be of any size.
    scale = max(1.0, float(np.abs(ours).max()))
    ours, theirs = ours / scale, theirs / scale
    # By how much another class leads: 0 where the class explained is the most probable one.
    lead = theirs.max(1) - theirs[np.arange(len(chosen)), chosen]
    lead -= ours.max(1) - ours[np.arange(len(chosen)), chosen]
    apart = np.abs(theirs - ours).max(1)
    problems = []
    if typical(np.maximum(lead, apart)) > allowed.probability:
        problems.append(
            f"probabilities are off by {typical(apart):.1e}, and another class leads by "
            f"{max(typical(lead), 0):.1e} (each at most {allowed.probability:g})"
        )
    maps = {}
    names = [name.removeprefix("0.map.") for name in reference if name.startswith("0.map.")]
    for method in (name for name in names if f"0.map.{name}" in other):
        ours, theirs = (_stacked(each, f"map.{method}", pictures) for each in (reference, other))
        differences = np.abs(theirs - ours).reshape(len(chosen), -1).max(1)
        alike = np.array([pearson(a, b) for a, b in zip(ours, theirs, strict=True)])
        least = _CORRELATION if exact else _CORRELATION_REDUCED
        # A map that is nearly constant is not defined up to rounding, but then it hardly moves.
        bad = np.where(differences > allowed.map, np.maximum(least - alike, 0), 0)
        if typical(bad) > 0:
            problems.append(
                f"{method} maps correlate by {(np.min if exact else np.median)(alike):.4f} "
                f"(at least {least:g})"
            )
        maps[method] = MapLikeness(
            correlation=float(np.median(alike)),
            correlation_low=float(alike.min()),
            apart=float(differences.max()),
        )
    swept = _swept(reference, other, pictures)
    if swept.get("masked", 0) > _SWEEP * allowed.probability:
        problems.append(
            f"masked pictures get probabilities that are off by {swept['masked']:.1e} (at most "
            f"{_SWEEP * allowed.probability:g})"
        )
    return Comparison(
        pictures=len(chosen),
        same_class=float(np.mean(_top(reference, pictures) == _top(other, pictures))),
        probability=float(apart.max()),
        activations=_relative(reference, other, "activations", pictures),
        gradients=_relative(reference, other, "gradients", pictures),
        maps=maps,
        problems=tuple(problems),
        **swept,
    )


def _stacked(arrays: Arrays, name: str, pictures: Sequence[int]) -> NDArray[Any]:
    return np.stack([arrays[f"{index}.{name}"] for index in pictures])


def _top(arrays: Arrays, pictures: Sequence[int]) -> NDArray[Any]:
    return np.asarray(_stacked(arrays, "probabilities", pictures).argmax(1))


def _relative(reference: Arrays, other: Arrays, name: str, pictures: Sequence[int]) -> float | None:
    if f"0.{name}" not in reference or f"0.{name}" not in other:
        return None
    worst = 0.0
    for index in pictures:
        ours, theirs = (each[f"{index}.{name}"] for each in (reference, other))
        worst = max(worst, float(np.abs(theirs - ours).max() / max(np.abs(ours).max(), 1e-30)))
    return worst


def _swept(reference: Arrays, other: Arrays, pictures: Sequence[int]) -> dict[str, float]:
    if "0.threshold" not in reference or "0.threshold" not in other:
        return {}
    same, masks, masked = [], [], []
    for index in pictures:
        same.append(reference[f"{index}.threshold"] == other[f"{index}.threshold"])
        masks.append(overlap(reference[f"{index}.mask"], other[f"{index}.mask"]))
        # A search may try other thresholds: NaN where one did not.
        apart = np.abs(other[f"{index}.masked"] - reference[f"{index}.masked"])
        masked.append(float(apart[np.isfinite(apart)].max(initial=0)))
    return {
        "same_threshold": float(np.mean(same)),
        "mask_overlap": float(np.mean(masks)),
        "masked": float(np.median(masked)),
    }
