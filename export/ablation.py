"""Compute the logits without each channel of A, for Ablation-CAM, with one run of the backbone.

The head is split: channel-wise operators (pooling, activation functions, flatten) run once, after
which a missing channel changes one block of features. A linear layer turns that into a subtraction,
and only what follows it runs once per channel. Without a linear layer, the rest runs on copies, in
chunks of bounded size.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ..runtime.errors import ExportError
from .ablation_head import Head, is_flat_copy
from .dims import BATCH, Dim, Size, divide, product
from .layers import Network
from .recorder import Recorder
from .subgraph import copy_between, run
from .tensors import Tensor

# What the copies of one image may occupy at once while the head runs per channel.
CHUNK_BYTES = 64 * 2**20


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
    if head.end is network.logits or is_flat_copy(network, head.end):
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
