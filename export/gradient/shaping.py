"""Differentiate operators that move, select or repeat elements."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from ..dims import Dim, divide
from ..tensors import Tensor, concat, expand, pad, unsqueeze
from .pooling import multiply_along_axes
from .step import Step


def _reshape(step: Step) -> list[Tensor | None]:
    """Reshape the gradient to the input's shape."""
    return [step.g.reshape(step.gradient_shape(step.dims())), None]


def _transpose(step: Step) -> list[Tensor | None]:
    rank = len(step.dims())
    order = list(step.attribute("perm", list(range(rank))[::-1]))
    return [step.g.transpose([order.index(axis) for axis in range(rank)])]


def _concat(step: Step) -> list[Tensor | None]:
    axis = step.axis("axis", 0)
    lengths = step.static_lengths(
        [step.dims(index)[axis] for index in range(len(step.node.inputs))]
    )
    grads: list[Tensor | None] = []
    start = 0
    for index, length in enumerate(lengths):
        cut = [slice(None)] * axis + [slice(start, start + length)]
        grads.append(step.g[tuple(cut)] if step.needs_gradient(index) else None)
        start += length
    return grads


def _split(step: Step) -> list[Tensor | None]:
    """Concatenate the gradients of the parts, zeros for parts that nothing reads."""
    axis = step.axis("axis", 0)
    lengths = step.static_lengths([step.shape_of(value)[axis] for value in step.node.outputs])
    used = [index for index, gradient in enumerate(step.grads) if gradient is not None]
    parts = []
    for index in range(used[0], used[-1] + 1):
        gradient = step.grads[index]
        if gradient is None:
            dims = step.gradient_shape(step.shape_of(step.node.outputs[index]))
            gradient = expand(step.recorder.constant(0.0, ir.DataType.FLOAT), dims)
        parts.append(gradient)
    joined = parts[0] if len(parts) == 1 else concat(parts, axis)
    before, after = [0] * joined.ndim, [0] * joined.ndim
    before[axis], after[axis] = sum(lengths[: used[0]]), sum(lengths[used[-1] + 1 :])
    return [pad(joined, before, after), None]


def _scatter(step: Step, g: Tensor, axis: int, indices: NDArray[np.int64], length: int) -> Tensor:
    """Put gradients at the indices of an axis of some length, zeros elsewhere; repeats add up."""
    count = len(indices)
    if np.array_equal(indices, indices[0] + np.arange(count)):
        before, after = [0] * g.ndim, [0] * g.ndim
        before[axis], after[axis] = int(indices[0]), length - int(indices[0]) - count
        return pad(g, before, after)
    if len(set(indices.tolist())) == count:
        # Every position takes its element, or the zero that is appended.
        after = [0] * g.ndim
        after[axis] = int(count < length)
        source = np.full(length, count, np.int64)
        source[indices] = np.arange(count)
        dims = list(g.shape)
        dims[axis] = length
        padded = pad(g, [0] * g.ndim, after)
        return step.recorder.op("Gather", [padded, step.recorder.constant(source)], dims, axis=axis)
    matrix = np.zeros((count, length), np.float32)
    np.add.at(matrix, (np.arange(count), indices), 1.0)
    if g.ndim > 1 and axis == g.ndim - 2 and isinstance(g.shape[-1], int):
        return step.recorder.constant(np.ascontiguousarray(matrix.T)) @ g
    order = [*(a for a in range(g.ndim) if a != axis), axis]
    moved = g.transpose(order) @ step.recorder.constant(matrix)
    return moved.transpose([order.index(a) for a in range(g.ndim)])


def _slice(step: Step) -> list[Tensor | None]:
    """Pad the gradient to the input's length; bounds must be known, the batch whole."""
    dims = step.dims()
    starts, ends = (step.constant(index).ravel() for index in (1, 2))
    axes = step.constant(3).ravel() if step.has_input(3) else np.arange(len(starts))
    steps = step.constant(4).ravel() if step.has_input(4) else np.ones(len(starts), np.int64)
    gradient = step.g
    before, after = [0] * len(dims), [0] * len(dims)
    for start, end, axis, stride in zip(starts, ends, axes, steps, strict=True):
        place = int(axis) % len(dims)
        side: Dim = dims[place]
        if not isinstance(side, int):
            if int(start) == 0 and int(stride) == 1 and int(end) >= 2**31 - 1:
                continue
            step.static_lengths([side])
            raise step.refusal("it takes part of the batch")
        # NumPy reads a far negative end as ONNX does: past the first element.
        taken = np.arange(side)[slice(int(start), int(end), int(stride))]
        if stride == 1:
            before[place], after[place] = int(taken[0]), side - int(taken[-1]) - 1
        else:
            gradient = _scatter(step, gradient, place, taken, side)
    return [pad(gradient, before, after), None, None, None, None]


