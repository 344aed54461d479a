"""YOLO from version 8 on: [N, 4 + C, A], centre, width and height in pixels, then class scores."""

from __future__ import annotations

from ...runtime.input_format import Letterbox
from ..plain_model import PlainModel
from .format import Candidates, Format
from .grids import single_output
from .reading import Reading, to_corners


def _refuse(plain: PlainModel) -> str | None:
    dims = single_output(plain)
    if dims is None or not 5 <= int(dims[1]) < int(dims[2]):  # type: ignore[arg-type]
        return "its first output is not [N, 4 + C, A]"
    return None


def _read(reading: Reading) -> Candidates:
    output = reading.output(reading.plain.graph.outputs[0])
    count = output.shape[1]
    assert isinstance(count, int)
    boxes = reading.take(output, 1, 0, 4).transpose((0, 2, 1))
    scores, logits, _ = reading.activate(
        reading.take(output, 1, 4, count).transpose((0, 2, 1)), "sigmoid"
    )
    return Candidates(scores, to_corners(boxes), logits, logits.value is not scores.value)


FORMAT = Format("yolov8", 0.7, _refuse, _read, Letterbox())
