"""Differentiate reductions over axes other than the batch."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from ..dims import Dim, lengths_at, product
from ..tensors import Tensor, unsqueeze
from .step import Step

# Below this a norm counts as 0, where it has no derivative.
_SMALLEST_NORM = 1e-12
# A product's gradient takes as many copies of its elements as there are.
_LARGEST_PRODUCT = 64


def select_first_extreme(step: Step, x: Tensor, y: Tensor, g: Tensor, axes: list[int]) -> Tensor:
    """Give the gradient to the largest or smallest element, to the first of equal ones.

    Args:
        x: forward tensor.
        y: its largest or smallest elements, axes kept as length 1.
        g: the gradient of these.
        axes: of x.
    """
    if not axes:
        return g
    xp = step.xp
    shape: list[Dim] = [1] * x.ndim
    for axis, length in zip(axes, step.lengths([x.shape[axis] for axis in axes]), strict=True):
        shape[axis] = length
    count = product(shape)
    # The first element has the largest rank; those that are not the extreme have 0.
    if isinstance(count, int):
        numbers = np.arange(count, 0, -1, dtype=np.float32)
        ranks = step.recorder.constant(numbers.reshape(lengths_at(shape, {})))
    else:
        falling = xp.asarray(count) - xp.arange(count)
        ranks = falling.cast(ir.DataType.FLOAT).reshape(shape)
    rank = (x == y).cast(ranks.dtype) * ranks
    highest = xp.maximum(xp.max(rank, axis=tuple(axes), keepdims=True), 1.0)
    return step.select(rank == highest, g)


def differentiate_norm(
    step: Step,
    g: Tensor,
    y: Tensor,
    power: int,
    spread: Callable[[Tensor], Tensor] = lambda g: g,
) -> Tensor:
    """Differentiate y = (sum |x|^p)^(1/p): x |x|^(p - 2) / y^(p - 1).

    Args:
        g: gradient of y, which after ``spread`` broadcasts to x.
        y: forward tensor.
        power: p, 1 or more.
        spread: gives each x the sum of its windows' gradients.
    """
    x, xp = step.x(), step.xp
    if power == 1:
        return step.multiply(spread(g), step.recorder.op("Sign", [x], x.shape))
    norm, slope = xp.maximum(y, _SMALLEST_NORM), x
    if power > 2:
        norm = norm ** float(power - 1)
        slope = x * xp.abs(x) ** float(power - 2)
    return step.multiply(spread(step.divide(g, norm)), slope)


def _with_kept_axes(step: Step) -> tuple[list[int], Tensor, Tensor]:
    """Return the axes, and gradient and result with these axes kept as length 1."""
    axes = step.axes()
    step.lengths([step.dims()[axis] for axis in axes])
    if step.attribute("keepdims", 1) or not axes:
        return axes, step.g, step.y()
    return axes, unsqueeze(step.g, axes), unsqueeze(step.y(), axes)


def _sum(step: Step) -> list[Tensor | None]:
    _, g, _ = _with_kept_axes(step)
    return [step.repeat(g, step.gradient_shape(step.dims())), None]


def _mean(step: Step) -> list[Tensor | None]:
    axes, g, _ = _with_kept_axes(step)
    return [step.repeat_mean(g, step.gradient_shape(step.dims()), axes), None]


def _extreme(step: Step) -> list[Tensor | None]:
    """Give the gradient to the extreme, to the first of equal ones."""
    axes, g, y = _with_kept_axes(step)
    found = select_first_extreme(step, step.x(), y, g, axes)
    return [step.with_sums_of(g, found, axes), None]


def _l1(step: Step) -> list[Tensor | None]:
    _, g, y = _with_kept_axes(step)
    return [differentiate_norm(step, g, y, 1), None]


def _l2(step: Step) -> list[Tensor | None]:
    _, g, y = _with_kept_axes(step)
    return [differentiate_norm(step, g, y, 2), None]


def _sum_square(step: Step) -> list[Tensor | None]:
    _, g, _ = _with_kept_axes(step)
    return [step.multiply(g, step.x() * 2.0), None]


def _log_sum(step: Step) -> list[Tensor | None]:
    _, g, y = _with_kept_axes(step)
    return [step.repeat(step.divide(g, step.xp.exp(y)), step.gradient_shape(step.dims())), None]


def _log_sum_exp(step: Step) -> list[Tensor | None]:
    _, g, y = _with_kept_axes(step)
    return [step.multiply(g, step.xp.exp(step.x() - y)), None]


def _product(step: Step) -> list[Tensor | None]:
    """Multiply by the product of all other elements; along one axis of 64 elements at most."""
    axes, g, _ = _with_kept_axes(step)
    x, count = step.x(), math.prod(step.static_lengths([step.dims()[axis] for axis in axes]))
    if len(axes) != 1 or count > _LARGEST_PRODUCT:
        raise step.refusal(f"it multiplies several axes or more than {_LARGEST_PRODUCT} elements")
    diagonal = np.eye(count, dtype=bool).reshape(count, count, *[1] * (x.ndim - 1 - axes[0]))
    copies = step.xp.where(step.recorder.constant(diagonal), 1.0, unsqueeze(x, axes))
    others = step.recorder.op(
        "ReduceProd", [copies, step.recorder.constant(np.array([axes[0] + 1]))], x.shape, keepdims=0
    )
    return [step.multiply(g, others), None]


RULES: dict[str, Callable[[Step], list[Tensor | None]]] = {
    "ReduceSum": _sum,
    "ReduceMean": _mean,
    "ReduceMax": _extreme,
    "ReduceMin": _extreme,
    "ReduceProd": _product,
    "ReduceL1": _l1,
    "ReduceL2": _l2,
    "ReduceSumSquare": _sum_square,
    "ReduceLogSum": _log_sum,
    "ReduceLogSumExp": _log_sum_exp,
}
