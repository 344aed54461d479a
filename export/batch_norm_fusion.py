"""Fuse batch normalisations into the convolutions before them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import onnx


def fuse_batch_norms(graph: onnx.GraphProto, inside: Collection[int]) -> None:
    """Fuse each batch normalisation into the convolution before it: one rounding instead of two.

    Equal convolutions with equal normalisations, as in two copies of a backbone, share their new
    weights.

    Args:
        graph: changed in place.
        inside: indices of the nodes that may change.
    """
    from onnx import numpy_helper

    weights = {tensor.name: tensor for tensor in graph.initializer}
    readers: dict[str, int] = {}
    for node in graph.node:
        for name in node.input:
            readers[name] = readers.get(name, 0) + 1
    for value in graph.output:
        readers[value.name] = readers.get(value.name, 0) + 1
    convolutions = {
        graph.node[index].output[0]: graph.node[index]
        for index in inside
        if graph.node[index].op_type == "Conv" and graph.node[index].input[1] in weights
    }
    fused = []
    for index in sorted(inside):
        norm = graph.node[index]
        before = convolutions.get(norm.input[0]) if norm.op_type == "BatchNormalization" else None
        if before is None or readers[norm.input[0]] != 1 or not set(norm.input[1:]) <= set(weights):
            continue
        name = f"{'_'.join(before.input[1:])}_with_{norm.input[1]}"
        shift = f"{name}_bias"
        if name not in weights:
            kernel, bias = _fused_weights(before, norm, weights)
            weights[name] = numpy_helper.from_array(kernel, name)
            weights[shift] = numpy_helper.from_array(bias, shift)
        before.input[:] = [before.input[0], name, shift]
        before.output[0] = norm.output[0]
        fused.append(index)
    for index in reversed(fused):
        del graph.node[index]
    read = {name for node in graph.node for name in node.input}
    del graph.initializer[:]
    graph.initializer.extend(tensor for tensor in weights.values() if tensor.name in read)


def _fused_weights(
    convolution: onnx.NodeProto, norm: onnx.NodeProto, weights: Mapping[str, onnx.TensorProto]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Compute kernel and bias of convolution and normalisation in one, in float64."""
    from onnx import numpy_helper

    def values(name: str) -> NDArray[np.float64]:
        return numpy_helper.to_array(weights[name]).astype(np.float64)

    scale, beta, mean, variance = map(values, norm.input[1:])
    epsilon = next((item.f for item in norm.attribute if item.name == "epsilon"), 1e-5)
    factor = scale / np.sqrt(variance + epsilon)
    kernel = values(convolution.input[1])
    before = values(convolution.input[2]) if len(convolution.input) > 2 else np.zeros_like(mean)
    kernel = kernel * factor.reshape(-1, *[1] * (kernel.ndim - 1))
    return kernel.astype(np.float32), ((before - mean) * factor + beta).astype(np.float32)
