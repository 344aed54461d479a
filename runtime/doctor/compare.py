"""Compare an engine's answers for images with the reference's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..comparison import Comparison, Tolerances, summarise
from ..similarity import largest_difference, overlap, pearson, relative_difference

Arrays = Mapping[str, NDArray[Any]]


def compare(
    reference: Arrays, other: Arrays, targets: Sequence[int], allowed: Tolerances, exact: bool
) -> Comparison:
    """Compare answers, image by image.

    Args:
        reference, other: see ``job.Answers``, from one file or from two of one network.
        targets: the classes explained.
        allowed: differences, by ``engines.selftest.tolerances_of``.
        exact: whether both are float32. Then every image must be right, else the median one.

    Returns:
        ``class``: 0, or 1 where another class is the most probable one; ``probabilities``, largest
        of any class, of values that are no probabilities as a share of the largest where that is
        above 1; ``lead``: by how much another class leads; ``activations``, ``gradients``: relative
        to the reference's largest value, where the file returns them; for each method
        ``pixels.METHOD``: largest difference of a map, ``similarity.METHOD``: 1 - Pearson's
        correlation, ``correlation.METHOD``: the same, but 0 for maps that hardly differ. With TFT
        ``threshold``: 0, or 1 for another tau*; ``mask``: 1 - intersection over union; ``masked``:
        largest difference of a masked image's probability, median over images. Gradients jump where
        two activations of a max-pool nearly tie, so they are not judged.
    """
    rows = [
        np.stack([arrays[f"{index}.probabilities"] for index in range(len(targets))])
        for arrays in (reference, other)
    ]
    # Values that are no probabilities may be of any size.
    scale = max(1.0, float(np.abs(rows[0]).max()))
    samples = []
    for index, target in enumerate(targets):
        before, after = (
            {
                name.partition(".")[2]: values
                for name, values in arrays.items()
                if name.startswith(f"{index}.")
            }
            for arrays in (reference, other)
        )
        a, b = (each[index] / scale for each in rows)
        sample = {
            "class": float(a.argmax() != b.argmax()),
            "probabilities": largest_difference(b, a),
            # 0 where the class explained is the most probable one.
            "lead": max(float(b.max() - b[target] - a.max() + a[target]), 0.0),
        }
        for name in ("activations", "gradients"):
            if name in before and name in after:
                sample[name] = relative_difference(after[name], before[name])
        for name in before:
            if name.startswith("map.") and name in after:
                sample |= _map_differences(name[4:], after[name], before[name], allowed)
        if "threshold" in before and "threshold" in after:
            sample["threshold"] = float(before["threshold"] != after["threshold"])
            sample["mask"] = 1 - overlap(before["mask"], after["mask"])
            # A search may try other thresholds: NaN where one did not.
            apart = np.abs(after["masked"] - before["masked"])
            sample["masked"] = float(apart[np.isfinite(apart)].max(initial=0))
        samples.append(sample)
    if "masked" in samples[0]:
        # Single images may lie anywhere: a pixel on the other side of a threshold changes them.
        typical = float(np.median([sample["masked"] for sample in samples]))
        samples = [sample | {"masked": typical} for sample in samples]
    described = "ONNX Runtime on the CPU in fp32"
    return summarise(described, samples, allowed, "worst" if exact else "median")


def _map_differences(
    method: str, values: NDArray[Any], expected: NDArray[Any], allowed: Tolerances
) -> dict[str, float]:
    apart, unlike = largest_difference(values, expected), 1 - pearson(values, expected)
    # A map that is nearly constant is not defined up to rounding, but then it hardly moves.
    return {
        f"pixels.{method}": apart,
        f"similarity.{method}": unlike,
        f"correlation.{method}": unlike if apart > allowed["maps"] else 0.0,
    }
