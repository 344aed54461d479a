"""Differentiate operators that work element by element."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from ..tensors import Tensor
from .step import Step

_GELU_SCALE = math.sqrt(2.0 / math.pi)
_GELU_CUBE = 0.044715
# From here on a bound means that there is none, as exporters write it in float16.
_LARGEST = 65504.0


def _erf(step: Step, x: Tensor) -> Tensor:
    return step.recorder.op("Erf", [x], x.shape)


def _sigmoid(step: Step, x: Tensor) -> Tensor:
    return step.recorder.op("Sigmoid", [x], x.shape)


def _gelu(step: Step) -> Tensor:
    x, xp = step.x(), step.xp
    if step.attribute("approximate", "none") == "tanh":
        t = xp.tanh(_GELU_SCALE * (x + _GELU_CUBE * x * x * x))
        slope = _GELU_SCALE * (1.0 + 3.0 * _GELU_CUBE * x * x)
        return 0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * slope
    below = 0.5 * (1.0 + _erf(step, x * math.sqrt(0.5)))
    return below + x * xp.exp(-0.5 * x * x) * (1.0 / math.sqrt(2.0 * math.pi))


def _hard_swish(step: Step) -> Tensor:
    x, xp = step.x(), step.xp
    inside = (xp.abs(x) < 3.0).cast(x.dtype)
    return inside * (x * (1.0 / 3.0) + 0.5) + (x >= 3.0).cast(x.dtype)


def _elu(step: Step) -> Tensor:
    alpha = step.attribute("alpha", 1.0)
    below: Tensor = step.y() + alpha
    return step.xp.where(step.x() > 0.0, 1.0, below)


def _selu(step: Step) -> Tensor:
    alpha = step.attribute("alpha", 1.67326319217681884765625)
    gamma = step.attribute("gamma", 1.05070102214813232421875)
    return step.xp.where(step.x() > 0.0, gamma, step.y() + alpha * gamma)


def _celu(step: Step) -> Tensor:
    alpha = step.attribute("alpha", 1.0)
    return step.xp.where(step.x() > 0.0, 1.0, step.y() * (1.0 / alpha) + 1.0)


def _mish(step: Step) -> Tensor:
    x = step.x()
    t = step.xp.tanh(step.recorder.op("Softplus", [x], x.shape))
    return t + x * (1.0 - t * t) * _sigmoid(step, x)


def _swish(step: Step) -> Tensor:
    x, alpha = step.x(), step.attribute("alpha", 1.0)
    scaled = x if alpha == 1.0 else x * float(alpha)
    s = _sigmoid(step, scaled)
    return s + scaled * s * (1.0 - s)


def _softsign(step: Step) -> Tensor:
    root = 1.0 - step.xp.abs(step.y())  # 1 / (1 + |x|)
    return root * root


def _sign(step: Step) -> Tensor:
    x = step.x()
    return step.recorder.op("Sign", [x], x.shape)


def _root(step: Step) -> Tensor:
    """Return 0 where the root is 0, as for a norm: there the derivative is infinite."""
    y = step.y()
    return step.xp.where(y > 0.0, 0.5 / y, 0.0)


def _sine(step: Step) -> Tensor:
    x = step.x()
    return step.recorder.op("Cos", [x], x.shape)


# Operators of one input: the derivative, as a forward tensor.
_DERIVATIVES: dict[str, Callable[[Step], Tensor]] = {
    "Sigmoid": lambda s: s.y() * (1.0 - s.y()),
    "Tanh": lambda s: 1.0 - s.y() * s.y(),
    "Exp": lambda s: s.y(),
    "Log": lambda s: 1.0 / s.x(),
    "Sqrt": _root,
    "Reciprocal": lambda s: -(s.y() * s.y()),
    "Erf": lambda s: s.xp.exp(-(s.x() * s.x())) * (2.0 / math.sqrt(math.pi)),
    "Softplus": lambda s: _sigmoid(s, s.x()),
    "Softsign": _softsign,
    "Abs": _sign,
    "Sin": _sine,
    "Cos": lambda s: -s.xp.sin(s.x()),
    "Gelu": _gelu,
    "HardSwish": _hard_swish,
    "Elu": _elu,
    "Selu": _selu,
    "Celu": _celu,
    "Mish": _mish,
    "Swish": _swish,
}


def _from_derivative(derivative: Callable[[Step], Tensor]) -> Callable[[Step], list[Tensor | None]]:
    return lambda step: [step.multiply(step.g, derivative(step))]


def _relu(step: Step) -> list[Tensor | None]:
    return [step.select(step.y() > 0.0, step.g)]


def _thresholded_relu(step: Step) -> list[Tensor | None]:
    return [step.select(step.x() > float(step.attribute("alpha", 1.0)), step.g)]


def _leaky_relu(step: Step) -> list[Tensor | None]:
    slope = float(step.attribute("alpha", 0.01))
    return [step.multiply(step.g, (step.x() > 0.0).cast(step.g.dtype) * (1.0 - slope) + slope)]


def _prelu(step: Step) -> list[Tensor | None]:
    """Scale negative elements by the learned slope, which must not depend on the image."""
    return [step.multiply(step.g, step.xp.where(step.x() > 0.0, 1.0, step.x(1))), None]


def _hard_sigmoid(step: Step) -> list[Tensor | None]:
    alpha, y = step.attribute("alpha", 0.2), step.y()
    return [step.select((y > 0.0) & (y < 1.0), step.g * alpha)]


def _clip(step: Step) -> list[Tensor | None]:
    """Pass the gradient between the bounds only, as in ReLU6."""
    x, inside = step.x(), None
    for index, above in ((1, True), (2, False)):
        if not step.has_input(index):
            continue
        bound = float(step.constant(index).item())
        if abs(bound) >= _LARGEST:
            continue
        part = x > bound if above else x < bound
        inside = part if inside is None else inside & part
    return [step.g if inside is None else step.select(inside, step.g), None, None]


def _pass(step: Step) -> list[Tensor | None]:
    return [step.g]


def _cast(step: Step) -> list[Tensor | None]:
    """Pass the gradient to another float type; rounding to integers has no derivative."""
    if not ir.DataType(int(step.attribute("to"))).is_floating_point():
        raise step.refusal("it rounds to integers, which has no derivative")
    return [step.g]


def _negate(step: Step) -> list[Tensor | None]:
    return [-step.g]


def _add(step: Step) -> list[Tensor | None]:
    return [
        step.sum_to_input(step.g, index) if step.needs_gradient(index) else None
        for index in range(len(step.node.inputs))
    ]


def _mean(step: Step) -> list[Tensor | None]:
    part = step.g * (1.0 / len(step.node.inputs))
    return [
        step.sum_to_input(part, index) if step.needs_gradient(index) else None
        for index in range(len(step.node.inputs))
    ]


def _subtract(step: Step) -> list[Tensor | None]:
    return [
        step.sum_to_input(step.g, 0) if step.needs_gradient(0) else None,
        step.sum_to_input(-step.g, 1) if step.needs_gradient(1) else None,
    ]


def _multiply(step: Step) -> list[Tensor | None]:
    return [
        step.sum_to_input(step.multiply(step.g, step.x(1 - index)), index)
        if step.needs_gradient(index)
        else None
        for index in range(2)
    ]


def _divide(step: Step) -> list[Tensor | None]:
    quotient = step.divide(step.g, step.x(1))
    return [
        step.sum_to_input(quotient, 0) if step.needs_gradient(0) else None,
        step.sum_to_input(-step.multiply(quotient, step.y()), 1)
        if step.needs_gradient(1)
        else None,
    ]


def _power(step: Step) -> list[Tensor | None]:
    """Multiply by p x^(p - 1); the exponent must not depend on the image."""
    x, exponent = step.x(), step.constant_or_none(1)
    if exponent is None:
        p = step.x(1)
        slope = p * x ** (p - 1.0)
    elif exponent.size == 1 and float(exponent.item()) == 2.0:
        slope = x * 2.0
    else:
        p32 = exponent.astype(np.float32)
        # The derivative of x^0 is 0 at 0 as well, where 0 x^-1 is not a number.
        reduced = step.recorder.constant(np.where(p32 == 0, np.float32(0), p32 - np.float32(1)))
        slope = x**reduced * step.recorder.constant(p32)
        if ((p32 > 0) & (p32 < 1)).any():  # roots: infinite at 0
            slope = step.xp.where(x == 0.0, 0.0, slope)
    return [step.sum_to_input(step.multiply(step.g, slope), 0), None]


def _where(step: Step) -> list[Tensor | None]:
    condition = step.node.inputs[0]
    assert condition is not None
    chosen = Tensor(step.recorder, condition, step.dims(0), ir.DataType.BOOL)
    return [
        None,
        step.sum_to_input(step.select(chosen, step.g), 1) if step.needs_gradient(1) else None,
        step.sum_to_input(step.select(~chosen, step.g), 2) if step.needs_gradient(2) else None,
    ]


def _extreme(step: Step) -> list[Tensor | None]:
    """Give the gradient of Max and Min to the extreme, to the first of equal ones."""
    count = len(step.node.inputs)
    grads: list[Tensor | None] = [None] * count
    last = max(index for index in range(count) if step.needs_gradient(index))
    free = None
    for index in range(last + 1):
        equal = step.x(index) == step.y()
        if step.needs_gradient(index):
            claimed = equal if free is None else equal & free
            grads[index] = step.sum_to_input(step.select(claimed, step.g), index)
        if index < last:
            free = ~equal if free is None else free & ~equal
    return grads


def _straight_through(step: Step) -> list[Tensor | None]:
    """Pass the gradient through quantisation, only where the user asked for that."""
    return [step.g, None, None]


RULES: dict[str, Callable[[Step], list[Tensor | None]]] = {
    **{name: _from_derivative(derivative) for name, derivative in _DERIVATIVES.items()},
    "Relu": _relu,
    "ThresholdedRelu": _thresholded_relu,
    "LeakyRelu": _leaky_relu,
    "PRelu": _prelu,
    "HardSigmoid": _hard_sigmoid,
    "Clip": _clip,
    "Identity": _pass,
    "Dropout": _pass,
    "Cast": _cast,
    "CastLike": _pass,
    "Neg": _negate,
    "Add": _add,
    "Sum": _add,
    "Mean": _mean,
    "Sub": _subtract,
    "Mul": _multiply,
    "Div": _divide,
    "Pow": _power,
    "Where": _where,
    "Max": _extreme,
    "Min": _extreme,
    "QuantizeLinear": _straight_through,
    "DequantizeLinear": _straight_through,
}
