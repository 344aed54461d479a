"""YOLO 5 and 7: [N, A, 5 + C], centre, width and height in pixels, objectness, class scores."""

from __future__ import annotations

from ...runtime.input_format import Letterbox
from ..plain_model import PlainModel
from ..tensors import Tensor
from .box_numbers import check_objectness, prove_boxes, read_boxes
from .format import Candidates, Format
from .grids import single_output
from .reading import Reading


def refuse_rows(plain: PlainModel) -> str | None:
    """Say why the first output is not one row of 5 + C numbers a candidate."""
    dims = single_output(plain)
    if dims is None or int(dims[2]) < 6:  # type: ignore[arg-type]
        return "its first output is not [N, A, 5 + C]"
    return None


def score_objects(reading: Reading, output: Tensor) -> tuple[Tensor, Tensor]:
    """Record objectness times class score, [N, A, C], and what gradients are taken of.

    That is the logarithm of the score, whose map is the same up to its scale: where both factors
    are rounded to 1 the score itself has no gradient.
    """
    count = output.shape[2]
    assert isinstance(count, int)
    objectness, of_object, _ = reading.activate(reading.take(output, 2, 4, 5), "sigmoid")
    classes, of_class, _ = reading.activate(reading.take(output, 2, 5, count), "sigmoid")
    scores = objectness * classes
    if of_object.value is objectness.value or of_class.value is classes.value:
        return scores, scores
    logarithms = [
        reading.recorder.op("Softplus", [-logit], logit.shape) for logit in (of_object, of_class)
    ]
    return scores, -(logarithms[0] + logarithms[1])


def _read(reading: Reading) -> Candidates:
    output = reading.output(reading.plain.graph.outputs[0])
    scores, explained = score_objects(reading, output)
    check_objectness(reading, 2, has_objectness=True)
    numbers = reading.take(output, 2, 0, 4)
    boxes, notes = read_boxes(reading, numbers, prove_boxes(reading, numbers), "yolov5")
    return Candidates(scores, boxes, explained, notes=notes)


FORMAT = Format("yolov5", 0.45, refuse_rows, _read, Letterbox())
