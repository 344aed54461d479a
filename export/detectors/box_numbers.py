"""Read the numbers of rows as boxes and scores, by what the graph proves of them."""

from __future__ import annotations

import numpy as np

from ...runtime.errors import ExportError
from ..tensors import Tensor, concat
from .reading import Reading
from .row_proof import BoxNumbers, Role, find_box_numbers, find_objectness, open_head_end

_CENTRE: tuple[Role, ...] = ("x", "y", "size", "size")
_CORNERS: tuple[Role, ...] = ("x", "y", "x", "y")
_NAMES = {"objectness": "objectness", "class": "first class"}
_UNPROVED = (
    "nothing in the graph proves that boxes are centre, width and height in pixels: look at the "
    "first ones that are drawn"
)


def prove_boxes(reading: Reading, boxes: Tensor) -> BoxNumbers | None:
    """Find what the four numbers of boxes [N, A, 4] are; None where the graph does not prove it.

    Raises:
        ExportError: they are proved to be no boxes.
    """
    end = open_head_end(reading.plain, boxes.value, 2)
    return None if end is None else find_box_numbers(end)


def read_boxes(
    reading: Reading, boxes: Tensor, numbers: BoxNumbers | None, form: str
) -> tuple[Tensor, tuple[str, ...]]:
    """Record left, top, right, bottom in pixels of boxes, [N, A, 4], and what to tell the user.

    Args:
        reading: the detector.
        boxes: their four numbers, decoded.
        numbers: what they are proved to be.
        form: the format, whose boxes are centre, width and height in pixels unless the graph proves
            another meaning.

    Raises:
        ExportError: the numbers are no boxes, or nothing proves what they are and the format is not
            stated.
    """
    if numbers is None:
        if reading.is_stated:
            return to_corners(boxes), (_UNPROVED,)
        raise ExportError(
            f"by its shapes the detector has the format {form}, but nothing in its graph proves "
            "that boxes are centre, width and height: if they are, add "
            f"--format {form}; corners must be exported as scores and boxes apart, for --format ssd"
        )
    return _read_proved(reading, boxes, numbers)


def _read_proved(
    reading: Reading, boxes: Tensor, numbers: BoxNumbers
) -> tuple[Tensor, tuple[str, ...]]:
    notes: list[str] = []
    roles = numbers.roles
    if roles[:2] == ("y", "x"):
        boxes = concat([boxes[..., at : at + 1] for at in (1, 0, 3, 2)], 2)
        roles = tuple(roles[at] for at in (1, 0, 3, 2))
        notes.append("the vertical place of a box comes first in this file")
    if roles not in (_CENTRE, _CORNERS):
        raise ExportError(
            "the first four numbers of this detector are no boxes: from cell to cell they are "
            f"proved to change as {', '.join(numbers.roles)}, and a box is x, y, size, size "
            "(centre, width, height) or x, y, x, y (corners). Export the network with decoded boxes"
        )
    if numbers.unit == "shares":
        height, width = reading.plain.size
        sides = np.array([[[width, height, width, height]]], np.float32)
        boxes = boxes * reading.recorder.constant(sides)
        notes.append("boxes are shares of the image in this file")
    if roles == _CORNERS:
        notes.append("boxes are corners in this file, as their numbers prove from cell to cell")
        return boxes, tuple(notes)
    return to_corners(boxes), tuple(notes)


def check_objectness(reading: Reading, axis: int, has_objectness: bool) -> None:
    """Refuse rows of which nothing says whether the fifth number is the objectness.

    Class names tell by their number, the graph by what it proves, and where it proves nothing the
    user by naming the format.

    Args:
        reading: the detector.
        axis: of the candidates' numbers.
        has_objectness: whether the fifth is the objectness in the format.

    Raises:
        ExportError: nothing says it, or the graph proves the contrary.
    """
    if reading.labels:
        return
    end = open_head_end(reading.plain, reading.plain.graph.outputs[0], axis)
    found = None if end is None else find_objectness(end)
    if found == ("objectness" if has_objectness else "class"):
        return
    if found is None and reading.is_stated:
        return
    said = (
        "nothing in the graph proves whether it is the objectness or the first class"
        if found is None
        else f"by the convolutions that it depends on it is the {_NAMES[found]}"
    )
    raise ExportError(
        f"the four numbers of a box are followed by a fifth, and {said}. Add --labels, whose "
        "number tells; or name the format: yolov5 and yolox have the objectness there, yolov8 the "
        "first class"
    )


def to_corners(boxes: Tensor) -> Tensor:
    """Record left, top, right, bottom of boxes as centre, width and height, [N, A, 4]."""
    centre, half = boxes[..., 0:2], boxes[..., 2:4] * 0.5
    return concat([centre - half, centre + half], boxes.ndim - 1)
