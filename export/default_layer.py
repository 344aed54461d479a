"""Choose the target layer from the data flow of the graph, whatever the architecture is called.

Of a convolutional network it is the output of the last convolution, moved on over element-wise
operators. Where learned layers over the same places follow it, as in transformers and hybrids, it
is the last tensor that everything passes through and most of whose places still have a gradient:
the last block's output where places are pooled. Where only a class token is read, the
last block's output has none at its places; its input has, and the normalisation that reads it is
chosen.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import onnx_ir as ir

from .data_flow import NORMALISATIONS, DataFlow, Layer
from .gradient.reverse import find_path
from .plain_model import PlainModel

# Operators after which a tensor is still the same feature map, element by element.
ELEMENTWISE = {
    "Relu", "LeakyRelu", "PRelu", "ThresholdedRelu", "Elu", "Selu", "Celu", "Gelu", "Erf",
    "Sigmoid", "HardSigmoid", "HardSwish", "Swish", "Mish", "Tanh", "Softplus", "Softsign", "Clip",
    "Exp", "Pow", "Add", "Sub", "Mul", "Div", "Neg", "Max", "Min", "Sqrt", "Abs", "Log",
    "Reciprocal", "Identity", "Cast", "Dropout", "BatchNormalization", "Where", "QuantizeLinear",
    "DequantizeLinear",
}  # fmt: skip
# Alone on the path, one of these begins a pooling layer (generalised mean).
_POOLING_STEPS = {"Pow", "Sqrt", "Exp", "Log", "Abs", "Reciprocal"}
_PRODUCTS = {"Conv", "ConvTranspose", "MatMul", "Gemm", "Einsum"}
_RECURRENT = {"LSTM", "GRU", "RNN"}
_LINEAR = {"Conv", "ConvTranspose", "MatMul", "Gemm", "BatchNormalization", "Add", "Sub"}
# A larger share of the arithmetic that goes around a layer is another network beside it.
_MAX_SHARE_BESIDE = 0.4
# A larger share of the arithmetic after the target layer means that it is not near the end.
_MAX_HEAD_SHARE = 0.5
# A hybrid's last block may have attention within and across windows; more is a transformer.
_MAX_ATTENTION = 2
# The class scores must read most places, and not the last step of a sequence alone.
_LEAST_PLACES = 0.5
# Data movement: the layer is what was moved.
MOVEMENT = {
    "Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Slice", "Split", "Gather", "Concat",
    "Pad", "Expand", "Identity", "Cast",
}  # fmt: skip
_POOLING = ("Reduce", "Global", "AveragePool", "MaxPool", "LpPool")


def choose_layer(flow: DataFlow) -> tuple[Layer | None, str]:
    """Choose the target layer.

    Returns:
        The layer with its reason; or None, and why there is none.
    """
    layer = find_last_features(flow)
    late = None if layer is None else _describe_rest(flow, layer)
    tokens = _find_last_tokens(flow)
    if layer is not None and tokens is not None and _lies_deeper(flow, tokens, layer):
        return tokens, ""
    if layer is not None and late is None and not _is_linear_in_image(flow, layer):
        reason = "the output of the last convolution that learned layers follow"
        return dataclasses.replace(layer, reason=reason), ""
    if tokens is not None:
        return tokens, ""
    if layer is not None and late is None:
        return dataclasses.replace(layer, reason="the only convolution"), ""
    if layer is not None:
        return None, (
            f"the network's last convolution ({layer.name}) comes early: {late}, and no later "
            "tensor has elements that are proved to belong to places of the image and that the "
            "class scores read"
        )
    return None, (
        "no convolution with spatial extent is followed by a point that every path to the class "
        "scores passes, and no other tensor there has elements that are proved to belong to "
        "places of the image"
    )


def _lies_deeper(flow: DataFlow, tokens: Layer, convolution: Layer) -> bool:
    """Tell whether learned layers lie between the last convolution and a later tensor's places."""
    first, last = (layer.value.producer() for layer in (convolution, tokens))
    assert first is not None
    assert last is not None
    return has_weights(flow, flow.path[flow.position[first] + 1 : flow.position[last] + 1])


