"""YOLO 10 and 26, end to end: [N, A, 6], corners in pixels, score, class, unsuppressed."""

from __future__ import annotations

import onnx_ir as ir

from ...runtime.errors import ExportError
from ...runtime.input_format import Letterbox
from ..plain_model import PlainModel
from .format import Candidates, Format
from .grids import single_output
from .reading import Reading


def _refuse(plain: PlainModel) -> str | None:
    dims = single_output(plain)
    return None if dims is not None and dims[2] == 6 else "its first output is not [N, A, 6]"


def _read(reading: Reading) -> Candidates:
    if not reading.labels:
        raise ExportError(
            "the file gives each box one class by its number, and not how many there are: add "
            "--labels"
        )
    output = reading.output(reading.plain.graph.outputs[0])
    boxes, score = reading.take(output, 2, 0, 4), reading.take(output, 2, 4, 5)
    index = reading.take(output, 2, 5, 6).cast(ir.DataType.INT64)
    every = reading.recorder.xp.arange(len(reading.labels))
    scores = score * (index == every).cast(ir.DataType.FLOAT)
    return Candidates(scores, boxes, scores)


FORMAT = Format("yolov10", None, _refuse, _read, Letterbox())
