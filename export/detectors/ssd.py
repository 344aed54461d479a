"""SSD, RetinaNet, FCOS and their kin: class scores [N, A, C] and boxes [N, A, 4] as corners.

Boxes are decoded, in pixels or as shares of the image, from left, top, right, bottom, or from
top, left, bottom, right as TensorFlow's detectors have them; the numbers tell.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...runtime.background import is_background
from ...runtime.errors import ExportError
from ..tensors import concat
from .detr import count_background
from .format import Candidates, Format
from .pairs import find_pair, refuse_pair
from .reading import Reading

_LARGEST_SHARE = 2.0  # of the image that a box in [0, 1] may reach
_CLEAR = 4  # times as many jumps back tell columns from rows


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
    order: tuple[str, ...] = ()
    if is_top_first(sample):
        boxes = concat([boxes[..., at : at + 1] for at in (1, 0, 3, 2)], 2)
        order = ("boxes were read as top, left, bottom, right: so their candidates are ordered",)
    if np.abs(sample).max() <= _LARGEST_SHARE:
        height, width = reading.plain.size
        sides = np.array([[[width, height, width, height]]], np.float32)
        boxes = boxes * reading.recorder.constant(sides)
    raw = reading.take_all(scores_value)
    # Sigmoids may score a background as well, as torchvision's RetinaNet: then names tell nothing.
    is_named = any(is_background(label) for label in reading.labels)
    kind = None if is_named else count_background(reading.labels, raw.shape[2])
    scores, explained, used = reading.activate(raw, kind)
    if used == "sigmoid":
        return Candidates(scores, boxes, explained, explained.value is not scores.value, order)
    scores, notes = reading.drop_background(scores, is_first=True)
    return Candidates(scores, boxes, scores, notes=(*notes, *order))


def is_top_first(sample: NDArray[Any]) -> bool:
    """Tell whether boxes begin with their top edge, by the order of the candidates.

    These go through the cells row by row: the column jumps back at the end of each row, the row
    only where a level ends. Candidates in no such order are taken to begin with the left edge.

    Args:
        sample: boxes of some images, [N, A, 4].
    """
    centres = (sample[..., :2] + sample[..., 2:]) / 2
    half = np.ptp(centres, axis=(0, 1)) / 2
    first, second = (np.diff(centres, axis=1) < -half).sum((0, 1))
    return bool(second >= _CLEAR * max(first, 1))


FORMAT = Format("ssd", 0.5, refuse_pair, _read)
