"""Pooling layers."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from gradients import Case, node, normal, positive, ties

from .elementwise import one
from .reductions import first_along

FLAT, PLACES = (5,), (4, 6, 5)


def pooling() -> dict[str, list[Case]]:
    maps = {"x": (2, 7, 6)}
    return {
        "MaxPool": [
            Case(
                [node("MaxPool", kernel_shape=[k, k], strides=[s, s], pads=[p] * 4)],
                maps,
                {},
                lambda x, k=k, s=s, p=p: F.max_pool2d(x, k, s, p),
                draw,
            )
            for k, s, p in ((3, 2, 1), (2, 2, 0), (2, 2, 1), (2, 3, 0))
            for draw in (normal, ties)
        ],
        "AveragePool": [
            Case(
                [node("AveragePool", kernel_shape=[3, 2], strides=[2, 1], count_include_pad=1)],
                maps,
                {},
                lambda x: F.avg_pool2d(x, (3, 2), (2, 1)),
            ),
            Case(
                [node("AveragePool", kernel_shape=[7, 6])],
                maps,
                {},
                lambda x: F.avg_pool2d(x, (7, 6)),
            ),
        ],
        "LpPool": [
            Case(
                [node("LpPool", kernel_shape=[2, 2], strides=[2, 2], p=p)],
                maps,
                {},
                lambda x, p=p: F.lp_pool2d(x, p, 2),
                positive,
                tolerance=5e-4,
            )
            for p in (1, 2, 3)
        ],
        "GlobalAveragePool": one("GlobalAveragePool", lambda x: x.mean((2, 3), True), PLACES),
        "GlobalMaxPool": [
            case
            for draw in (normal, ties)
            for case in one(
                "GlobalMaxPool", lambda x: first_along(x, (2, 3), True, 1.0), PLACES, draw
            )
        ],
        "GlobalLpPool": [
            Case(
                [node("GlobalLpPool", p=p)],
                {"x": PLACES},
                {},
                lambda x, p=p: torch.linalg.vector_norm(x, p, (2, 3), True),
            )
            for p in (1, 2, 3)
        ],
    }