def _gather(step: Step) -> list[Tensor | None]:
    """Put the gradient at the indices, which must be known; repeats are summed by a matrix."""
    axis = step.axis("axis", 0)
    (length,) = step.static_lengths([step.dims()[axis]])
    indices = step.constant(1)
    g = step.g
    if indices.ndim == 0:
        g = unsqueeze(g, [axis])
    elif indices.ndim > 1:
        g = g.reshape((*g.shape[:axis], indices.size, *g.shape[axis + indices.ndim :]))
    return [_scatter(step, g, axis, indices.ravel().astype(np.int64) % length, length), None]


def _gather_nd(step: Step) -> list[Tensor | None]:
    """Put the gradient at the indices, which must be known, along one flattened axis."""
    dims, indices = step.dims(), step.constant(1).astype(np.int64)
    if step.attribute("batch_dims", 0):
        raise step.refusal("it has batch axes, for which there is no rule")
    indexed = step.static_lengths(dims[: indices.shape[-1]])
    places = [
        index % side for index, side in zip(np.moveaxis(indices, -1, 0), indexed, strict=True)
    ]
    flat = np.ravel_multi_index(tuple(place.ravel() for place in places), indexed)
    rest = step.gradient_shape(dims[len(indexed) :])
    g = step.g.reshape((flat.size, *rest))
    gradient = _scatter(step, g, 0, flat, int(np.prod(indexed)))
    return [gradient.reshape((*indexed, *rest)), None]


def _pad(step: Step) -> list[Tensor | None]:
    """Crop the gradient; edges that repeat elements add to these. Amounts must be known."""
    dims, mode = step.dims(), step.attribute("mode", "constant")
    amounts = [int(side) for side in step.constant(1).ravel()]
    axes = step.constant(3).ravel().tolist() if step.has_input(3) else list(range(len(dims)))
    gradient = step.g
    before, after = [0] * len(dims), [0] * len(dims)
    for place, number in enumerate(axes):
        axis = number % len(dims)
        near, far = amounts[place], amounts[place + len(axes)]
        if mode == "constant" or (near <= 0 and far <= 0):
            before[axis], after[axis] = -near, -far
        else:
            (side,) = step.static_lengths(dims[axis : axis + 1])
            kept = np.arange(side)[max(0, -near) : side - max(0, -far)]
            edges = (max(0, near), max(0, far))
            gradient = _scatter(step, gradient, axis, np.pad(kept, edges, mode=mode), side)
    return [pad(gradient, before, after), None, None, None]


def _expand(step: Step) -> list[Tensor | None]:
    return [step.sum_to_input(step.g, 0), None]


def _tile(step: Step) -> list[Tensor | None]:
    """Sum over the repeats: [a] repeated r times is [r, a] flattened."""
    repeats = [int(times) for times in step.constant(1).ravel()]
    dims = step.gradient_shape(step.dims())
    step.static_lengths([side for times, side in zip(repeats, dims, strict=True) if times != 1])
    shape: list[Dim] = []
    axes = []
    for times, side in zip(repeats, dims, strict=True):
        if times != 1:
            axes.append(len(shape))
            shape.append(times)
        shape.append(side)
    return [step.g.reshape(shape).sum(tuple(axes)) if axes else step.g, None]


def _depth_to_space(step: Step) -> list[Tensor | None]:
    block, mode = int(step.attribute("blocksize")), step.attribute("mode", "DCR")
    dims = step.gradient_shape(step.dims())
    channels, height, width = step.lengths(dims[1:])
    inner = divide(channels, block**2)
    split = step.g.reshape((dims[0], inner, height, block, width, block))
    order = [0, 3, 5, 1, 2, 4] if mode == "DCR" else [0, 1, 3, 5, 2, 4]
    return [split.transpose(order).reshape(dims)]


def _space_to_depth(step: Step) -> list[Tensor | None]:
    block = int(step.attribute("blocksize"))
    dims = step.gradient_shape(step.dims())
    channels, height, width = step.lengths(dims[1:])
    apart = divide(height, block), divide(width, block)
    split = step.g.reshape((dims[0], block, block, channels, *apart))
    return [split.transpose([0, 3, 4, 1, 5, 2]).reshape(dims)]


