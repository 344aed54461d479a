"""Differentiate dense heads on patches: a candidate's score reads a few cells of one level alone.

Where the head of a level consists of convolutions of stride 1 and element-wise operators, and each
candidate is proved to follow from one cell of their outputs, its gradient is computed on the patch
of the level that this cell reads. Cells outside the level are zero before each convolution, as its
padding has them.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ..dims import BATCH, CLASSES
from ..gradient.reverse import reverse
from ..graph_inputs import tensor_of
from ..layers import Network
from ..recorder import Recorder
from ..tensors import Tensor, unsqueeze
from .dense_head import DenseHead, Level

_FLOATS = {ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE}


def record_patch_gradients(
    recorder: Recorder,
    network: Network,
    head: DenseHead,
    end: ir.Value,
    seed: Tensor,
    candidate: Tensor,
) -> tuple[list[Tensor], tuple[str, ...]]:
    """Record the gradients at each level, [N, k, K, h, w], zero outside a candidate's patch.

    Args:
        recorder: of the graph.
        network: the detector.
        head: of the detector, in parts.
        end: what is explained.
        seed: d score / d end, with N k for N.
        candidate: of each detection, int64 [N, k].
    """
    shapes = network.plain.shapes
    ends = [value for level in head.levels for value in level.ends]
    of_ends, rules = reverse(head.tail, recorder, shapes, end, seed, ends, CLASSES)
    by_end = dict(zip(ends, of_ends, strict=True))
    rows, columns = (
        recorder.op(
            "Gather",
            [recorder.constant(head.cells[:, axis]), candidate],
            candidate.shape,
            ir.DataType.INT64,
            axis=0,
        )
        for axis in (1, 2)
    )
    gradients, used = [], set(rules)
    for index, level in enumerate(head.levels):
        with recorder.part(f"gradient/level_{index}"):
            gradient, further = _gradient_of_level(recorder, network, level, by_end, rows, columns)
        gradients.append(gradient)
        used.update(further)
    return gradients, tuple(sorted(used))


def _gradient_of_level(
    recorder: Recorder,
    network: Network,
    level: Level,
    by_end: dict[ir.Value, Tensor],
    rows: Tensor,
    columns: Tensor,
) -> tuple[Tensor, list[str]]:
    shapes, radius = network.plain.shapes, level.radius
    side = 2 * radius + 1
    channels, height, width = level.layer.shape
    # Where the patch lies in the level; a candidate of another level has no gradient anyway.
    offsets = recorder.constant(np.arange(side) - radius)
    at_rows = rows[:, :, None] + offsets  # [N, k, side]
    at_columns = columns[:, :, None] + offsets
    features = tensor_of(level.layer.value, shapes, recorder).cast(ir.DataType.FLOAT)
    cells = features.transpose((0, 2, 3, 1)).reshape((BATCH, height * width, channels))
    xp = recorder.xp
    # Outside the level stands its nearest cell until the mask: the logarithm of 0 would not do.
    near_rows = xp.minimum(xp.maximum(at_rows, 0), height - 1)
    near_columns = xp.minimum(xp.maximum(at_columns, 0), width - 1)
    index = near_rows[:, :, :, None] * width + near_columns[:, :, None, :]
    flat = index.reshape((BATCH, CLASSES * side * side, 1))
    picked = recorder.op(
        "GatherND", [cells, flat], (BATCH, CLASSES * side * side, channels), batch_dims=1
    )
    patch = picked.reshape((BATCH * CLASSES, side, side, channels)).transpose((0, 3, 1, 2))
    is_row = ((at_rows >= 0) & (at_rows < height)).cast(ir.DataType.FLOAT)
    is_column = ((at_columns >= 0) & (at_columns < width)).cast(ir.DataType.FLOAT)
    mask = (is_row[:, :, :, None] * is_column[:, :, None, :]).reshape(
        (BATCH * CLASSES, 1, side, side)
    )
    # One patch a detection: in this part of the graph the batch is N k.
    inner = recorder.for_batch(recorder.length(BATCH * CLASSES))
    start = Tensor(inner, patch.value, (BATCH, channels, side, side), ir.DataType.FLOAT)
    copies, nodes = _copy_head(
        inner, network, level, start, Tensor(inner, mask.value, (BATCH, 1, side, side), mask.dtype)
    )
    middle = np.zeros((1, 1, side, side), np.float32)
    middle[..., radius, radius] = 1
    total, used = None, []
    for value in level.ends:
        copy = copies[value]
        # Of all cells the candidate's own one alone has a gradient there.
        own = by_end[value].sum((2, 3), keepdims=True) * recorder.constant(middle)
        seed = Tensor(inner, own.value, copy.shape, own.dtype)
        (gradient,), rules = reverse(nodes, inner, shapes, copy.value, seed, [start.value], 1)
        total = gradient if total is None else total + gradient
        used += rules
    assert total is not None
    of_patch = Tensor(recorder, total.value, (BATCH * CLASSES, channels, side, side), total.dtype)
    whole = of_patch.reshape((BATCH, CLASSES, channels, side, side))
    down = (at_rows[:, :, None] == xp.arange(height)[:, None]).cast(ir.DataType.FLOAT)
    along = (at_columns[:, :, :, None] == xp.arange(width)).cast(ir.DataType.FLOAT)
    return unsqueeze(down, [2]) @ whole @ unsqueeze(along, [2]), used


def _copy_head(
    inner: Recorder, network: Network, level: Level, start: Tensor, mask: Tensor
) -> tuple[dict[ir.Value, Tensor], list[ir.Node]]:
    """Record a level's head on patches; returns the copies of its tensors, and the nodes."""
    shapes = network.plain.shapes
    copies: dict[ir.Value, Tensor] = {level.layer.value: start}
    nodes: list[ir.Node] = []
    side = start.shape[2]
    for tensor in (start, mask):
        shapes.dims[tensor.value], shapes.dtypes[tensor.value] = tensor.shape, tensor.dtype
    for node in level.nodes:
        inputs = []
        for value in node.inputs:
            copy = None if value is None else copies.get(value)
            if copy is not None and node.op_type == "Conv":
                copy = copy * mask
                shapes.dims[copy.value], shapes.dtypes[copy.value] = copy.shape, copy.dtype
                made = copy.value.producer()
                assert made is not None
                nodes.append(made)
            inputs.append(value if copy is None else copy.value)
        outputs = []
        for value in node.outputs:
            dtype = ir.DataType.FLOAT if shapes.dtypes[value] in _FLOATS else shapes.dtypes[value]
            name = inner.name_for(node.op_type)
            new = ir.Value(name=name, type=ir.TensorType(dtype))
            dims = (BATCH, shapes.dims[value][1], side, side)
            copies[value] = Tensor(inner, new, dims, dtype)
            shapes.dims[new], shapes.dtypes[new] = dims, dtype
            outputs.append(new)
        made = ir.Node(
            node.domain,
            node.op_type,
            inputs,
            list(node.attributes.values()),
            outputs=outputs,
            name=inner.name_for(node.op_type),
        )
        inner.graph.append(made)
        nodes.append(made)
    return copies, nodes
