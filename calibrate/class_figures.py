"""Figures of each class of a data set, and which classes are taken for which."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import msgspec

from .running_mean import RunningMean

# Figures of a class's maps: the name in a row, and the name in the result.
_OF_MAPS = {"increase": "increase", "drop": "drop", "rpi": "rpi", "threshold": "threshold"}


class ClassFigures(msgspec.Struct, frozen=True, kw_only=True):
    """Figures of the images that the data say are of one class.

    Attributes:
        index: of the class.
        images: how many there are.
        accuracy: share of them that the network takes for it.
        predicted: how many images the network takes for it.
        precision: share of those that are of it; None without any.
        probability: mean of the explained class's.
        increase, drop: average increase and drop (paper section 5.2) of the first method's maps.
        rpi: mean of the largest relative probability increase; None without TFT.
        threshold: mean of tau*, where a threshold improves; None without any.
    """

    index: int
    images: int
    accuracy: float
    predicted: int
    precision: float | None
    probability: float | None = None
    increase: float | None = None
    drop: float | None = None
    rpi: float | None = None
    threshold: float | None = None


class ClassTally:
    """Sums up the rows of ``evaluate`` for each class that the data name.

    Args:
        method, variant: of the maps that are measured.

    Attributes:
        confusion: how many images of a class are taken for a class, by (class, predicted).
    """

    def __init__(self, method: str, variant: str) -> None:
        self.confusion: Counter[tuple[int, int]] = Counter()
        self._key = method, variant
        self._means: dict[tuple[int, str], RunningMean] = {}

    def add(self, row: Mapping[str, Any]) -> None:
        """Add the row of one image; those without a known class do not count."""
        label = row.get("label")
        if label is None:
            return
        self.confusion[label, row["predicted"]] += 1
        for explained in row["explained"]:
            self._add(label, "probability", explained["probability"])
            for name, value in map_numbers(explained, *self._key).items():
                if value is not None:
                    self._add(label, name, value)

    def _add(self, label: int, name: str, value: float) -> None:
        self._means.setdefault((label, name), RunningMean()).add(float(value))

    def figures(self) -> list[ClassFigures]:
        """Return the figures so far, in the order of the classes."""
        images: Counter[int] = Counter()
        predicted: Counter[int] = Counter()
        for (label, taken_for), count in self.confusion.items():
            images[label] += count
            predicted[taken_for] += count
        return [self._of(label, images[label], predicted[label]) for label in sorted(images)]

    def _of(self, label: int, images: int, predicted: int) -> ClassFigures:
        right = self.confusion[label, label]
        means = {
            name: self._means[label, name].mean
            for name in ("probability", *_OF_MAPS)
            if (label, name) in self._means
        }
        return ClassFigures(
            index=label,
            images=images,
            accuracy=right / images,
            predicted=predicted,
            precision=right / predicted if predicted else None,
            **means,
        )


def map_numbers(explained: Mapping[str, Any], method: str, variant: str) -> dict[str, Any]:
    """Return increase, drop, rpi and threshold of one map; what was not measured is left out.

    Args:
        explained: an entry of a row's ``explained``.
        method, variant: of the map.
    """
    numbers = explained.get("methods", {}).get(method, {}).get(variant)
    if numbers is None:
        return {}
    found = {"increase": numbers["increase"], "drop": numbers["drop"]}
    if "rpi" in numbers:
        found["rpi"] = max(numbers["rpi"])
        found["threshold"] = numbers["threshold"] if numbers["improved"] else None
    return found
