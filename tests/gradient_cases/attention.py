"""Attention as one operator."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from gradients import Case, in_double, node, weights


def attention() -> dict[str, list[Case]]:
    four = {"x": (2, 5, 4), "x1": (2, 3, 4), "x2": (2, 3, 6)}
    three = {"x": (5, 8), "x1": (3, 8), "x2": (3, 4)}
    mask = weights(1, 1, 5, 3)

    def by_head(x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(2, (2, -1)).transpose(1, 2)

    return {
        "Attention": [
            Case(
                [node("Attention", "x x1 x2")], four, {}, F.scaled_dot_product_attention, opset=23
            ),
            Case(
                [node("Attention", "x x1 x2 m", scale=0.3)],
                four,
                {"m": mask},
                lambda q, k, v: F.scaled_dot_product_attention(
                    q, k, v, in_double(mask), scale=float(np.float32(0.3))
                ),
                opset=23,
            ),
            Case(
                [node("Attention", "x x1 x2", q_num_heads=2, kv_num_heads=2)],
                three,
                {},
                lambda q, k, v: (
                    F.scaled_dot_product_attention(*map(by_head, (q, k, v)))
                    .transpose(1, 2)
                    .flatten(2)
                ),
                opset=23,
            ),
            Case(
                [node("Attention", "x x x")],
                {"x": (2, 5, 4)},
                {},
                opset=23,
                function=lambda x: F.scaled_dot_product_attention(x, x, x),
            ),
        ]
    }
