"""Let a graph that fixes how many images it takes, take any number of them."""

from __future__ import annotations

from collections.abc import Container, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from .propagation import propagate
from .simplify import set_shape_input


def free_batch(graph: ir.Graph, image: ir.Value, batch: int, inner: tuple[int, ...]) -> None:
    """Let a file with a fixed batch take any, by removing the batch from its reshapes.

    Class tokens that were written once for each image are repeated for as many as there are. Shapes
    that the file states of tensors inside it are of its batch, and engines would build on them:
    they are left out.
    """
    known = propagate(graph, {image: (batch, *inner)})
    depends = {image}
    for node in graph:
        if any(value in depends for value in node.inputs):
            depends.update(node.outputs)
            for index, row in _rows_beside(node, depends, known.constants, batch):
                _repeat_row(graph, image, node, index, row)
        if node.op_type != "Reshape" or node.inputs[0] not in depends:
            continue
        shape = known.shapes.get(node.outputs[0])
        if shape is None or node.inputs[1] not in known.constants:
            continue
        set_shape_input(graph, node, [-1, *shape[1:]])
    for node in graph:
        for value in node.outputs:
            value.shape = None


def _rows_beside(
    node: ir.Node,
    depends: Container[ir.Value],
    constants: Mapping[ir.Value, NDArray[Any]],
    batch: int,
) -> list[tuple[int, NDArray[Any]]]:
    """List the constants that a node joins to each image's elements, as class tokens."""
    if node.op_type != "Concat" or node.attributes["axis"].as_int() == 0:
        return []
    found = []
    for index, value in enumerate(node.inputs):
        if value is None or value in depends or value not in constants:
            continue
        rows = constants[value]
        # Of one axis are shapes, which say nothing of images.
        if rows.ndim > 1 and len(rows) == batch and (rows == rows[:1]).all():
            found.append((index, rows[:1]))
    return found


def _repeat_row(
    graph: ir.Graph, image: ir.Value, node: ir.Node, index: int, row: NDArray[Any]
) -> None:
    """Let a node read a constant once for each image."""
    prefix = f"{node.name}/row_{index}"
    ones = np.ones(row.ndim - 1, np.int64)
    constants = []
    for suffix, array in (("value", row), ("sides", ones)):
        name = f"{prefix}/{suffix}"
        value = ir.Value(
            name=name,
            shape=ir.Shape(array.shape),
            type=ir.TensorType(ir.DataType.from_numpy(array.dtype)),
            const_value=ir.tensor(np.ascontiguousarray(array), name=name),
        )
        graph.register_initializer(value)
        constants.append(value)
    first = [ir.AttrInt64("start", 0), ir.AttrInt64("end", 1)]
    count = ir.Node("", "Shape", [image], first, name=f"{prefix}/count", num_outputs=1)
    shape = ir.Node(
        "",
        "Concat",
        [count.outputs[0], constants[1]],
        [ir.AttrInt64("axis", 0)],
        name=f"{prefix}/shape",
        num_outputs=1,
    )
    repeated = ir.Node(
        "", "Expand", [constants[0], shape.outputs[0]], name=f"{prefix}/rows", num_outputs=1
    )
    for each in (count, shape, repeated):
        each.outputs[0].name = str(each.name)
    graph.insert_before(node, [count, shape, repeated])
    node.replace_input_with(index, repeated.outputs[0])
