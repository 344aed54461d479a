"""DETR and its kin: queries with class logits [N, A, C] and boxes [N, A, 4] in [0, 1].

Boxes are centre, width and height as shares of the image; each object is found once.
"""

from __future__ import annotations

import numpy as np

from ...runtime.background import is_background
from ...runtime.errors import ExportError
from ...runtime.manifest_parts import Activation
from .box_numbers import to_corners
from .format import Candidates, Format
from .pairs import find_pair, refuse_pair
from .query_boxes import are_corners
from .reading import Reading

_NOTES: dict[bool | None, tuple[str, ...]] = {
    True: ("boxes are corners in this file, as what their edges depend on proves",),
    False: (),
    None: (
        "nothing in the graph proves that boxes are centre, width and height, as they usually are: "
        "look at the first ones that are drawn",
    ),
}


def _read(reading: Reading) -> Candidates:
    scores_value, boxes_value = find_pair(reading.plain)
    largest = float(np.abs(reading.sample(boxes_value)).max())
    if largest > 2:
        raise ExportError(
            f"the boxes of this file reach {largest:.0f}, and those of the format detr are shares "
            "of the image, from 0 to 1: boxes as corners in pixels are of the format ssd"
        )
    height, width = reading.plain.size
    sides = np.array([[[width, height, width, height]]], np.float32)
    numbers = reading.output(boxes_value)
    is_corners = are_corners(reading.plain, boxes_value)
    boxes = (numbers if is_corners else to_corners(numbers)) * reading.recorder.constant(sides)
    told = _NOTES[is_corners]
    raw = reading.take_all(scores_value)
    kind = count_background(reading.labels, raw.shape[2])
    scores, explained, used = reading.activate(raw, kind)
    if used == "sigmoid":
        return Candidates(scores, boxes, explained, explained.value is not scores.value, told)
    scores, notes = reading.drop_background(scores, is_first=False)
    return Candidates(scores, boxes, scores, notes=(*notes, *told))


def count_background(labels: tuple[str, ...], count: object) -> Activation | None:
    """Tell from the number of class names whether one more is scored, the background."""
    names = [label for label in labels if not is_background(label)]
    if not names:
        return None
    return "sigmoid" if len(names) == count else "softmax" if len(names) + 1 == count else None


FORMAT = Format("detr", None, refuse_pair, _read)
