"""Sum a gradient over the places of a layer, without computing it at each of them.

Grad-CAM and CAM need nothing else of it. Pooling hands a gradient on to the places of its window
and neither adds nor loses any, so that its sum is known before; and behind a linear layer that
reads all places, the sum is a product with the layer's weights, summed over the places once and
for all: of VGG-16, 8 MB instead of 411.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .dims import Dim
from .tensors import Tensor


def sum_over_places(gradients: Tensor, mean: bool = False) -> Tensor | None:
    """Record the sums of gradients over their places, where that takes less than the gradients.

    Args:
        gradients: recorded, [N, k, K, h, w].
        mean: whether the sums are divided by the number of places.

    Returns:
        [N, k, K]; None where the sums take all of the gradients.
    """
    channels, height, width = gradients.shape[-3:]
    if not (isinstance(channels, int) and isinstance(height, int) and isinstance(width, int)):
        return None
    sums = _sums(gradients, (channels, height, width))
    if sums is None:
        return None
    by_class = sums.reshape(gradients.shape[:-2])
    return by_class * (1.0 / (height * width)) if mean else by_class


def _sums(tensor: Tensor, dims: tuple[Dim, Dim, Dim]) -> Tensor | None:
    """[rows, K] of a tensor that is, perhaps reshaped, [rows, K, h, w]."""
    same = tensor.recorder.same_sums
    source = tensor.recorder.reshaped.get(tensor.value, tensor)
    if source.shape[-2:] == dims[1:] and source.value in same:
        before = same[source.value]
        return _sums(before, before.shape[-3:])  # type: ignore[arg-type]
    if dims[1:] == (1, 1):
        return source
    return _product(source, dims)


def _product(source: Tensor, dims: Sequence[Dim]) -> Tensor | None:
    """The sums of what a stored matrix makes of rows [M, J]."""
    channels, height, width = dims
    node = source.value.producer()
    if node is None or node.op_type != "Gemm" or source.ndim != 2 or len(node.inputs) != 2:
        return None
    rows, weight = node.inputs
    left = None if rows is None else source.recorder.recorded.get(rows)
    stored = None if weight is None else weight.const_value
    attributes = {name: each.value for name, each in node.attributes.items()}
    if left is None or stored is None or attributes.get("transA", 0):
        return None
    if source.shape[1] != channels * height * width:
        return None
    flipped = bool(attributes.get("transB", 0))
    matrix: NDArray[np.float64] = stored.numpy().astype(np.float64)
    matrix = matrix.T if flipped else matrix
    summed = matrix.reshape((len(matrix), channels, height * width)).sum(-1)
    constant = source.recorder.constant(summed.astype(np.float32))
    alpha = float(attributes.get("alpha", 1.0))
    return source.recorder.op("Gemm", [left, constant], (source.shape[0], channels), alpha=alpha)
