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
        reference, other: arrays of ``job.Answers``, of one file or of two with the same network.
        targets: the classes explained.
        allowed: differences, from ``engines.selftest.tolerances_of``.
        exact: whether both compute in float32: then the worst image is judged, else the median.

    Returns:
        Differences by name.

        - ``class``: 1 if another class is the most probable one, else 0.
        - ``probabilities``: the largest difference of any class; of outputs that are not
          probabilities (``task`` none), relative to the largest value if that is above 1.
        - ``lead``: by how much another class exceeds the explained one, more than before.
        - ``activations``, ``gradients``: relative to the reference's largest value, if the file
          returns them. Gradients are not judged: they jump where two activations of a max-pool
          nearly tie.
        - ``pixels.METHOD``: the largest difference of a map's pixels; ``similarity.METHOD``: 1 -
          Pearson's correlation; ``correlation.METHOD``: the same, but 0 for maps whose pixels
          hardly differ.
        - With TFT: ``threshold``: 1 for another tau*, else 0; ``mask``: 1 - intersection over
          union; ``masked``: the largest difference of a masked image's probability, as the median
          over images.
    """
    rows = [
        np.stack([arrays[f"{index}.probabilities"] for index in range(len(targets))])
        for arrays in (reference, other)
    ]
    # Outputs that are not probabilities can have any magnitude.
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
        a, b = (values[index] / scale for values in rows)
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
            # NaN: no threshold helps.
            same = np.array_equal(before["threshold"], after["threshold"], equal_nan=True)
            sample["threshold"] = float(not same)
            sample["mask"] = 1 - overlap(before["mask"], after["mask"])
            # A search may evaluate other thresholds; those it does not evaluate are NaN.
            apart = np.abs(after["masked"] - before["masked"])
            sample["masked"] = float(apart[np.isfinite(apart)].max(initial=0))
        samples.append(sample)
    if "masked" in samples[0]:
        # A pixel on the other side of a threshold can change a single masked image at will.
        typical = float(np.median([sample["masked"] for sample in samples]))
        samples = [sample | {"masked": typical} for sample in samples]
    reference_name = "ONNX Runtime on the CPU in fp32"
    return summarise(reference_name, samples, allowed, "worst" if exact else "median")


def _map_differences(
    method: str, values: NDArray[Any], expected: NDArray[Any], allowed: Tolerances
) -> dict[str, float]:
    apart, unlike = largest_difference(values, expected), 1 - pearson(values, expected)
    # The correlation of nearly constant maps is undefined, but their pixels hardly differ.
    return {
        f"pixels.{method}": apart,
        f"similarity.{method}": unlike,
        f"correlation.{method}": unlike if apart > allowed["maps"] else 0.0,
    }
