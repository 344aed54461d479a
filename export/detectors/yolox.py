"""YOLOX: [N, A, 5 + C] as YOLO 5 has it, with boxes as offsets in cells unless they are decoded."""

from __future__ import annotations

from ...runtime.errors import ExportError
from ...runtime.input_format import Letterbox
from ..plain_model import PlainModel
from ..tensors import Tensor, concat
from .box_numbers import check_objectness, prove_boxes, read_boxes, to_corners
from .format import Candidates, Format
from .grids import find_strides, place_cells
from .reading import Reading
from .yolov5 import refuse_rows, score_objects


def _read(reading: Reading) -> Candidates:
    plain = reading.plain
    output = reading.output(plain.graph.outputs[0])
    boxes = reading.take(output, 2, 0, 4)
    scores, explained = score_objects(reading, output)
    check_objectness(reading, 2, has_objectness=True)
    numbers = prove_boxes(reading, boxes)
    # Widths and heights are exponentials of what the network predicts, once they are decoded.
    is_decoded = reading.comes_from(reading.take(output, 2, 2, 4), "Exp")
    if numbers is not None:
        is_decoded = numbers.unit is not None
    notes: tuple[str, ...] = ()
    if is_decoded:
        boxes, notes = read_boxes(reading, boxes, numbers, "yolox")
    else:
        boxes = _decode(plain, reading, boxes)
    return Candidates(scores, boxes, explained, notes=notes)


def _decode(plain: PlainModel, reading: Reading, boxes: Tensor) -> Tensor:
    """Record corners of boxes as offsets in cells and logarithms of sides, [N, A, 4]."""
    candidates = boxes.shape[1]
    assert isinstance(candidates, int)
    strides = find_strides(plain.size, candidates, 1)
    if strides is None:
        raise ExportError(
            f"{candidates} candidates are not those of strides 8, 16, 32 (and 64) at "
            f"{plain.size[0]} x {plain.size[1]} pixels: export YOLOX with decoded boxes"
        )
    places, steps = (reading.recorder.constant(a[None]) for a in place_cells(plain.size, strides))
    centre = (boxes[..., 0:2] + places) * steps
    return to_corners(concat([centre, reading.recorder.xp.exp(boxes[..., 2:4]) * steps], 2))


FORMAT = Format(
    "yolox", 0.45, refuse_rows, _read, Letterbox(anchor="top-left"), color="BGR", std=1 / 255
)