def _find_last_tokens(flow: DataFlow) -> Layer | None:
    """Find the last tensor with places and a gradient there that learned weights follow."""
    cut: Layer | None = None
    for node in reversed(flow.cut_points):
        if node.op_type in MOVEMENT or node.op_type.startswith(_POOLING):
            continue
        if _is_projection(flow, node):
            continue
        layer = flow.layer_at(node)
        if layer is None or flow.gradient_share(layer) < _LEAST_PLACES:
            continue
        if flow.is_embedding or has_weights(flow, flow.path[flow.position[node] + 1 :]):
            cut = layer
            break
    if cut is not None and _describe_rest(flow, cut) is None:
        norm = _find_normalisation(flow, cut)
        if norm is None:
            reason = "the last tensor whose places have a gradient; all of the network reads it"
            return dataclasses.replace(cut, reason=reason)
        reason = (
            "the last normalisation whose places have a gradient: after its block the class scores "
            "read no place"
        )
        return dataclasses.replace(norm, reason=reason)
    for node in reversed(flow.path):
        layer = flow.layer_at(node) if node.op_type in NORMALISATIONS else None
        if layer is None or flow.gradient_share(layer) < _LEAST_PLACES:
            continue
        if _share_beside(flow, layer) > _MAX_SHARE_BESIDE:
            continue
        if _loses_places(flow, layer) and _describe_rest(flow, layer) is not None:
            return None
        reason = (
            "the last normalisation whose places have a gradient; no later tensor is read by "
            "all of the network"
        )
        return dataclasses.replace(layer, reason=reason)
    return None


def _share_beside(flow: DataFlow, layer: Layer) -> float:
    """Compute which share of the arithmetic neither leads to a layer nor follows from it.

    Of two networks whose scores are averaged it is half.
    """
    before, _ = find_path([flow.plain.image], layer.value, flow.path)
    after, _ = find_path([layer.value], flow.logits, flow.path)
    counts = {node: _count_multiplications(node, flow.plain) for node in flow.path}
    whole = sum(counts.values())
    return 1 - sum(counts[node] for node in {*before, *after}) / whole if whole else 0.0


def _loses_places(flow: DataFlow, layer: Layer) -> bool:
    """Tell whether a later block has as many elements, and it is unknown where they belong."""
    node, dims = layer.value.producer(), flow.plain.shapes.dims
    assert node is not None
    return any(
        dims.get(other.outputs[0]) == dims[layer.value] and flow.layer_at(other) is None
        for other in flow.path[flow.position[node] + 1 :]
        if other in flow.cut_nodes or other.op_type in NORMALISATIONS
    )


def _is_projection(flow: DataFlow, node: ir.Node) -> bool:
    """Tell whether a node ends a linear layer, as those that compute keys and values."""
    while node.op_type in ("Add", "Mul", "Identity", "Cast") or node.op_type in MOVEMENT:
        sources = [v for v in node.inputs if v is not None and v in flow.on_path]
        producer = sources[0].producer() if len(sources) == 1 else None
        if producer is None:
            return False
        node = producer
    return node.op_type in _PRODUCTS and node.op_type != "Conv"


def _is_linear_in_image(flow: DataFlow, layer: Layer) -> bool:
    """Tell whether a layer is a linear function of the image, as patch embeddings are.

    It shows the image then, and nothing that the network found in it.
    """
    path, _ = find_path([flow.plain.image], layer.value, flow.nodes)
    return all(node.op_type in MOVEMENT or _is_linear(flow, node) for node in path)


def _find_normalisation(flow: DataFlow, cut: Layer) -> Layer | None:
    """Find the normalisation that reads a cut point's tensor, at a block's beginning."""
    readers = {use.node for use in cut.value.uses()}
    for node in flow.path[flow.position[cut.value.producer()] :]:  # type: ignore[index]
        if node in readers and node.op_type in NORMALISATIONS:
            layer = flow.layer_at(node)
            if layer is not None and flow.gradient_share(layer) >= _LEAST_PLACES:
                return layer
    return None


def find_last_features(flow: DataFlow) -> Layer | None:
    """Find the activations that follow the last convolution of the backbone.

    These are at the first cut point after the last convolution with spatial extent, moved on
    over element-wise operators. The rest must hold learned weights: in a fully convolutional
    classifier the last convolution is the classifier, so the one before it counts.
    """
    position = flow.position
    convolutions = [
        node for node in flow.path if node.op_type == "Conv" and _has_extent(flow, node)
    ]
    for convolution in reversed(convolutions):
        later = [cut for cut in flow.cut_points if position[cut] >= position[convolution]]
        layer = _feature_map_at(flow, later[0]) if later else None
        if layer is None or flow.gradient_share(layer) < _LEAST_PLACES:
            continue
        last = later[0]
        for following in later[1:]:
            inside = flow.path[position[last] + 1 : position[following] + 1]
            next_layer = _feature_map_at(flow, following)
            if (
                next_layer is None
                or next_layer.shape != layer.shape
                or not all(node.op_type in ELEMENTWISE | {"Transpose"} for node in inside)
                or _begins_pooling(flow, following)
            ):
                break
            if following.op_type != "Transpose":  # of which the same layer is the source
                last, layer = following, next_layer
        # Class embeddings are learned weights that follow an image embedding.
        if flow.is_embedding or has_weights(flow, flow.path[position[last] + 1 :]):
            return layer
    return None


