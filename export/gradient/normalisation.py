"""Gradient rules of normalisations and of softmax."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from ..recorder import Tensor, expand, unsqueeze
from .step import Step


def _batch_norm(step: Step) -> list[Tensor | None]:
    """With statistics that are fixed: one factor a channel."""
    if step.attribute("training_mode", 0):
        raise step.refusal("it is in training mode: export the model in eval mode")
    epsilon = float(step.attribute("epsilon", 1e-5))
    shape = (-1, *[1] * (len(step.dims()) - 2))
    scale, variance = step.known(1), step.known(4)
    if scale is not None and variance is not None:
        factor = scale.astype(np.float64) / np.sqrt(variance.astype(np.float64) + epsilon)
        return [step.g * step.recorder.constant(factor.astype(np.float32).reshape(shape))]
    found = step.x(1) / step.xp.sqrt(step.x(4) + epsilon)
    return [step.g * found.reshape((found.shape[0], *shape[1:]))]


def _normalised(
    step: Step, x: Tensor, axes: Sequence[int], epsilon: float, g: Tensor, centred: bool = True
) -> Tensor:
    """Through (x - mean) / sqrt(var + eps) over axes, with g of the result.

    r (g - mean(g) - u mean(g u)), u what comes out and r one over the deviation; without the mean
    of g where nothing was centred.
    """
    xp, over = step.xp, tuple(axes)
    away = x - xp.mean(x, axis=over, keepdims=True) if centred else x
    deviation = xp.sqrt(xp.mean(away * away, axis=over, keepdims=True) + epsilon)
    unit = away / deviation
    along = xp.mean(step.times(g, unit), axis=over, keepdims=True)
    inner = g - xp.mean(g, axis=over, keepdims=True) if centred else g
    return step.over(inner - step.times(along, unit), deviation)


def _layer_norm(step: Step) -> list[Tensor | None]:
    axis = step.axis("axis", -1)
    g = step.g * step.x(1)
    axes = range(axis, len(step.dims()))
    return [_normalised(step, step.x(), list(axes), float(step.attribute("epsilon", 1e-5)), g)]


def _rms_norm(step: Step) -> list[Tensor | None]:
    axes = list(range(step.axis("axis", -1), len(step.dims())))
    g = step.g * step.x(1)
    epsilon = float(step.attribute("epsilon", 1e-5))
    return [_normalised(step, step.x(), axes, epsilon, g, centred=False)]


def _instance_norm(step: Step) -> list[Tensor | None]:
    rank = len(step.dims())
    scale = step.x(1).reshape((step.dims(1)[0], *[1] * (rank - 2)))
    epsilon = float(step.attribute("epsilon", 1e-5))
    return [_normalised(step, step.x(), list(range(2, rank)), epsilon, step.g * scale)]


def _group_norm(step: Step) -> list[Tensor | None]:
    dims, groups = step.dims(), int(step.attribute("num_groups"))
    (channels,) = step.sides(dims[1:2])
    scale = step.x(1)
    if scale.shape[0] == groups != channels:  # before opset 21: one scale for each group
        scale = expand(unsqueeze(scale, [1]), (groups, channels // groups)).reshape((channels,))
    lifted = step.lifted(dims)
    split = (groups, channels // groups, *dims[2:])
    g = (step.g * scale.reshape((channels, *[1] * (len(dims) - 2)))).reshape((lifted[0], *split))
    x = step.x().reshape((dims[0], *split))
    axes = list(range(2, len(dims) + 1))
    found = _normalised(step, x, axes, float(step.attribute("epsilon", 1e-5)), g)
    return [found.reshape(lifted)]


def _lp_norm(step: Step) -> list[Tensor | None]:
    """y = x / n: (g - sum(g y) dn / dx) / n."""
    axis, xp, x, y = step.axis("axis", -1), step.xp, step.x(), step.y()
    if int(step.attribute("p", 2)) == 1:
        norm = xp.sum(xp.abs(x), axis=(axis,), keepdims=True)
        slope = step.recorder.op("Sign", [x], x.shape)
    else:
        norm, slope = xp.sqrt(xp.sum(x * x, axis=(axis,), keepdims=True)), y
    along = xp.sum(step.times(step.g, y), axis=(axis,), keepdims=True)
    return [step.over(step.g - step.times(along, slope), norm)]


def _lrn(step: Step) -> list[Tensor | None]:
    """x / d^beta with d = bias + alpha / size * the sum of squares of neighbouring channels."""
    size = int(step.attribute("size"))
    alpha, beta = float(step.attribute("alpha", 1e-4)), float(step.attribute("beta", 0.75))
    bias = float(step.attribute("bias", 1.0))
    x, (channels,) = step.x(), step.sides(step.dims()[1:2])
    places = np.arange(channels)
    distance = places[None, :] - places[:, None]
    near = (distance >= -((size - 1) // 2)) & (distance <= size // 2)
    window = near.astype(np.float32)  # [of channel, its neighbours]

    def summed(matrix: NDArray[np.float32], t: Tensor) -> Tensor:
        kernel = step.recorder.constant(matrix.reshape(channels, channels, *[1] * (t.ndim - 2)))
        return step.recorder.op("Conv", [t, kernel], t.shape)

    d = bias + (alpha / size) * summed(window, x * x)
    power = d._binary("Pow", -beta)
    through = step.times(step.g, x * power / d)
    back = summed(np.ascontiguousarray(window.T), through)
    return [step.times(step.g, power) - step.times(back, (2.0 * alpha * beta / size) * x)]


def _softmax(step: Step) -> list[Tensor | None]:
    """y (g - sum(g y))."""
    axis, y = step.axis("axis", -1), step.y()
    weighted = step.times(step.g, y)
    total = step.xp.sum(weighted, axis=(axis,), keepdims=True)
    return [weighted - step.times(total, y)]


def _log_softmax(step: Step) -> list[Tensor | None]:
    """g - exp(y) sum(g)."""
    axis = step.axis("axis", -1)
    total = step.xp.sum(step.g, axis=(axis,), keepdims=True)
    return [step.g - step.times(total, step.xp.exp(step.y()))]


RULES: dict[str, Callable[[Step], list[Tensor | None]]] = {
    "BatchNormalization": _batch_norm,
    "LayerNormalization": _layer_norm,
    "RMSNormalization": _rms_norm,
    "InstanceNormalization": _instance_norm,
    "GroupNormalization": _group_norm,
    "LpNormalization": _lp_norm,
    "LRN": _lrn,
    "Softmax": _softmax,
    "LogSoftmax": _log_softmax,
}
