"""Find the nodes of an explaining graph that belong to its backbone.

The backbone leads from the image to ``activations``; a graph with a sweep runs copies of it on the
masked images. Node names tell: what export added is called ``whycam/...``, a copy
``whycam/sweep/<number>/<the node's own name>``.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from .errors import ExportError

if TYPE_CHECKING:
    import onnx

_COPY = re.compile(r"whycam/sweep/(\d+)/(.+)", re.DOTALL)


def backbone_runs(graph: onnx.GraphProto, activations: str = "activations") -> list[list[int]]:
    """List the nodes of each run of the backbone, from its first convolution on.

    What stands before that, such as preprocessing, is not among them: pixels need float32.

    Args:
        graph: of a file made by ``whycam export``.
        activations: what the graph calls the output of that name.

    Returns:
        Indices into ``graph.node``, in order; the run that makes ``activations`` is first.

    Raises:
        ExportError: there is no convolution before ``activations``.
    """
    first = _first_run(graph, activations)
    if not first:
        raise ExportError("the graph has no convolution before its 'activations': export it again")
    names = {graph.node[index].name for index in first}
    copies: dict[int, list[int]] = {}
    for index, node in enumerate(graph.node):
        match = _COPY.fullmatch(node.name)
        if match is not None and match[2] in names:
            copies.setdefault(int(match[1]), []).append(index)
    return [first, *(copies[number] for number in sorted(copies))]


def _first_run(graph: onnx.GraphProto, activations: str) -> list[int]:
    needed = {activations}
    upstream = []
    for index in range(len(graph.node) - 1, -1, -1):
        if needed.intersection(graph.node[index].output):
            upstream.append(index)
            needed.update(graph.node[index].input)
    reached: set[str] = set()
    found = []
    for index in reversed(upstream):
        node = graph.node[index]
        if node.name.startswith("whycam/"):
            continue
        if node.op_type == "Conv" or reached.intersection(node.input):
            found.append(index)
            reached.update(node.output)
    return found
