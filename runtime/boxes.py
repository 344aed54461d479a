"""Compute with boxes: overlap, suppression of duplicates, the way back to the image."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from .preprocess import Placement

Boxes = NDArray[np.float32]  # [..., 4]: left, top, right, bottom


class Box(NamedTuple):
    """The edges of a box in pixels of an image, fractional, from its top left corner."""

    left: float
    top: float
    right: float
    bottom: float


def overlaps(boxes: Boxes, others: Boxes) -> NDArray[np.float32]:
    """Compute the intersection over union of each box with each other box.

    Args:
        boxes: float32 [R, 4].
        others: float32 [A, 4].

    Returns:
        float32 [R, A] in [0, 1]; 0 where both are empty.
    """
    low = np.maximum(boxes[:, None, :2], others[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    inside = np.prod(np.maximum(high - low, 0), axis=-1)
    union = areas(boxes)[:, None] + areas(others)[None] - inside
    return np.asarray(np.where(union > 0, inside / np.maximum(union, 1e-12), 0), np.float32)


def areas(boxes: Boxes) -> NDArray[np.float32]:
    """Compute the area of boxes [..., 4]; 0 where opposite edges are crossed."""
    return np.asarray(np.prod(np.maximum(boxes[..., 2:] - boxes[..., :2], 0), axis=-1))


def suppress(
    scores: NDArray[np.float32],
    boxes: Boxes,
    most: int,
    min_score: float,
    iou: float | None,
    classes: Collection[int] | None = None,
) -> NDArray[np.int64]:
    """Choose the detections of one image: the best candidate of each object.

    Candidates are taken by their score, the best first; one that overlaps a chosen one of its
    class by more than ``iou`` is suppressed.

    Args:
        scores: of the candidates, float32 [A, C].
        boxes: float32 [A, 4].
        most: how many are chosen, at most.
        min_score: a candidate needs more, in [0, 1].
        iou: in [0, 1]; None: nothing is suppressed, as the network gives each object once.
        classes: to choose from, where a candidate counts for each by its score of that class;
            None: all, where a candidate counts for its best class alone.

    Returns:
        int64 [n, 2]: candidate and class, the best first.
    """
    import cv2

    if classes is None:
        best = scores.argmax(1)
        candidates = np.flatnonzero(scores[np.arange(len(scores)), best] > min_score)
        pairs = np.stack([candidates, best[candidates]], 1)
    else:
        columns = np.array(sorted(classes), np.int64)
        rows, places = np.nonzero(scores[:, columns] > min_score)
        pairs = np.stack([rows, columns[places]], 1)
    values = scores[pairs[:, 0], pairs[:, 1]]
    order = np.argsort(-values, kind="stable")
    if iou is not None and len(order):
        chosen = boxes[pairs[:, 0]].astype(np.float64)
        sides = np.concatenate([chosen[:, :2], chosen[:, 2:] - chosen[:, :2]], 1)
        # A score of exactly ``min_score`` is left out above, and OpenCV's limit must not bind.
        kinds: Any = pairs[:, 1].astype(np.int32)
        kept = cv2.dnn.NMSBoxesBatched(cast(Any, sides), cast(Any, values), kinds, 0.0, iou)
        order = order[np.isin(order, kept)]
    return np.asarray(pairs[order[:most]], np.int64)


def to_image(boxes: Boxes, placement: Placement, size: tuple[int, int]) -> Boxes:
    """Carry boxes from the network's input to the image's own pixels, and clip them to it.

    Args:
        boxes: float32 [..., 4], in pixels of the input.
        placement: where the input lies in the image.
        size: (H, W) of the input.

    Returns:
        float32 [..., 4], in pixels of the image.
    """
    height, width = placement.image
    rows = placement.top + boxes[..., 1::2] * ((placement.bottom - placement.top) / size[0])
    columns = placement.left + boxes[..., 0::2] * ((placement.right - placement.left) / size[1])
    found = np.empty(boxes.shape, np.float32)
    found[..., 0::2], found[..., 1::2] = np.clip(columns, 0, width), np.clip(rows, 0, height)
    return found