def _has_extent(flow: DataFlow, node: ir.Node) -> bool:
    dims = flow.plain.shapes.dims.get(node.outputs[0], ())
    return len(dims) == 4 and dims[2:] != (1, 1)


def _begins_pooling(flow: DataFlow, node: ir.Node) -> bool:
    if node.op_type in _POOLING_STEPS:
        return True
    if node.op_type != "Clip" or len(node.inputs) < 2 or node.inputs[1] is None:
        return False
    least = flow.plain.shapes.constants.get(node.inputs[1])
    unbounded = len(node.inputs) < 3 or node.inputs[2] is None
    if least is None or float(least) <= 0 or not unbounded:
        return False
    # A positive lower bound guards a power or a logarithm. Directly after a linear operator it
    # is the layer's activation as well, for exporters merge ReLU and Clip. After another
    # activation it only guards.
    before = None if node.inputs[0] is None else node.inputs[0].producer()
    return before is None or not _is_linear(flow, before)


def _is_linear(flow: DataFlow, node: ir.Node) -> bool:
    if node.op_type in ("Mul", "Div"):  # by constants
        return sum(value in flow.on_path for value in node.inputs) == 1
    return node.op_type in _LINEAR


def has_weights(flow: DataFlow, nodes: Sequence[ir.Node]) -> bool:
    """Tell whether a learned matrix or kernel enters, even through other operators."""
    return any(
        _is_learned(value)
        for node in nodes
        if node.op_type in _PRODUCTS
        for value in node.inputs
        if value is not None and value not in flow.on_path
    )


def _is_learned(value: ir.Value) -> bool:
    pending, visited = [value], set()
    while pending:
        current = pending.pop()
        if current in visited:
            continue
        visited.add(current)
        tensor = current.const_value
        if tensor is not None and current.is_initializer():
            if len(tensor.shape) >= 2 and tensor.size > 1:
                return True
            continue
        node = current.producer()
        if node is not None:
            pending.extend(v for v in node.inputs if v is not None)
    return False


def _feature_map_at(flow: DataFlow, node: ir.Node) -> Layer | None:
    layer = flow.layer_at(node)
    return layer if layer is not None and layer.arrangement.is_feature_map else None


def _describe_rest(flow: DataFlow, layer: Layer) -> str | None:
    """Say how much of the network follows a layer; None if the layer is near the end."""
    node = layer.value.producer()
    assert node is not None
    place = flow.position[node]
    counts = [_count_multiplications(step, flow.plain) for step in flow.path]
    share = sum(counts[place + 1 :]) / max(1, sum(counts))
    attention = sum(step.op_type in ("Softmax", "Attention") for step in flow.path[place + 1 :])
    if attention > _MAX_ATTENTION:
        return f"{attention} attention layers follow it"
    return f"{share:.0%} of its arithmetic follows it" if share > _MAX_HEAD_SHARE else None


def _count_multiplications(node: ir.Node, plain: PlainModel) -> int:
    """Count the multiplications of one node for one image."""
    dims = plain.shapes.dims
    if node.op_type in _RECURRENT:
        features = dims[node.inputs[0]][-1]  # type: ignore[index]
        elements = plain.shapes.count_largest(node.inputs[0])
        steps = elements // (features if isinstance(features, int) else 1)
        return steps * sum(plain.shapes.count_largest(value) for value in node.inputs[1:3])
    if node.op_type not in _PRODUCTS or node.outputs[0] not in dims:
        return 0
    out = plain.shapes.count_largest(node.outputs[0])
    first, second = (dims.get(value, ()) if value is not None else () for value in node.inputs[:2])
    if node.op_type in ("Conv", "ConvTranspose"):
        inner = [side for side in second[1:] if isinstance(side, int)]
    else:
        inner = [side for side in first[-1:] if isinstance(side, int)]
    return out * math.prod(inner)
