"""Operators that select elements by positions that depend on the image."""

from __future__ import annotations

import numpy as np
import torch
from gradients import Case, node, numbers

TWO = {"two": numbers(2)}


def best(axis: int = -1) -> object:
    return node("TopK", "x two", "best at", axis=axis)


def put(x: torch.Tensor, values: torch.Tensor, at: torch.Tensor, *, adds: bool) -> torch.Tensor:
    return x.scatter_add(-1, at, values) if adds else x.scatter(-1, at, values)


def selection() -> dict[str, list[Case]]:
    zeros = [node("Mul", "x zero", "rest"), best(), node("Exp", "best", "values")]
    constants = {**TWO, "zero": np.array(0, np.float32)}

    def mixture(x: torch.Tensor) -> torch.Tensor:
        values, at = x.topk(2, -1)
        return torch.zeros_like(x).scatter(-1, at, values.exp())

    def scattered(adds: bool) -> Case:
        kind = {"reduction": "add"} if adds else {}
        nodes = [best(), node("Tanh", "best", "t"),
                 node("ScatterElements", "x at t", "y", axis=-1, **kind)]  # fmt: skip

        def function(x: torch.Tensor) -> torch.Tensor:
            values, at = x.topk(2, -1)
            return put(x, values.tanh(), at, adds=adds)

        return Case(nodes, {"x": (3, 4)}, TWO, function)

    sort = Case(
        [node("TopK", "x four", "y at", axis=-1, largest=0)],
        {"x": (3, 4)},
        {"four": numbers(4)},
        lambda x: x.sort(-1)[0],
    )
    rows = Case(
        [best(axis=1), node("Identity", "best", "y")],
        {"x": (4, 3)},
        TWO,
        lambda x: x.topk(2, 1)[0],
    )
    # Both elements twice.
    again = [best(), node("Concat", "at at", "twice", axis=-1),
             node("GatherElements", "x twice", "y", axis=-1)]  # fmt: skip
    last = [node("TopK", "x two", "best at", axis=-1), node("Sub", "at four", "behind"),
            node("GatherElements", "x behind", "y", axis=-1)]  # fmt: skip
    return {
        "TopK": [sort, rows],
        "GatherElements": [
            Case(again, {"x": (3, 4)}, TWO, lambda x: x.topk(2, -1)[0].repeat(1, 1, 2)),
            Case(last, {"x": (3, 4)}, {**TWO, "four": numbers(4)}, lambda x: x.topk(2, -1)[0]),
        ],
        "ScatterElements": [
            Case(
                [*zeros, node("ScatterElements", "rest at values", "y", axis=-1)],
                {"x": (3, 4)},
                constants,
                mixture,
            ),
            scattered(adds=True),
            scattered(adds=False),
        ],
    }
