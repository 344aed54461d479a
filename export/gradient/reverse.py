"""Differentiate the class scores in reverse mode: append nodes that compute the gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import onnx_ir as ir

from ...runtime.errors import ExportError
from ..dims import Dim, Size
from ..recorder import Recorder
from ..shapes import Shapes
from ..tensors import Tensor
from .rules import RULES
from .step import Step

_RESHAPING = {"Reshape", "Flatten", "Squeeze", "Unsqueeze"}
_ROUNDING = {"Cast", "QuantizeLinear"}
_FLOAT = ir.DataType.FLOAT
_FLOATS = {
    _FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE,
}  # fmt: skip


def find_path(
    starts: Sequence[ir.Value],
    end: ir.Value,
    nodes: Sequence[ir.Node],
    through_shapes: bool = False,
    carries: Callable[[ir.Value], bool] = lambda _: True,
) -> tuple[list[ir.Node], set[ir.Value]]:
    """Find the nodes on some path from any start to the end, in order, and the tensors there.

    Args:
        starts: where paths begin.
        end: where they end.
        nodes: of the graph, in an order in which they can run.
        through_shapes: whether reading a tensor's shape is a path, as it is when a part of a graph
            is copied; a gradient does not flow there.
        carries: tells which tensors a path may pass through.
    """
    reached = set(starts)
    computed: set[ir.Value] = set()
    for node in nodes:
        if not through_shapes and node.op_type in ("Shape", "Size"):
            continue
        if any(value in reached for value in node.inputs):
            outputs = [value for value in node.outputs if carries(value)]
            computed.update(outputs)
            reached.update(outputs)
    needed = {end}
    path = []
    for node in reversed(nodes):
        if any(value in needed for value in node.outputs):
            needed.update(value for value in node.inputs if value is not None)
            if any(value in computed for value in node.outputs):
                path.append(node)
    return path[::-1], reached & needed


def reverse(
    nodes: Sequence[ir.Node],
    recorder: Recorder,
    shapes: Shapes,
    end: ir.Value,
    seed: Tensor,
    tensors: Sequence[ir.Value],
    classes: Dim,
) -> tuple[list[Tensor], list[str]]:
    """Record the gradients of a score with respect to tensors of a graph.

    Args:
        nodes: the forward graph, in an order in which it can run.
        recorder: appends to that graph.
        shapes: of its tensors.
        end: the tensor at which differentiation begins, the logits.
        seed: d score / d end, with one row for each explained class of each image.
        tensors: those whose gradients are needed.
        classes: k, how many classes of each image are explained.

    Returns:
        The gradients, each of its tensor's shape with N k for N; and the operators differentiated.

    Raises:
        ExportError: an operator in between has no rule, or none for this case.
    """
    path, active = find_path(tensors, end, nodes, carries=lambda value: varies(value, shapes))
    blocks = _batch_blocks(nodes, shapes)
    prepared: dict[tuple[ir.Value, str], Tensor] = {}
    missing = [value.name for value in tensors if value not in active]
    if missing:
        raise ExportError(
            f"the class scores have no gradient with respect to '{missing[0]}': they do not depend "
            "on it, or only by comparisons or rounding, as in binarised or spiking networks. Name "
            "a later layer with --target-layer"
        )
    sums: dict[ir.Value, list[Tensor]] = {end: [seed]}
    used = []
    for node in reversed(path):
        grads = [_total(sums, value) for value in node.outputs]
        if all(gradient is None for gradient in grads):
            continue
        rule = RULES.get(node.op_type)
        outer = blocks.get(node.outputs[0], 1)
        step = Step(node, grads, recorder, shapes, active, classes, outer, prepared)
        if rule is None:
            raise step.refusal("whycam has no gradient rule for this operator")
        used.append(node.op_type)
        results = rule(step)
        for index, value in enumerate(node.inputs):
            if value is None or value not in active:
                continue
            gradient = results[index] if index < len(results) else None
            if gradient is not None:
                sums.setdefault(value, []).append(gradient)
            elif shapes.dtypes.get(value) in _FLOATS:
                raise step.refusal(
                    f"its input {index} depends on the image, for which there is no rule"
                )
    totals = []
    for value in tensors:
        total = _total(sums, value)
        if total is None:
            raise ExportError(f"no gradient reaches '{value.name}'")
        totals.append(total)
    return totals, sorted(set(used))


def varies(value: ir.Value, shapes: Shapes) -> bool:
    """Tell whether a tensor changes with a small change of the image.

    Comparisons, class numbers, positions and signs do not. What is rounded does for its rule, which
    refuses it or passes the gradient through.
    """
    kind = shapes.dtypes.get(value, _FLOAT)
    node = value.producer()
    if node is not None and node.op_type in _ROUNDING:
        return kind != ir.DataType.BOOL
    return kind in _FLOATS and (node is None or node.op_type != "Sign")


def _batch_blocks(nodes: Sequence[ir.Node], shapes: Shapes) -> dict[ir.Value, int]:
    """Count, for each tensor, the blocks of its batch axis that hold a row of every image each.

    [S, N, E] reshaped to [S N, E] has S such blocks, and its first rows belong to different images;
    [N, S, E] reshaped to [N S, E] has one. 0: the axis cannot be split into such blocks.
    """
    blocks: dict[ir.Value, int] = {}
    for node in nodes:
        source = next((value for value in node.inputs if _before_batch(value, shapes)), None)
        if source is None:
            continue
        count = blocks.get(source, 1)
        for value in node.outputs:
            blocks[value] = count
            after = _before_batch(value, shapes)
            if node.op_type in _RESHAPING and after is not None:
                before = _before_batch(source, shapes) or 1
                if isinstance(before, int) and isinstance(after, int):
                    whole, rest = divmod(count * before, after)
                    blocks[value] = 0 if rest else whole
                elif before != after:
                    blocks[value] = 0
    return blocks


def _before_batch(value: ir.Value | None, shapes: Shapes) -> Dim | None:
    """Count the elements of the axes before the batch axis; None without a batch."""
    count: Dim = 1
    for side in () if value is None else shapes.dims.get(value, ()):
        if isinstance(side, Size) and side.counts_images:
            return count
        count = count * side
    return None


def _total(sums: dict[ir.Value, list[Tensor]], value: ir.Value) -> Tensor | None:
    parts = sums.get(value)
    if not parts:
        return None
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    sums[value] = [total]
    return total
