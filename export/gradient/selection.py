"""Differentiate operators that select elements by positions that depend on the image.

Which elements are selected does not change with a small change of the image, so these positions
count as constants. Engines reject scattering with addition; sums over positions are products with
matrices of ones and zeros instead.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from ..dims import BATCH, Dims, product
from ..tensors import Tensor, unsqueeze
from .step import Step

# Such a matrix has a row for each selected element and a column for each position of the axis.
_LARGEST = 2**24


def _one_hot(step: Step, indices: Tensor, axis: int, length: int) -> Tensor:
    """Lay indices out as ones and zeros: float32, ``axis`` last, then the positions: [.., I, L].

    Args:
        step: the node.
        indices: whole numbers as float32, negative ones counted from the end.
        axis: of ``indices``.
        length: L.
    """
    dims = [side for side in indices.shape if side != BATCH]
    count = product([*step.static_lengths(dims), length])
    assert isinstance(count, int)
    if count > _LARGEST:
        raise step.refusal(
            f"its gradient would take a matrix of {count} numbers an image, more than {_LARGEST}"
        )
    last = indices.transpose(_moved_last(indices.ndim, axis))
    last = unsqueeze(step.xp.where(last < 0.0, last + float(length), last), [last.ndim])
    positions = step.recorder.constant(np.arange(length, dtype=np.float32))
    return (last == positions).cast(ir.DataType.FLOAT)


def _moved_last(rank: int, axis: int) -> list[int]:
    return [*(other for other in range(rank) if other != axis), axis]


def _moved_back(rank: int, axis: int) -> list[int]:
    order = _moved_last(rank, axis)
    return [order.index(other) for other in range(rank)]


def _apply(step: Step, g: Tensor, matrix: Tensor, axis: int) -> Tensor:
    """Multiply a gradient along an axis by a matrix of its own for each of the other positions."""
    lines = unsqueeze(g.transpose(_moved_last(g.ndim, axis)), [g.ndim - 1])
    result = step.matmul(lines, matrix)
    return result.reshape((*result.shape[:-2], result.shape[-1])).transpose(
        _moved_back(g.ndim, axis)
    )


def _selected_axis(step: Step, default: int, dims: Dims) -> tuple[int, int]:
    """Return the axis that is selected along, and its length; the other axes are whole."""
    axis = step.axis("axis", default)
    (length,) = step.static_lengths([step.dims()[axis]])
    others = [side for place, side in enumerate(dims) if place != axis]
    if others != [side for place, side in enumerate(step.dims()) if place != axis]:
        raise step.refusal("it selects from a part of the other axes")
    return axis, length


def _top_k(step: Step) -> list[Tensor | None]:
    """Give the gradient to the elements that were selected."""
    axis, length = _selected_axis(step, -1, step.shape_of(step.node.outputs[0]))
    one_hot = _one_hot(step, step.y(1), axis, length)
    return [_apply(step, step.g, one_hot, axis), None]


def _gather_elements(step: Step) -> list[Tensor | None]:
    """Give the gradient to the elements that were selected; of one selected twice, the sum."""
    axis, length = _selected_axis(step, 0, step.dims(1))
    return [_apply(step, step.g, _one_hot(step, step.x(1), axis, length), axis), None]


def _scatter_elements(step: Step) -> list[Tensor | None]:
    """Select the gradient where elements were put; where they replaced others, these have none."""
    kind = step.attribute("reduction", "none")
    if kind not in ("none", "add"):
        raise step.refusal(f"it reduces by {kind}")
    axis, length = _selected_axis(step, 0, step.dims(1))
    one_hot = _one_hot(step, step.x(1), axis, length)
    data = updates = None
    if step.needs_gradient(0):
        data = step.g
        if kind == "none":
            replaced = step.xp.max(one_hot, axis=-2)
            free = (1.0 - replaced).transpose(_moved_back(replaced.ndim, axis))
            data = step.multiply(step.g, free)
    if step.needs_gradient(2):
        updates = _apply(step, step.g, step.xp.matrix_transpose(one_hot), axis)
    return [data, None, updates]


RULES: dict[str, Callable[[Step], list[Tensor | None]]] = {
    "TopK": _top_k,
    "GatherElements": _gather_elements,
    "ScatterElements": _scatter_elements,
}
