"""Normalisations and softmax."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from gradients import Case, in_double, node, weights


def normalisation() -> dict[str, list[Case]]:
    scale, shift, mean = weights(4), weights(4), weights(4)
    variance = np.abs(weights(4)) + 0.5
    places = {"x": (4, 3, 2)}

    def shown(t: np.ndarray) -> torch.Tensor:
        return in_double(t)

    computed = [node("Abs", "v0", "v"), node("BatchNormalization", "x s b m v")]
    layer = weights(3, 2)
    return {
        "BatchNormalization": [
            Case(
                nodes,
                places,
                {"s": scale, "b": shift, "m": mean, "v0" if two else "v": variance},
                lambda x: F.batch_norm(
                    x, shown(mean), shown(variance), shown(scale), shown(shift), eps=1e-5
                ),
            )
            for two, nodes in ((False, computed[1:]), (True, computed))
        ],
        "LayerNormalization": [
            Case(
                [node("LayerNormalization", "x s b", axis=axis, epsilon=1e-3)],
                places,
                {"s": layer, "b": layer},
                lambda x: F.layer_norm(x, (3, 2), shown(layer), shown(layer), 1e-3),
            )
            for axis in (2, -2)
        ],
        "RMSNormalization": [
            Case(
                [node("RMSNormalization", "x s", axis=-1)],
                {"x": (3, 4)},
                {"s": scale},
                lambda x: F.rms_norm(x, (4,), shown(scale), 1e-5),
                opset=23,
            )
        ],
        "InstanceNormalization": [
            Case(
                [node("InstanceNormalization", "x s b")],
                places,
                {"s": scale, "b": shift},
                lambda x: F.instance_norm(x, weight=shown(scale), bias=shown(shift)),
            )
        ],
        "GroupNormalization": [
            Case(
                [node("GroupNormalization", "x s b", num_groups=2)],
                places,
                {"s": scale, "b": shift},
                lambda x: F.group_norm(x, 2, shown(scale), shown(shift)),
                opset=21,
            )
        ],
        "LpNormalization": [
            Case(
                [node("LpNormalization", p=p, axis=axis)],
                {"x": (3, 4)},
                {},
                lambda x, p=p, axis=axis: F.normalize(x, p, axis, 0.0),
            )
            for p, axis in ((2, -1), (1, 1), (2, 1))
        ],
        "LRN": [
            Case(
                [node("LRN", size=size, alpha=0.3, beta=0.6, bias=1.2)],
                {"x": (6, 2, 3)},
                tolerance=1e-3,
                function=lambda x, size=size: local_response(x, size),
            )
            for size in (3, 5)
        ],
        "Softmax": [
            Case([node("Softmax", axis=a)], places, {}, lambda x, a=a: F.softmax(x, a))
            for a in (1, -1)
        ],
        "LogSoftmax": [
            Case([node("LogSoftmax", axis=a)], places, {}, lambda x, a=a: F.log_softmax(x, a))
            for a in (-3, 2)
        ],
    }


def local_response(x: torch.Tensor, size: int) -> torch.Tensor:
    around = F.pad(x * x, (0, 0, 0, 0, (size - 1) // 2, size // 2))
    total = sum(around[:, i : i + x.shape[1]] for i in range(size))
    return x / (1.2 + 0.3 / size * total) ** 0.6
