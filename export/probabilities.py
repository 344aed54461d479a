"""Refuse class scores that are probabilities already, though the graph does not say so at its end.

A softmax that is written as exp, sum and quotient, reordered, averaged with another, or followed by
any other arithmetic would get a second softmax, and the file would state wrong probabilities.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ..runtime.errors import ExportError
from .data_flow import DataFlow
from .default_layer import has_weights
from .heads import PlaceScores
from .original_model import OriginalModel
from .output_meaning import HeadMeaning

# What activations consist of, and those that export recognises where nothing follows them.
_ACTIVATIONS = {"Softmax", "LogSoftmax", "Sigmoid", "HardSigmoid", "Exp", "Tanh", "Erf"}
_CONSTANT_SUM = 1e-3


def check_is_no_probability(
    flow: DataFlow,
    head: HeadMeaning,
    original: OriginalModel,
    images: NDArray[np.generic],
    places: PlaceScores | None = None,
) -> None:
    """Run the network on a few images and look at scores that were taken for logits.

    Args:
        flow: of the network.
        head: whose scores are taken for logits, as nobody stated the task.
        original: the network.
        images: as it takes them.
        places: of a segmentation network, whose scores are looked at place by place.

    Raises:
        ExportError: they sum to the same number for all images and have one sign; or they lie
            between 0 and 1 and an activation without learned weights behind it computes them.
    """
    if head.activation is not None:
        return
    outputs = dict(zip(original.names, original.run(images), strict=True))
    values = np.asarray(outputs[head.name], np.float64)
    if places is None:
        values = values.reshape(len(images), -1)
    elif places.value is head.output:
        values = values.transpose(places.order)
        values = np.moveaxis(values, 1, -1).reshape(-1, places.shape[0])
    else:  # numbers of classes
        return
    if not np.isfinite(values).all():
        return
    within = bool(values.min() >= 0 and values.max() <= 1 + 1e-6)
    activation = _find_activation(flow, head.output) if within else None
    if _has_constant_sum(values):
        why = "they sum to the same number for every image"
    elif activation is not None:
        why = f"they lie between 0 and 1, and an activation ({activation}) computes them"
    else:
        return
    raise ExportError(
        f"the output '{head.name}' holds probabilities already, but the graph does not end in "
        f"Softmax or Sigmoid: {why}. Name the logits with --head if they are an output, pass "
        f"--task none to explain the values as they are, or --task {head.task} if they are logits "
        "nevertheless"
    )


def _has_constant_sum(values: NDArray[np.float64]) -> bool:
    if values.shape[1] == 1 or values.min() < 0 < values.max():
        return False
    sums = values.sum(-1)
    if np.abs(sums - 1).max() < _CONSTANT_SUM:
        return True
    varies = np.ptp(values, axis=0).max()
    return bool(varies > 1e-6 * np.abs(values).max() and np.ptp(sums) < _CONSTANT_SUM * varies)


def _find_activation(flow: DataFlow, output: ir.Value) -> str | None:
    """Find an activation from which scores follow without learned weights."""
    pending, visited = [output], set()
    while pending:
        value = pending.pop()
        node = value.producer()
        if node is None or node in visited or value not in flow.on_path:
            continue
        visited.add(node)
        if node.op_type in _ACTIVATIONS:
            return f"'{node.name}', {node.op_type}"
        if not has_weights(flow, [node]):
            pending.extend(v for v in node.inputs if v is not None)
    return None