def _column_to_image(step: Step) -> list[Tensor | None]:
    """Take the blocks of the gradient, [N, C k k, L], by a convolution with one-hot kernels."""
    dims = step.dims()
    height, width = (int(side) for side in step.constant(1).ravel())
    block = [int(side) for side in step.constant(2).ravel()]
    if len(block) != 2:
        raise step.refusal("it adds up blocks over other than two axes")
    count = block[0] * block[1]
    (columns, number) = step.static_lengths(dims[1:])
    images = step.gradient_shape(dims)[0] * divide(columns, count)
    one_hot: NDArray[np.float32] = np.eye(count, dtype=np.float32)
    kernel = step.recorder.constant(one_hot.reshape(count, 1, *block))
    strides, dilations = step.attribute("strides", [1, 1]), step.attribute("dilations", [1, 1])
    pads = list(step.attribute("pads", [0] * 4))
    out = [
        (side + pads[i] + pads[i + 2] - dilations[i] * (block[i] - 1) - 1) // strides[i] + 1
        for i, side in enumerate((height, width))
    ]
    blocks = step.recorder.op(
        "Conv",
        [step.g.reshape((images, 1, height, width)), kernel],
        (images, count, *out),
        strides=list(strides),
        dilations=list(dilations),
        pads=pads,
        kernel_shape=block,
    )
    assert out[0] * out[1] == number
    return [blocks.reshape(step.gradient_shape(dims)), None, None]


def _resize(step: Step) -> list[Tensor | None]:
    """Multiply by one matrix for each of the last two axes: interpolation is linear, separable."""
    before, after = step.dims(), step.y().shape
    if before[:-2] != after[:-2]:
        raise step.refusal("it resizes other axes than the last two")
    if step.attribute("coordinate_transformation_mode") == "tf_crop_and_resize":
        raise step.refusal("it crops a region of interest")
    if step.attribute("antialias", 0):
        raise step.refusal("it is antialiased, in which engines differ")
    if step.attribute("keep_aspect_ratio_policy", "stretch") != "stretch":
        raise step.refusal("it keeps the aspect ratio of what it resizes")
    matrices = [_resampling_matrix(step, axis) for axis in (-2, -1)]
    return [multiply_along_axes(step, step.g, matrices), None, None, None]


def _resampling_matrix(step: Step, axis: int) -> NDArray[np.float32]:
    """Compute the matrix of a Resize along one axis from unit vectors: float32 [out, in]."""
    from onnx.reference import ReferenceEvaluator

    size, out = step.static_lengths([step.dims()[axis], step.y().shape[axis]])
    node = onnx.NodeProto()
    node.CopyFrom(ir.serde.serialize_node(step.node))
    inputs: dict[str, NDArray[Any]] = {"x": np.eye(size, dtype=np.float32)[:, None, :, None]}
    del node.input[:]
    node.input.extend(["x", "", ""])
    node.output[0] = "y"
    for attribute in list(node.attribute):
        if attribute.name in ("axes", "keep_aspect_ratio_policy"):
            node.attribute.remove(attribute)
    scale = _scale_along(step, axis)
    if scale is not None:
        node.input[2] = "scales"
        inputs["scales"] = np.array([1, 1, scale, 1], np.float32)
    else:
        node.input.append("sizes")
        inputs["sizes"] = np.array([size, 1, out, 1], np.int64)
    infos = [
        onnx.helper.make_tensor_value_info(
            name, onnx.helper.np_dtype_to_tensor_dtype(value.dtype), value.shape
        )
        for name, value in inputs.items()
    ]
    graph = onnx.helper.make_graph([node], "resize", infos, [onnx.ValueInfoProto(name="y")])
    opset = onnx.helper.make_opsetid("", step.recorder.graph.opset_imports[""])
    model = onnx.helper.make_model(graph, opset_imports=[opset])
    (columns,) = ReferenceEvaluator(model).run(None, inputs)
    return np.ascontiguousarray(np.asarray(columns, np.float32)[:, 0, :, 0].T)


def _scale_along(step: Step, axis: int) -> float | None:
    """Return the factor by which an axis is resized; None where sizes are given."""
    scales = step.constant_or_none(2)
    if scales is None or not scales.size:
        return None
    rank = len(step.dims())
    axes = [axis % rank for axis in step.attribute("axes", range(rank))]
    factors = dict(zip(axes, scales.ravel().tolist(), strict=True))
    return float(factors.get(axis % rank, 1.0))


RULES: dict[str, Callable[[Step], list[Tensor | None]]] = {
    "Reshape": _reshape,
    "Flatten": _reshape,
    "Squeeze": _reshape,
    "Unsqueeze": _reshape,
    "Transpose": _transpose,
    "Concat": _concat,
    "Split": _split,
    "Slice": _slice,
    "Gather": _gather,
    "GatherND": _gather_nd,
    "Pad": _pad,
    "Expand": _expand,
    "Tile": _tile,
    "DepthToSpace": _depth_to_space,
    "SpaceToDepth": _space_to_depth,
    "Resize": _resize,
    "Col2Im": _column_to_image,
}
