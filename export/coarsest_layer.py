"""Choose the target layer of a segmentation network: the last one at its coarsest resolution.

The last layers of such a network show little more than its answer, for each of their places decides
about itself. Further back, where the network has gathered from afar, a map shows what it gathered:
Vinogradova et al. 2020 take the bottleneck of a U-Net. Here it is the last tensor of the coarsest
feature maps that learned operators mix places of afterwards, and that nothing of the same
resolution goes around, as the shortcut of a residual block does. Layers that are summaries of
others, as pooling to 1 x 1 or 6 x 6 places gives them, do not count.
"""

from __future__ import annotations

from dataclasses import replace

import onnx_ir as ir

from .data_flow import DataFlow, Layer
from .default_layer import ELEMENTWISE, MOVEMENT, choose_layer
from .gradient.reverse import find_path

Resolution = tuple[int, int]
# A step to a quarter of the rows, or fewer, gives a summary of features, no coarser form of them.
_SUMMARY = 4
_MIXING = {"Attention", "LSTM", "GRU", "RNN"}
_REASON = "the last layer at the coarsest resolution whose places learned operators mix afterwards"


def choose_coarsest_layer(flow: DataFlow, scores: ir.Value) -> tuple[Layer | None, str]:
    """Choose the target layer of a network with class scores at every place.

    Args:
        flow: from the image to the mean scores of a region.
        scores: those of every place.

    Returns:
        The layer with its reason; or None, and why there is none.
    """
    end = scores.producer()
    inside = flow.path if end is None else flow.path[: flow.position[end]]
    resolutions, layers = _find_resolutions(flow, inside)
    usable = [layer for layer in layers if resolutions.get(layer.value) is not None]
    if usable:
        cells = min(layer.shape[1] * layer.shape[2] for layer in usable)
        coarsest = [layer for layer in usable if layer.shape[1] * layer.shape[2] == cells]
        for layer in reversed(coarsest):
            path, _ = find_path([layer.value], scores, inside + ([] if end is None else [end]))
            if not any(_mixes_places(flow, node) for node in path):
                continue
            if _is_alone(flow, layer, resolutions) and flow.has_gradient(layer):
                return replace(layer, reason=_REASON), ""
    return choose_layer(flow)


def _find_resolutions(
    flow: DataFlow, nodes: list[ir.Node]
) -> tuple[dict[ir.Value, Resolution | None], list[Layer]]:
    """Find (h, w) of each tensor, None of summaries; and the layers among them, in order."""
    resolutions: dict[ir.Value, Resolution | None] = {flow.plain.image: flow.plain.size}
    layers = []
    for node in nodes:
        inputs = [value for value in node.inputs if value in resolutions]
        known = [each for value in inputs if (each := resolutions[value]) is not None]
        if not inputs:
            continue
        layer = flow.layer_at(node)
        own: Resolution | None = None
        if known:
            own = max(known)
        if layer is not None and known:
            own = layer.shape[1:]
            is_first = all(_is_moved_image(flow, value) for value in inputs)
            if not is_first and own[0] * _SUMMARY <= max(height for height, _ in known):
                own = None
        for value in node.outputs:
            resolutions[value] = own
        if layer is not None and node.op_type in ELEMENTWISE | {"Conv", "Concat", "MatMul", "Gemm"}:
            layers.append(layer)
    return resolutions, layers


def _is_moved_image(flow: DataFlow, value: ir.Value) -> bool:
    """Tell whether a tensor holds the image itself, as patches do."""
    path, _ = find_path([flow.plain.image], value, flow.nodes)
    return all(node.op_type in MOVEMENT for node in path)


def _mixes_places(flow: DataFlow, node: ir.Node) -> bool:
    """Tell whether a node computes a place's features from those of several, by learned weights."""
    if node.op_type in _MIXING:
        return True
    if node.op_type == "MatMul":  # attention: scores times values
        return sum(value in flow.on_path for value in node.inputs) > 1
    if node.op_type not in ("Conv", "ConvTranspose") or node.inputs[1] is None:
        return False
    kernel = flow.plain.shapes.dims.get(node.inputs[1], ())[2:]
    if node.op_type == "Conv":
        return any(side != 1 for side in kernel)
    strides = node.attributes.get("strides")
    steps = [1] * len(kernel) if strides is None else strides.as_ints()
    return any(
        isinstance(side, int) and side > step for side, step in zip(kernel, steps, strict=True)
    )


def _is_alone(flow: DataFlow, layer: Layer, resolutions: dict[ir.Value, Resolution | None]) -> bool:
    """Tell whether nothing of the layer's resolution, a coarser one or a summary goes around it."""
    own = layer.shape[1] * layer.shape[2]
    around = (resolutions.get(value) for value in flow.find_bypasses(layer))
    return all(each is not None and each[0] * each[1] > own for each in around)
