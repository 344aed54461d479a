"""Tell levels of which a candidate reads its own cell alone, and go back to where it reads more.

A map of such a level is a dot in the candidate's cell: it says where the candidate is, which the
box says already, and not what it was found by. So the level is explained before the last
convolution or attention of more than one cell.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from ..data_flow import Layer
from ..default_layer import ELEMENTWISE
from ..gradient.reverse import find_path, varies
from ..layers import Network

# Of the numbers of one place at most, or of places that stay apart.
_IN_PLACE = ELEMENTWISE | {
    "Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Slice", "Split", "Concat", "Gather",
    "Softmax", "ReduceMax", "ReduceSum", "ArgMax", "Expand",
}  # fmt: skip
_WINDOWS = {"Conv", "ConvTranspose", "MaxPool", "AveragePool", "LpPool"}


def follows(network: Network, value: ir.Value) -> bool:
    """Tell whether a tensor changes with the image gradually, or holds pixels as they are."""
    shapes = network.plain.shapes
    return varies(value, shapes) or shapes.dtypes.get(value) == ir.DataType.UINT8


def widen(network: Network, levels: Sequence[Layer]) -> list[Layer]:
    """Replace levels of which candidates read one cell by the last ones of which they read more.

    Only a tensor of the level's size takes its place, that everything of the level follows from
    while the other levels are held fixed. A level without one stays as it is.

    Args:
        network: from the image to what is explained.
        levels: the last tensors that scores and boxes share.
    """
    found = [_widen_level(network, level, levels) for level in levels]
    if len({layer.value for layer in found}) < len(found):
        return list(levels)
    return sorted(found, key=network.order)


def list_single_cells(network: Network, levels: Sequence[Layer]) -> list[Layer]:
    """List the levels of which a candidate is proved to read its own cell alone."""
    return [level for level in levels if reads_one_cell(network, level, levels)]


def reads_one_cell(network: Network, level: Layer, levels: Sequence[Layer]) -> bool:
    """Tell whether all that follows a level works place by place, the other levels held fixed."""
    own = _without(network, level, levels)
    path, _ = find_path(
        [level.value], network.logits, own, carries=lambda value: follows(network, value)
    )
    return all(_stays_in_place(network, node) for node in path)


def _widen_level(network: Network, level: Layer, levels: Sequence[Layer]) -> Layer:
    if not reads_one_cell(network, level, levels):
        return level
    before, _ = find_path(
        [network.plain.image],
        level.value,
        _without(network, level, levels),
        carries=lambda value: follows(network, value),
    )
    computed = {network.plain.image, *(value for node in before for value in node.outputs)}
    needed, has_extent = {level.value}, False
    for node in reversed(before):
        if not needed.intersection(node.outputs):
            continue
        has_extent = has_extent or _has_extent(network, node)
        needed.difference_update(node.outputs)
        needed.update(v for v in node.inputs if v in computed and v is not None)
        if len(needed) > 1:
            continue
        (value,) = needed
        producer = value.producer()
        layer = None if producer is None else network.layer_at(producer)
        if layer is None or layer.value is not value or layer.shape[1:] != level.shape[1:]:
            continue
        if has_extent:
            return layer if network.has_gradient(layer) else level
    return level


def _without(network: Network, level: Layer, levels: Sequence[Layer]) -> list[ir.Node]:
    """List the nodes but for those that compute the other levels."""
    others = {other.value for other in levels if other.value is not level.value}
    return [node for node in network.nodes if not others.intersection(node.outputs)]


def _kernel(network: Network, node: ir.Node) -> tuple[int, ...]:
    """Return the sides of a window in cells; of an unknown one nothing."""
    if "kernel_shape" in node.attributes:
        return tuple(node.attributes["kernel_shape"].as_ints())
    weights = node.inputs[1] if len(node.inputs) > 1 else None
    sides = () if weights is None else network.plain.shapes.dims.get(weights, ())[2:]
    return tuple(side for side in sides if isinstance(side, int))


def _stays_in_place(network: Network, node: ir.Node) -> bool:
    """Tell whether an operator is proved to compute each place from the same place."""
    shapes = network.plain.shapes
    if node.op_type in ("Conv", "ConvTranspose"):
        kernel = _kernel(network, node)
        return bool(kernel) and all(side == 1 for side in kernel)
    if node.op_type in ("MatMul", "Gemm"):  # of channels by weights
        return sum(v is not None and varies(v, shapes) for v in node.inputs[:2]) == 1
    return node.op_type in _IN_PLACE


def _has_extent(network: Network, node: ir.Node) -> bool:
    """Tell whether an operator computes a place from several that differ in what they add.

    Means of the whole image, as of squeeze-and-excitation, and resizing do not count.
    """
    shapes = network.plain.shapes
    if node.op_type in _WINDOWS:
        return any(side > 1 for side in _kernel(network, node))
    if node.op_type == "MatMul":  # attention
        return all(v is not None and varies(v, shapes) for v in node.inputs)
    return node.op_type == "Attention"
