"""Compare answers with a reference: one report and one table of tolerances for all checks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import msgspec
import numpy as np

Tolerances = Mapping[str, float]
# By output. Whatever is compared and stands not here is reported and not judged. Units are those of
# the measure: see what fills in a comparison.

# A graph against the network it was made of, in float64. A wrong graph is off by orders of
# magnitude more; float32 networks stay well below.
EXPORT: Tolerances = {
    "own_outputs": 1e-6,  # or what fusing changes in the original itself
    "probabilities": 1e-4,
    "activations": 1e-3,
    "gradients": 1e-4,
    "differences": 1e-3,  # of central differences, which max-pooling near ties disturbs
    "ablation": 1e-3,
    "earlier": 1e-2,
    "attention": 1e-3,
    "pixels": 1.01,
    "maps": 1e-4,
    "tft": 1e-3,  # of the network in float32 as well, on images mostly masked
}
# Engines compute half precision in float32 in between, each in its own places. Gradients are of
# tensors that were rounded so.
EXPORT_OF_HALF: Tolerances = {
    **EXPORT,
    **dict.fromkeys(
        ("own_outputs", "probabilities", "activations", "differences", "ablation"), 2e-2
    ),
}
# An engine against reference answers. Engines differ in the order of their sums. A network on a
# test pattern is less sure of itself than on an image, so reduced precision moves it more.
ENGINE: Tolerances = {
    "probabilities": 1e-3,
    "lead": 1e-3,
    "maps": 1e-2,
    "correlation": 1e-3,
    "masked": 1e-2,  # a pixel on the other side of a threshold changes the masked image a little
}
ENGINE_REDUCED: Tolerances = {
    "probabilities": 5e-2,
    "lead": 5e-2,
    "maps": 2e-1,
    "correlation": 1e-1,
    "masked": 5e-1,
}
# What rounding in 8 bits leaves between engines that compute a quantised file as it says; where
# sums overflow, other classes lead by a third and maps are others.
ENGINE_INT8: Tolerances = {"probabilities": 1e-1, "lead": 1e-1, "maps": 4e-1}
# A graph in half precision against the float file. fp16 has 11 significant bits, bf16 8; networks
# of some fifty layers lose two to four of them.
HALF: Mapping[str, Tolerances] = {
    "fp16": {"probabilities": 2e-2, "activations": 4e-2, "correlation": 1e-2, "boxes": 1e-2},
    "bf16": {"probabilities": 1e-1, "activations": 3e-1, "correlation": 5e-2, "boxes": 5e-2},
}
# A graph against one with the same arithmetic in other operators, both in float32.
REWRITTEN: Tolerances = {"output": 1e-4}
# A graph that resizes images rounds pixels to whole numbers: a sum in another order moves a few.
REWRITTEN_PIXELS: Tolerances = {"output": 1e-2}

_PHRASES = {
    "own_outputs": "the file's own outputs changed by",
    "probabilities": "probabilities are off by",
    "boxes": "boxes move, as a share of the input, by",
    "lead": "another class leads by",
    "differences": "gradients differ from central differences in float64 by",
    "earlier": "gradients at fused layers differ from central differences in float64 by",
    "attention": "gradients of attention maps differ from central differences in float64 by",
    "pixels": "its preprocessing differs from Pillow's by",
    "tft": "its threshold sweep differs from the runtime's by",
    "masked": "probabilities of masked images are off by",
    "output": "the output{} is off by",
}


class Spread(msgspec.Struct, frozen=True, kw_only=True):
    """One difference over all inputs; ``p95`` is its 95th percentile."""

    mean: float
    median: float
    p95: float
    worst: float


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """How far answers are from a reference.

    Attributes:
        reference: what they were compared with.
        inputs: how many images or batches were compared.
        differences: by output, ``output`` or ``output.detail``; 0: the same.
        allowed: by output, without the detail; what is not named is not judged.
        judged: which statistic of a difference must keep to what is allowed.
    """

    reference: str
    inputs: int
    differences: dict[str, Spread]
    allowed: dict[str, float]
    judged: Literal["worst", "median"] = "worst"

    @property
    def worst(self) -> dict[str, float]:
        """The largest difference over all inputs, by output."""
        return {name: spread.worst for name, spread in self.differences.items()}

    @property
    def problems(self) -> tuple[str, ...]:
        """Describe what differs by more than is allowed; empty if nothing does."""
        values = {name: getattr(each, self.judged) for name, each in self.differences.items()}
        return describe_excess(values, self.allowed)

    @property
    def complaint(self) -> str | None:
        """Join all problems and the reference's name in one clause; None if there are none."""
        if not self.problems:
            return None
        return f"compared with {self.reference}, {'; '.join(self.problems)}"


def describe_excess(differences: Mapping[str, float], allowed: Tolerances) -> tuple[str, ...]:
    """Describe the differences that exceed what is allowed, or are not numbers.

    Args:
        differences: by output, with or without a detail; ``correlation`` is 1 - Pearson's.
        allowed: one of the tables of this module.
    """
    problems = []
    for name, value in differences.items():
        output, _, detail = name.partition(".")
        limit = allowed.get(output)
        if limit is None or value <= limit:
            continue
        if output == "correlation":  # people know it as 1 where maps are the same
            said = f"{detail} maps correlate by {1 - value:.4f} (at least {1 - limit:g})"
            problems.append(said.lstrip())
        else:
            phrase = _PHRASES.get(output, f"{output} are off by").format(detail and f" {detail}")
            problems.append(f"{phrase} {value:.1e} (at most {limit:g})")
    return tuple(problems)


def summarise(
    reference: str,
    samples: Sequence[Mapping[str, float]],
    allowed: Tolerances,
    judged: Literal["worst", "median"] = "worst",
) -> Comparison:
    """Sum up the differences of each input, which need not all have the same outputs.

    Args:
        reference: what was compared with.
        samples: one entry an input: differences by output.
        allowed: one of the tables of this module.
        judged: see ``Comparison``.
    """
    names = dict.fromkeys(name for sample in samples for name in sample)
    spreads = {}
    for name in names:
        values = np.array([sample[name] for sample in samples if name in sample], np.float64)
        spreads[name] = Spread(
            mean=float(values.mean()),
            median=float(np.median(values)),
            p95=float(np.percentile(values, 95)),
            worst=float(values.max()),
        )
    return Comparison(
        reference=reference,
        inputs=len(samples),
        differences=spreads,
        allowed=dict(allowed),
        judged=judged,
    )
