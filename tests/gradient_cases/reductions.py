"""Reductions over axes."""

from __future__ import annotations

import numpy as np
import torch
from gradients import Case, node, normal, numbers, positive, ties


def first_along(x: torch.Tensor, axes: tuple[int, ...], keep: bool, sign: float) -> torch.Tensor:
    """The largest or smallest along axes, where of equal ones the first counts."""
    axes = tuple(sorted(axis % x.ndim for axis in axes))
    rest = [axis for axis in range(x.ndim) if axis not in axes]
    moved = x.permute(*rest, *axes)
    flat = moved.reshape(*moved.shape[: len(rest)], -1)
    index = torch.from_numpy(np.argmax(sign * flat.detach().numpy(), axis=-1))[..., None]
    found = flat.gather(-1, index)[..., 0]
    return found.reshape([1 if a in axes else s for a, s in enumerate(x.shape)]) if keep else found


def reduction(kind: str, function, draw=normal) -> list[Case]:
    """Over one axis and several, negative axes, with and without keeping them.

    Args:
        function: of a tensor, axes and whether they are kept.
    """
    cases = []
    for axes, keep in (((1,), 1), ((2, 3), 1), ((-1, -2), 0), ((-3,), 0), ((1, 3), 0)):
        constants = {"axes": numbers(*axes)}
        cases.append(
            Case(
                [node(kind, "x axes", keepdims=keep)],
                {"x": (3, 4, 2)},
                constants,
                lambda x, a=axes, k=keep: function(x, a, bool(k)),
                draw,
            )
        )
    nothing = node(kind, noop_with_empty_axes=1)
    cases.append(Case([nothing], {"x": (3, 4)}, {}, lambda x: x) if kind in _KEEPING else cases[0])
    return cases


_KEEPING = {"ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin"}


def product_along(x: torch.Tensor, axes: tuple[int, ...], keep: bool) -> torch.Tensor:
    return torch.prod(x, axes[0], keepdim=keep)


def reductions() -> dict[str, list[Case]]:
    norm = torch.linalg.vector_norm
    return {
        "ReduceSum": reduction("ReduceSum", lambda x, a, k: x.sum(a, k)),
        "ReduceMean": reduction("ReduceMean", lambda x, a, k: x.mean(a, k)),
        "ReduceMax": reduction("ReduceMax", lambda x, a, k: first_along(x, a, k, 1.0))
        + reduction("ReduceMax", lambda x, a, k: first_along(x, a, k, 1.0), ties),
        "ReduceMin": reduction("ReduceMin", lambda x, a, k: first_along(x, a, k, -1.0), ties),
        "ReduceProd": [
            case
            for draw in (normal, ties)
            for case in reduction("ReduceProd", product_along, draw)
            if len(case.constants["axes"]) == 1
        ],
        "ReduceL1": reduction("ReduceL1", lambda x, a, k: norm(x, 1, a, k)),
        "ReduceL2": reduction("ReduceL2", lambda x, a, k: norm(x, 2, a, k)),
        "ReduceSumSquare": reduction("ReduceSumSquare", lambda x, a, k: (x * x).sum(a, k)),
        "ReduceLogSum": reduction("ReduceLogSum", lambda x, a, k: x.sum(a, k).log(), positive),
        "ReduceLogSumExp": reduction("ReduceLogSumExp", lambda x, a, k: x.logsumexp(a, k)),
    }
