"""Compute the logits without each channel of A, for Ablation-CAM, with one run of the backbone.

The head is split: channel-wise operators (pooling, activation functions, flatten) run once, after
which a missing channel changes one block of features. A linear layer turns that into a subtraction,
and only what follows it runs once per channel. Without a linear layer, the rest runs on copies, in
chunks of bounded size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ..runtime.errors import ExportError
from .data_flow import Layer
from .default_layer import ELEMENTWISE
from .dims import BATCH, Dim, Size, divide, product
from .layers import Network
from .recorder import Recorder, Tensor
from .subgraph import copy_between, run

# What the copies of one image may occupy at once while the head runs per channel.
CHUNK_BYTES = 64 * 2**20
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
    pooled = end is network.logits or _is_flat_copy(network, end)
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


def _is_flat_copy(network: Network, value: ir.Value) -> bool:
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


def logit_drops(network: Network, head: Head, recorder: Recorder, logits: Tensor) -> Tensor:
    """Record how much each logit falls when channel k of A is set to zero: z - z_k.

    Args:
        network: whose head it is.
        head: in parts.
        recorder: of the graph.
        logits: z, [N, C].

    Returns:
        [N, K, C].

    Raises:
        ExportError: the head reads other tensors than A.
    """
    shapes = network.plain.shapes
    channels = head.layer.shape[0]
    features = Tensor(recorder, head.features, shapes.dims[head.features], ir.DataType.FLOAT)
    zero_features = _features_of_zeros(network, head)
    if head.weight is None:
        return logits[:, None] - _record_copies(network, head, recorder, features, zero_features)
    weight = Tensor(recorder, head.weight, shapes.dims[head.weight], ir.DataType.FLOAT)
    if head.is_transposed:
        inner, hidden = weight.shape
        by_channel = weight.reshape((channels, -1, hidden))  # [K, m, D]
    else:
        hidden, inner = weight.shape
        by_channel = weight.reshape((hidden, channels, -1)).transpose((1, 2, 0))
    assert isinstance(inner, int)
    width = inner // channels
    blocks = features.reshape((BATCH, channels, width))
    contributions = _contributions(blocks, by_channel, width)
    drop = contributions
    if zero_features is not None:
        constant = recorder.constant(zero_features[None].astype(np.float32))
        drop = contributions - _contributions(constant, by_channel, width)
    if head.end is network.logits or _is_flat_copy(network, head.end):
        return drop.reshape((BATCH, channels, -1))
    before = contributions.sum(1, keepdims=True)
    if head.bias is not None:
        before = before + Tensor(recorder, head.bias, shapes.dims[head.bias], ir.DataType.FLOAT)
    rows = BATCH * channels
    without = _record_rest(network, head, (before - drop).reshape((rows, hidden)), "rest")
    return logits[:, None] - without.reshape((BATCH, channels, -1))


def _contributions(blocks: Tensor, by_channel: Tensor, width: int) -> Tensor:
    """Record what each channel adds to a linear layer: [N, K, m] and [K, m, D] to [N, K, D]."""
    if width == 1:
        return blocks * by_channel.reshape((by_channel.shape[0], by_channel.shape[2]))
    return (blocks.transpose((1, 0, 2)) @ by_channel).transpose((1, 0, 2))


def _record_rest(network: Network, head: Head, x: Tensor, name: str) -> Tensor:
    wanted = (x.shape[0], *network.plain.shapes.dims[head.end][1:])
    return copy_between(
        network.nodes,
        head.end,
        network.logits,
        x.reshape(wanted),
        network.plain.shapes,
        f"whycam/ablation/{name}",
    )


def _features_of_zeros(network: Network, head: Head) -> NDArray[np.float32] | None:
    """Compute the features of channels of zeros, [K, m]; None if all are zero."""
    channels, height, width = head.layer.shape
    shapes = network.plain.shapes
    if not head.channelwise:
        return None
    zeros = np.zeros((1, channels, height, width), np.float32)
    (features,) = run(network.plain.graph, {head.layer.value: zeros}, [head.features], shapes)
    blocks = np.asarray(features, np.float32).reshape(channels, -1)
    if any(
        isinstance(side, Size) and not side.counts_images for side in shapes.dims[head.features]
    ):
        # Of a size that is known at run time only: one number a channel must stand for all places.
        if (blocks != blocks[:, :1]).any():
            raise ExportError(
                "what Ablation-CAM's empty channels become differs from place to place, which "
                "--dynamic-size cannot express: leave out the method ablation"
            )
        blocks = blocks[:, :1]
    return blocks if blocks.any() else None


def _record_copies(
    network: Network,
    head: Head,
    recorder: Recorder,
    features: Tensor,
    zero_features: NDArray[np.float32] | None,
) -> Tensor:
    """Record the logits without each channel, [N, K, C], by running the head on copies."""
    channels = head.layer.shape[0]
    shape = features.shape[1:]
    blocks = features.reshape((BATCH, 1, channels, divide(product(shape), channels)))
    zero = np.zeros((1, 1), np.float32) if zero_features is None else zero_features
    chunk = max(1, min(channels, CHUNK_BYTES // max(1, _bytes_after(network, head.end))))
    pieces = []
    for start in range(0, channels, chunk):
        count = min(chunk, channels - start)
        ablated = np.zeros((1, count, channels, 1), bool)
        ablated[0, np.arange(count), start + np.arange(count)] = True
        copies = recorder.xp.where(recorder.constant(ablated), recorder.constant(zero), blocks)
        rows: Dim = BATCH * count
        flat = copies.reshape((rows, *shape))
        logits = _record_rest(network, head, flat, f"copies_{start}")
        pieces.append(logits.reshape((BATCH, count, -1)))
    return pieces[0] if len(pieces) == 1 else recorder.xp.concat(pieces, axis=1)


def _bytes_after(network: Network, value: ir.Value) -> int:
    """Compute the bytes of float32 that the largest step after a tensor needs for one image."""
    node = value.producer()
    place = network.path.index(node) + 1 if node in network.path else 0
    largest = 0
    for each in network.path[place:]:
        for output in each.outputs:
            largest = max(largest, 4 * network.plain.shapes.count_largest(output))
    return 2 * largest
