"""Count how many detections are annotated, and how many annotated boxes are detected."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from ..runtime.boxes import overlaps
from ..runtime.detect import SAME_OBJECT


def count_matches(
    boxes: NDArray[np.float32],
    classes: NDArray[np.int64],
    scores: NDArray[np.float32],
    annotated_boxes: NDArray[np.float32],
    annotated_classes: NDArray[np.int64],
) -> list[list[int]]:
    """Match the detections of an image with its annotated boxes, class by class.

    The detection with the highest score chooses first, as in COCO's evaluation: it takes the box
    that it overlaps most among those that are not taken. A second detection of the same object
    matches nothing.

    Args:
        boxes: float32 [R, 4], left, top, right, bottom in pixels of the image.
        classes: int64 [R].
        scores: float32 [R].
        annotated_boxes: float32 [B, 4].
        annotated_classes: int64 [B].

    Returns:
        For each class that either has: its index, and the numbers of matches, detections and
        annotated boxes.
    """
    counts = []
    for index in np.union1d(classes, annotated_classes):
        rows = np.flatnonzero(classes == index)
        rows = rows[np.argsort(-scores[rows], kind="stable")]
        shares = overlaps(boxes[rows], annotated_boxes[annotated_classes == index])
        matches = 0
        for share in shares if shares.shape[1] else ():
            best = int(share.argmax())
            if share[best] >= SAME_OBJECT:
                matches += 1
                shares[:, best] = -1
        counts.append([int(index), matches, len(rows), shares.shape[1]])
    return counts


class MatchTally:
    """Sums up the matches of images, class by class."""

    def __init__(self) -> None:
        self._counts: dict[int, list[int]] = {}

    def add(self, counts: Iterable[Sequence[int]]) -> None:
        """Add the counts of one image, as ``count_matches`` returns them."""
        for index, *numbers in counts:
            total = self._counts.setdefault(index, [0, 0, 0])
            for place, number in enumerate(numbers):
                total[place] += number

    def figures(self) -> tuple[float | None, float | None, int | None]:
        """Return precision, recall and the number of annotated boxes.

        Classes without an annotated box in any image do not count, for nobody looked for them.
        Precision is None without a detection, and all are None without an annotated box.
        """
        counts = [one for one in self._counts.values() if one[2]]
        if not counts:
            return None, None, None
        matches, detections, annotated = map(sum, zip(*counts, strict=True))
        return matches / detections if detections else None, matches / annotated, annotated
