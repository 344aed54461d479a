"""Split a classifier's head into the parts that Ablation-CAM needs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from .data_flow import Layer
from .default_layer import ELEMENTWISE
from .layers import Network

_POOLING = {"MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool"}
_REDUCTIONS = {"ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL2"}
_AVERAGES = {"GlobalAveragePool", "ReduceMean", "AveragePool"}
_RESHAPES = {"Reshape", "Flatten", "Squeeze", "Unsqueeze"}
_IDENTITIES = {"Identity", "Dropout", "Cast"}


@dataclass(frozen=True)
class Head:
    """A head in parts: logits = rest(weight @ channelwise(A) + bias).

    Attributes:
        layer: A.
        channelwise: the nodes that do not mix channels, in order.
        features: their result, [N, K, ...] or [N, K m].
        weight: of the linear layer after them, [D, K m] or [K m, D]; None without one.
        is_transposed: whether the weight is [K m, D].
        bias: of the linear layer; None without.
        end: the tensor after the linear layer, where ``rest`` begins; ``features`` without one.
        is_pooled_linear: whether it is global average pooling and one linear layer, as CAM needs
            (paper equation 1).
    """

    layer: Layer
    channelwise: tuple[ir.Node, ...]
    features: ir.Value
    weight: ir.Value | None
    is_transposed: bool
    bias: ir.Value | None
    end: ir.Value
    is_pooled_linear: bool


def split_head(network: Network, layer: Layer) -> Head:
    """Split a head into channel-wise operators, a linear layer and the rest."""
    dims = network.plain.shapes.dims
    channels = layer.shape[0]
    end = layer.value
    nodes: list[ir.Node] = []
    in_order = layer.arrangement.is_plain and layer.is_cut_point
    while in_order and (node := _only_reader(network, end)) is not None:
        if not _is_channelwise(network, node, end, channels):
            break
        nodes.append(node)
        end = node.outputs[0]
    features = end
    weight = bias = None
    transposed = False
    node = _only_reader(network, end)
    if in_order and node is not None and len(dims[end]) == 2 and node.op_type in ("Gemm", "MatMul"):
        weight, transposed, bias = _linear(node, end, network)
        if weight is not None:
            end = node.outputs[0]
            following = _only_reader(network, end)
            if bias is None and following is not None and following.op_type == "Add":
                other = next((v for v in following.inputs if v is not end), None)
                if other is not None and _is_weight(other) and len(dims[other]) == 1:
                    bias, end = other, following.outputs[0]
    pooled = end is network.logits or is_flat_copy(network, end)
    return Head(
        layer,
        tuple(nodes),
        features,
        weight,
        transposed,
        bias,
        end,
        pooled and weight is not None and _pools_globally(network, nodes),
    )


def explain_refusal(layer: Layer) -> str | None:
    """Say why Ablation-CAM is not possible at a layer; None if it is."""
    if not layer.is_cut_point:
        return (
            f"part of the network goes around the layer '{layer.name}', so a channel that is set "
            "to zero there is not gone"
        )
    if not layer.arrangement.is_plain:
        return (
            f"it needs activations [N, K, h, w], and those of the layer '{layer.name}' are "
            "arranged otherwise"
        )
    return None


def is_flat_copy(network: Network, value: ir.Value) -> bool:
    """Tell whether the logits are this tensor reshaped."""
    while value is not network.logits:
        node = _only_reader(network, value)
        if node is None or node.op_type not in _RESHAPES | _IDENTITIES:
            return False
        value = node.outputs[0]
    return True


def _only_reader(network: Network, value: ir.Value) -> ir.Node | None:
    if value is network.logits:
        return None
    known = set(network.nodes)
    readers = {use.node for use in value.uses() if use.node in known}
    on_path = [node for node in readers if node in network.path]
    return on_path[0] if len(on_path) == 1 and len(readers) == 1 else None


def _is_weight(value: ir.Value) -> bool:
    return value.const_value is not None


def _linear(
    node: ir.Node, source: ir.Value, network: Network
) -> tuple[ir.Value | None, bool, ir.Value | None]:
    """Return weight, whether it is [K m, D], and bias of a linear layer that reads ``source``."""
    weight = node.inputs[1]
    if node.inputs[0] is not source or weight is None or not _is_weight(weight):
        return None, False, None
    if network.plain.shapes.dtypes[weight] != ir.DataType.FLOAT:
        return None, False, None
    if node.op_type == "MatMul":
        return weight, True, None
    plain = all(
        node.attributes[name].as_float() == 1.0
        for name in ("alpha", "beta")
        if name in node.attributes
    )
    flip_a = node.attributes.get("transA")
    if not plain or (flip_a is not None and flip_a.as_int()):
        return None, False, None
    flip = node.attributes.get("transB")
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is not None and not _is_weight(bias):
        return None, False, None
    return weight, not (flip is not None and flip.as_int()), bias


def _is_channelwise(network: Network, node: ir.Node, source: ir.Value, channels: int) -> bool:
    shapes = network.plain.shapes
    before, after = shapes.dims[source], shapes.dims.get(node.outputs[0], ())
    if node.inputs[0] is not source and node.op_type not in ("Add", "Mul", "Max", "Min"):
        return False
    if node.op_type in _RESHAPES:
        flattened = len(after) == 2 and before[1] == channels
        return flattened or (len(after) > 2 and after[1] == channels == before[1])
    if len(before) != 4:
        return node.op_type in _IDENTITIES
    if node.op_type in _POOLING:
        return True
    if node.op_type in _REDUCTIONS:
        return set(_reduced(node, network)) <= {2, 3}
    if node.op_type == "BatchNormalization" or node.op_type in _IDENTITIES:
        return True
    # Element by element with constants that differ by channel at most.
    others = [value for value in node.inputs[1:] if value is not None]
    others += [v for v in node.inputs[:1] if v is not source and v is not None]
    return (
        node.op_type in ELEMENTWISE
        and after == before
        and all(
            _is_weight(value) and (not dims or len(dims) <= 1 or dims[-2:] == (1, 1))
            for value in others
            if (dims := shapes.dims.get(value, (0, 0))) is not None
        )
        and all(len(shapes.dims.get(v, ())) != 1 or shapes.dims[v] == (1,) for v in others)
    )


def _reduced(node: ir.Node, network: Network) -> list[int]:
    axes = network.plain.shapes.constants.get(node.inputs[1]) if len(node.inputs) > 1 else None  # type: ignore[arg-type]
    if axes is None:
        return list(range(4))
    return [int(axis) % 4 for axis in axes.ravel()]


def _pools_globally(network: Network, nodes: Sequence[ir.Node]) -> bool:
    """Tell whether the nodes only average over all positions."""
    dims = network.plain.shapes.dims
    averages = []
    for node in nodes:
        if node.op_type not in _AVERAGES:
            continue
        out = dims[node.outputs[0]]
        if math.prod([s for s in out[2:] if isinstance(s, int)]) == 1:
            averages.append(node)
    return len(averages) == 1 and all(
        node in averages or node.op_type in _RESHAPES | _IDENTITIES for node in nodes
    )
