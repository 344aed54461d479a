"""Which operations of an explaining graph are its trunk, each time that it runs.

The trunk leads from the image to ``activations``; a graph with a sweep runs it again, through the
same weights, on the masked images.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from ..runtime.errors import ExportError

if TYPE_CHECKING:
    import onnx

_LAYER = "Conv"


def trunk_runs(graph: onnx.GraphProto) -> list[list[int]]:
    """The operations of each run of the trunk, from its first convolution on.

    What stands before that, such as preprocessing, is not among them: pixels need float32.

    Returns:
        Indices into ``graph.node``, in order; the run that makes ``activations`` is first.

    Raises:
        ExportError: there is no convolution before ``activations``, or a later run of the trunk
            is not the first one's twin.
    """
    weights = {each.name for each in graph.initializer}
    first = _first_run(graph, weights)
    if not first:
        raise ExportError("the graph has no convolution before its 'activations': export it again")
    stem = graph.node[first[0]]
    taken = set(first)
    runs = [first]
    for index, node in enumerate(graph.node):
        if index not in taken and _is_layer(node, weights) and node.input[1] == stem.input[1]:
            run = list(_twins(graph, weights, first, index, taken))
            taken.update(run)
            runs.append(run)
    return runs


def _is_layer(node: onnx.NodeProto, weights: set[str]) -> bool:
    return node.op_type == _LAYER and node.input[1] in weights


def _first_run(graph: onnx.GraphProto, weights: set[str]) -> list[int]:
    needed = {"activations"}
    upstream = []
    for index in range(len(graph.node) - 1, -1, -1):
        if needed.intersection(graph.node[index].output):
            upstream.append(index)
            needed.update(graph.node[index].input)
    reached: set[str] = set()
    found = []
    for index in reversed(upstream):
        node = graph.node[index]
        if _is_layer(node, weights) or reached.intersection(node.input):
            found.append(index)
            reached.update(node.output)
    return found


def _twins(
    graph: onnx.GraphProto, weights: set[str], first: Sequence[int], stem: int, taken: set[int]
) -> Iterator[int]:
    """The same operations in the run that begins with ``stem``."""
    readers: dict[str, list[int]] = {}
    for index, node in enumerate(graph.node):
        for name in set(node.input):
            readers.setdefault(name, []).append(index)
    # Where each tensor of the first run has its twin.
    twin = {graph.node[first[0]].input[0]: graph.node[stem].input[0]}
    used = set(taken)
    for index in first:
        node = graph.node[index]
        known = next((name for name in node.input if name in twin), None)
        # A second stem reads a tensor that has not been seen: its weights say which it is.
        near = readers.get(node.input[1] if known is None else twin[known], [])
        found = next(
            (
                other
                for other in near
                if other not in used and _alike(graph, node, graph.node[other], twin, weights)
            ),
            None,
        )
        if found is None:
            raise ExportError(
                f"the graph's sweep does not repeat its trunk: '{node.name}' ({node.op_type}) has "
                "no twin there. Export the model again with this whycam"
            )
        used.add(found)
        read = zip(node.input, graph.node[found].input, strict=True)
        twin.update((name, other) for name, other in read if name not in weights)
        twin.update(zip(node.output, graph.node[found].output, strict=True))
        yield found


def _alike(
    graph: onnx.GraphProto,
    node: onnx.NodeProto,
    other: onnx.NodeProto,
    twin: dict[str, str],
    weights: set[str],
) -> bool:
    """Whether two operations do the same to tensors that are twins."""
    if (node.op_type, len(node.input), len(node.output)) != (
        other.op_type,
        len(other.input),
        len(other.output),
    ):
        return False
    for name, its in zip(node.input, other.input, strict=True):
        if name in twin and twin[name] != its:
            return False
        if name in weights and its != name and (its not in weights or not _same(graph, name, its)):
            return False
    mine, others = (
        {a.name: a.SerializeToString() for a in each.attribute} for each in (node, other)
    )
    return mine == others


def _same(graph: onnx.GraphProto, name: str, other: str) -> bool:
    """Whether two stored tensors are equal."""
    import numpy as np
    from onnx import numpy_helper

    tensors = {each.name: each for each in graph.initializer if each.name in (name, other)}
    values = [numpy_helper.to_array(tensors[each]) for each in (name, other)]
    return np.array_equal(values[0], values[1])
