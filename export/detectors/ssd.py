"""SSD, RetinaNet, FCOS and their kin: class scores [N, A, C] and boxes [N, A, 4] as corners.

Boxes are decoded, in pixels or as shares of the image; which of the two, the numbers tell.
"""

from __future__ import annotations

import numpy as np

from ...runtime.errors import ExportError
from .detr import count_background
from .format import Candidates, Format
from .pairs import find_pair, refuse_pair
from .reading import Reading

_LARGEST_SHARE = 2.0  # of the image that a box in [0, 1] may reach


def _read(reading: Reading) -> Candidates:
    scores_value, boxes_value = find_pair(reading.plain)
    sample = reading.sample(boxes_value)
    if (sample[..., 2:] < sample[..., :2]).mean() > 0.01:
        raise ExportError(
            f"the output '{boxes_value.name}' holds no corners of boxes (left, top, right, bottom):"
            " a right edge is left of its left edge. Boxes as offsets from anchors must be decoded "
            "in the graph: export the network with that step, up to suppression"
        )
    boxes = reading.output(boxes_value)
    if np.abs(sample).max() <= _LARGEST_SHARE:
        height, width = reading.plain.size
        sides = np.array([[[width, height, width, height]]], np.float32)
        boxes = boxes * reading.recorder.constant(sides)
    raw = reading.output(scores_value)
    scores, explained, used = reading.activate(raw, count_background(reading.labels, raw.shape[2]))
    if used == "sigmoid":
        return Candidates(scores, boxes, explained, explained.value is not scores.value)
    scores, notes = reading.drop_background(scores, is_first=True)
    return Candidates(scores, boxes, scores, notes=notes)


FORMAT = Format("ssd", 0.5, refuse_pair, _read)
