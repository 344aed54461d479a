"""Differentiate normalisations and softmax."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from ..tensors import Tensor, expand, unsqueeze
from .step import Step


def _batch_norm(step: Step) -> list[Tensor | None]:
    """Multiply by one factor a channel, for the statistics are fixed."""
    if step.attribute("training_mode", 0):
        raise step.refusal("it is in training mode: export the model in eval mode")
    epsilon = float(step.attribute("epsilon", 1e-5))
    shape = (-1, *[1] * (len(step.dims()) - 2))
    scale, variance = step.constant_or_none(1), step.constant_or_none(4)
    if scale is not None and variance is not None:
        factor = scale.astype(np.float64) / np.sqrt(variance.astype(np.float64) + epsilon)
        return [step.g * step.recorder.constant(factor.astype(np.float32).reshape(shape))]
    scaling = step.x(1) / step.xp.sqrt(step.x(4) + epsilon)
    return [step.g * scaling.reshape((scaling.shape[0], *shape[1:]))]


def _differentiate_normalisation(
    step: Step, x: Tensor, axes: Sequence[int], epsilon: float, g: Tensor, centred: bool = True
) -> Tensor:
    """Differentiate u = (x - mean) / sqrt(var + eps) over axes, g the gradient of u.

    (g - mean(g) - u mean(g u)) / sqrt(var + eps); without mean(g) where x was not centred.
    """
    xp, over = step.xp, tuple(axes)
    centred_x = x - xp.mean(x, axis=over, keepdims=True) if centred else x
    deviation = xp.sqrt(xp.mean(centred_x * centred_x, axis=over, keepdims=True) + epsilon)
    unit = centred_x / deviation
    along = xp.mean(step.multiply(g, unit), axis=over, keepdims=True)
    inner = g - xp.mean(g, axis=over, keepdims=True) if centred else g
    return step.divide(inner - step.multiply(along, unit), deviation)


def _layer_norm(step: Step) -> list[Tensor | None]:
    axis = step.axis("axis", -1)
    g = step.g * step.x(1)
    axes = range(axis, len(step.dims()))
    return [
        _differentiate_normalisation(
            step, step.x(), list(axes), float(step.attribute("epsilon", 1e-5)), g
        )
    ]


def _rms_norm(step: Step) -> list[Tensor | None]:
    axes = list(range(step.axis("axis", -1), len(step.dims())))
    g = step.g * step.x(1)
    epsilon = float(step.attribute("epsilon", 1e-5))
    return [_differentiate_normalisation(step, step.x(), axes, epsilon, g, centred=False)]


def _instance_norm(step: Step) -> list[Tensor | None]:
    rank = len(step.dims())
    scale = step.x(1).reshape((step.dims(1)[0], *[1] * (rank - 2)))
    epsilon = float(step.attribute("epsilon", 1e-5))
    return [
        _differentiate_normalisation(step, step.x(), list(range(2, rank)), epsilon, step.g * scale)
    ]


def _group_norm(step: Step) -> list[Tensor | None]:
    dims, groups = step.dims(), int(step.attribute("num_groups"))
    (channels,) = step.static_lengths(dims[1:2])
    scale = step.x(1)
    if scale.shape[0] == groups != channels:  # before opset 21: one scale for each group
        scale = expand(unsqueeze(scale, [1]), (groups, channels // groups)).reshape((channels,))
    full_shape = step.gradient_shape(dims)
    split = (groups, channels // groups, *dims[2:])
    g = (step.g * scale.reshape((channels, *[1] * (len(dims) - 2)))).reshape(
        (full_shape[0], *split)
    )
    x = step.x().reshape((dims[0], *split))
    axes = list(range(2, len(dims) + 1))
    gradient = _differentiate_normalisation(
        step, x, axes, float(step.attribute("epsilon", 1e-5)), g
    )
    return [gradient.reshape(full_shape)]


def _lp_norm(step: Step) -> list[Tensor | None]:
    """Differentiate y = x / n, n the norm: (g - sum(g y) dn / dx) / n."""
    axis, xp, x, y = step.axis("axis", -1), step.xp, step.x(), step.y()
    if int(step.attribute("p", 2)) == 1:
        norm = xp.sum(xp.abs(x), axis=(axis,), keepdims=True)
        slope = step.recorder.op("Sign", [x], x.shape)
    else:
        norm, slope = xp.sqrt(xp.sum(x * x, axis=(axis,), keepdims=True)), y
    along = xp.sum(step.multiply(step.g, y), axis=(axis,), keepdims=True)
    return [step.divide(step.g - step.multiply(along, slope), norm)]


def _lrn(step: Step) -> list[Tensor | None]:
    """Differentiate x / d^beta, d = bias + alpha / size * sum of squares of nearby channels."""
    size = int(step.attribute("size"))
    alpha, beta = float(step.attribute("alpha", 1e-4)), float(step.attribute("beta", 0.75))
    bias = float(step.attribute("bias", 1.0))
    x, (channels,) = step.x(), step.static_lengths(step.dims()[1:2])
    places = np.arange(channels)
    distance = places[None, :] - places[:, None]
    near = (distance >= -((size - 1) // 2)) & (distance <= size // 2)
    window = near.astype(np.float32)  # [of channel, its neighbours]

    def sum_channels(matrix: NDArray[np.float32], t: Tensor) -> Tensor:
        kernel = step.recorder.constant(matrix.reshape(channels, channels, *[1] * (t.ndim - 2)))
        return step.recorder.op("Conv", [t, kernel], t.shape)

    d = bias + (alpha / size) * sum_channels(window, x * x)
    power = d**-beta
    through = step.multiply(step.g, x * power / d)
    back = sum_channels(np.ascontiguousarray(window.T), through)
    return [step.multiply(step.g, power) - step.multiply(back, (2.0 * alpha * beta / size) * x)]


def _softmax(step: Step) -> list[Tensor | None]:
    """y (g - sum(g y))."""
    axis, y = step.axis("axis", -1), step.y()
    weighted = step.multiply(step.g, y)
    total = step.xp.sum(weighted, axis=(axis,), keepdims=True)
    return [weighted - step.multiply(total, y)]


def _log_softmax(step: Step) -> list[Tensor | None]:
    """g - exp(y) sum(g)."""
    axis = step.axis("axis", -1)
    total = step.xp.sum(step.g, axis=(axis,), keepdims=True)
    return [step.g - step.multiply(total, step.xp.exp(step.y()))]


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
