"""Find what a recorded model's softmax or sigmoid takes: the logits that training needs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import fx

from ..runtime.errors import ExportError

aten = torch.ops.aten

_ACTIVATIONS: Mapping[str, set[Any]] = {
    "Softmax": {aten.softmax.int, aten._softmax.default},
    "LogSoftmax": {aten.log_softmax.int, aten._log_softmax.default},
    "Sigmoid": {aten.sigmoid.default},
}
# Operations that keep each number, in the order of the classes.
_AFTER_ACTIVATION = {
    aten.view.default,
    aten._unsafe_view.default,
    aten.reshape.default,
    aten.flatten.using_ints,
    aten.squeeze.dim,
    aten.squeeze.dims,
    aten.squeeze.default,
    aten.unsqueeze.default,
    aten.clone.default,
    aten.alias.default,
    aten._to_copy.default,
}


def find_logits(output: fx.Node, activation: str | None) -> fx.Node:
    """Find the node that holds the logits of a graph's output.

    Args:
        output: the node with class scores.
        activation: the operator between both, see ``Explained``; None: the output is logits.

    Raises:
        ExportError: PyTorch's graph has another operation there.
    """
    if activation is None:
        return output
    node, end = output, _ACTIVATIONS[activation]
    while node.target in _AFTER_ACTIVATION and node.all_input_nodes:
        node = node.all_input_nodes[0]
    if node.target not in end and activation == "LogSoftmax" and node.target is aten.log.default:
        node, end = node.all_input_nodes[0], _ACTIVATIONS["Softmax"]
    if node.target not in end:
        raise ExportError(
            f"the model ends in {activation}, which PyTorch records as {node.target}: return what "
            "goes into it instead"
        )
    return node.all_input_nodes[0]
