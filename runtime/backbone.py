"""Find the nodes of an explaining graph that belong to its backbone.

The backbone leads from the image to the target layer; a graph with a sweep runs copies of it on
the masked images. Node names tell: what export added is called ``whycam/...``, a copy
``whycam/sweep/<number>/<the node's own name>``.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from .errors import ExportError

if TYPE_CHECKING:
    import onnx

_COPY = re.compile(r"whycam/sweep/(\d+)/(.+)", re.DOTALL)


def backbone_runs(graph: onnx.GraphProto, target_tensor: str = "activations") -> list[list[int]]:
    """List the nodes of each run of the backbone, from its first layer with weights on.

    What stands before that, such as preprocessing, is not among them: pixels need float32.

    Args:
        graph: of a file made by ``whycam export``.
        target_tensor: where the backbone ends, see ``Manifest``.

    Returns:
        Indices into ``graph.node``, in order; the run that reads the image itself is first.

    Raises:
        ExportError: there is no convolution or linear layer before ``target_tensor``.
    """
    first = _first_run(graph, target_tensor)
    if not first:
        raise ExportError(
            "the graph has no convolution or linear layer between the image and its target layer "
            f"(the tensor '{target_tensor}'), so there is nothing to convert"
        )
    names = {graph.node[index].name for index in first}
    copies: dict[int, list[int]] = {}
    for index, node in enumerate(graph.node):
        match = _COPY.fullmatch(node.name)
        if match is not None and match[2] in names:
            copies.setdefault(int(match[1]), []).append(index)
    return [first, *(copies[number] for number in sorted(copies))]


def _first_run(graph: onnx.GraphProto, target_tensor: str) -> list[int]:
    weights = {tensor.name for tensor in graph.initializer}
    needed = {target_tensor}
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
        is_linear = node.op_type in ("Gemm", "MatMul") and weights.intersection(node.input)
        if node.op_type == "Conv" or is_linear or reached.intersection(node.input):
            found.append(index)
            reached.update(node.output)
    return found
