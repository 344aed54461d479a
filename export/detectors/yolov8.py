"""YOLO from version 8 on: [N, 4 + C, A], a box, in pixels or decoded as proved, then class scores.

Exports of other origin have the same numbers as rows, [N, A, 4 + C].
"""

from __future__ import annotations

from ...runtime.input_format import Letterbox
from ..plain_model import PlainModel
from .box_numbers import check_objectness, prove_boxes, read_boxes
from .format import Candidates, Format
from .grids import single_output
from .reading import Reading


def _refuse(plain: PlainModel) -> str | None:
    return None if _find_axis(plain) else "its first output is not [N, 4 + C, A]"


def _find_axis(plain: PlainModel) -> int | None:
    """Find the axis of the candidates' numbers, of which there are fewer than candidates."""
    dims = single_output(plain)
    if dims is None:
        return None
    rows, columns = dims[1:]
    assert isinstance(rows, int)
    assert isinstance(columns, int)
    return None if min(rows, columns) < 5 or rows == columns else 1 if rows < columns else 2


def _read(reading: Reading) -> Candidates:
    output = reading.output(reading.plain.graph.outputs[0])
    axis = _find_axis(reading.plain)
    assert axis is not None
    count = output.shape[axis]
    assert isinstance(count, int)
    numbers, scores = (
        part if axis == 2 else part.transpose((0, 2, 1))
        for part in (reading.take(output, axis, 0, 4), reading.take(output, axis, 4, count))
    )
    scores, logits, _ = reading.activate(scores, "sigmoid")
    check_objectness(reading, axis, has_objectness=False)
    boxes, notes = read_boxes(reading, numbers, prove_boxes(reading, numbers), "yolov8")
    return Candidates(scores, boxes, logits, logits.value is not scores.value, notes)


FORMAT = Format("yolov8", 0.7, _refuse, _read, Letterbox())
