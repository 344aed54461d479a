"""YOLOX: [N, A, 5 + C] as YOLO 5 has it, with boxes as offsets in cells unless they are decoded."""

from __future__ import annotations

from ...runtime.errors import ExportError
from ...runtime.input_format import Letterbox
from ..tensors import concat
from .format import Candidates, Format
from .grids import find_strides, place_cells
from .reading import Reading, to_corners
from .yolov5 import refuse_rows, score_objects


def _read(reading: Reading) -> Candidates:
    plain = reading.plain
    output = reading.output(plain.graph.outputs[0])
    candidates = output.shape[1]
    assert isinstance(candidates, int)
    boxes = reading.take(output, 2, 0, 4)
    # Widths and heights are exponentials of what the network predicts, once they are decoded.
    if not reading.comes_from(reading.take(output, 2, 2, 4), "Exp"):
        strides = find_strides(plain.size, candidates, 1)
        if strides is None:
            raise ExportError(
                f"{candidates} candidates are not those of strides 8, 16, 32 (and 64) at "
                f"{plain.size[0]} x {plain.size[1]} pixels: export YOLOX with decoded boxes"
            )
        places, steps = (
            reading.recorder.constant(a[None]) for a in place_cells(plain.size, strides)
        )
        centre = (boxes[..., 0:2] + places) * steps
        boxes = concat([centre, reading.recorder.xp.exp(boxes[..., 2:4]) * steps], 2)
    scores, explained = score_objects(reading, output)
    return Candidates(scores, to_corners(boxes), explained)


FORMAT = Format(
    "yolox", 0.45, refuse_rows, _read, Letterbox(anchor="top-left"), color="BGR", std=1 / 255
)
