"""Find the two outputs of detectors that return scores [N, A, C] and boxes [N, A, 4]."""

from __future__ import annotations

import onnx_ir as ir

from ...runtime.errors import ExportError
from ..plain_model import PlainModel

_BOXES = ("pred_boxes", "boxes", "bbox", "bboxes")
_SCORES = ("logits", "scores", "pred_logits", "cls_logits")


def refuse_pair(plain: PlainModel) -> str | None:
    """Say why no two outputs are scores and boxes."""
    try:
        find_pair(plain)
    except ExportError as error:
        return str(error)
    return None


def find_pair(plain: PlainModel) -> tuple[ir.Value, ir.Value]:
    """Find the outputs with class scores and with boxes, by shape; by name of several.

    Raises:
        ExportError: there are none, or several that their names do not tell apart.
    """
    dims = plain.shapes.dims
    every = [value for value in plain.graph.outputs if len(dims.get(value, ())) == 3]
    boxes = [value for value in every if dims[value][2] == 4]
    named = [value for value in boxes if value.name in _BOXES]
    if len(boxes) > 1 and len(named) == 1:
        boxes = named
    if len(boxes) != 1:
        raise ExportError("it has not one output of boxes [N, A, 4]")
    count = dims[boxes[0]][1]
    scores = [value for value in every if value is not boxes[0] and dims[value][1] == count]
    named = [value for value in scores if value.name in _SCORES]
    if len(scores) > 1 and len(named) == 1:
        scores = named
    if len(scores) != 1:
        raise ExportError(f"it has not one output of class scores [N, {count}, C] beside the boxes")
    return scores[0], boxes[0]
