"""Measure how much maps change with changes of the image that mean nothing."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..runtime import pipeline
from ..runtime.explainer import Explainer
from ..runtime.pipeline import ClassMap
from ..runtime.request import RequestPlan
from ..runtime.similarity import pearson

Floats = NDArray[np.float32]

_DRAWS = 3
_NOISE = 0.02  # standard deviation, as a part of the range of the image's values
_SHIFT = 1 / 28  # of the image's side: 8 of 224 pixels, a fourth of a cell of most last layers


def stability(
    explainer: Explainer, plan: RequestPlan, maps: Sequence[ClassMap], seeds: Sequence[int]
) -> list[dict[str, float]]:
    """Compare maps with those of slightly changed images, of the same classes.

    - ``noise``: mean Pearson correlation with the maps of three images with Gaussian noise of 2 %
      of the image's range added (after Yeh et al. 2019, who take the largest change instead).
    - ``shift``: the same for four images shifted by 1/28 of their side (8 of 224 pixels), up, down,
      left and right, over what both show; edges are repeated.

    A map without any contrast counts as 0, unless both have none: 1.

    Args:
        explainer: of the maps.
        plan: from ``Explainer.plan``, of the methods.
        maps: of one image or many.
        seeds: one for each image, of its noise.

    Returns:
        ``noise`` and ``shift`` for each map, in [-1, 1].
    """
    by_image: dict[int, list[ClassMap]] = {}
    for one in maps:
        by_image.setdefault(one.row, []).append(one)
    results: dict[int, dict[str, float]] = {}
    for row, own in by_image.items():
        first = own[0]
        height, width = (1, 2) if first.layout == "NCHW" else (0, 1)
        down, across = (max(1, round(_SHIFT * first.image.shape[axis])) for axis in (height, width))
        rng = np.random.default_rng(seeds[row])
        spread = float(np.ptp(first.image)) * _NOISE
        changed = [
            first.image + rng.normal(0, spread, first.image.shape).astype(np.float32)
            for _ in range(_DRAWS)
        ]
        moves = [(down, 0), (-down, 0), (0, across), (0, -across)]
        changed += [_shifted(_shifted(first.image, dy, height), dx, width) for dy, dx in moves]
        classes = list(dict.fromkeys(one.target for one in own))
        inputs = np.stack(changed).astype(first.image.dtype)
        inference = pipeline.infer(explainer.model, inputs, [classes] * len(changed), plan)
        again = {
            (one.row, one.target, one.method): one.map
            for one in pipeline.map(explainer.model, inference, plan)
        }
        for one in own:
            theirs = [again[index, one.target, one.method] for index in range(len(changed))]
            noisy = [pearson(one.map, other) for other in theirs[:_DRAWS]]
            shifted = [
                pearson(*_overlap(one.map, other, move))
                for other, move in zip(theirs[_DRAWS:], moves, strict=True)
            ]
            results[id(one)] = {"noise": float(np.mean(noisy)), "shift": float(np.mean(shifted))}
    return [results[id(one)] for one in maps]


def _shifted(image: Floats, by: int, axis: int) -> Floats:
    """Move an image along an axis, repeating its edge."""
    length = image.shape[axis]
    return np.take(image, np.clip(np.arange(length) - by, 0, length - 1), axis)


def _overlap(map_: Floats, moved: Floats, move: tuple[int, int]) -> tuple[Floats, Floats]:
    """The part of a map that its shifted image still shows, and the same part there."""
    cuts = [(slice(max(0, -by), length - max(0, by)), slice(max(0, by), length - max(0, -by)))
            for by, length in zip(move, map_.shape, strict=True)]  # fmt: skip
    return map_[cuts[0][0], cuts[1][0]], moved[cuts[0][1], cuts[1][1]]
