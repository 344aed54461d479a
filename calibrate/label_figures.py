"""Measure each label of a network with independent labels: is it found, and are its maps good."""

from __future__ import annotations

import csv
import io
from array import array
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import ArrayLike

from ..runtime.cam import Method
from .running_mean import RunningMean

CUTOFF = 0.5  # a label with a probability above this is predicted


class LabelMaps(msgspec.Struct, frozen=True, kw_only=True):
    """Results of one label's maps by one method in one variant, over images that have the label.

    Attributes:
        method, variant: of the maps.
        maps: number of maps.
        average_increase, average_drop: paper section 5.2, with standard errors.
    """

    method: Method
    variant: str
    maps: int
    average_increase: float
    average_increase_standard_error: float
    average_drop: float
    average_drop_standard_error: float


class LabelFigures(msgspec.Struct, frozen=True, kw_only=True):
    """Figures of one label.

    Attributes:
        label: its name, or its index where the network holds no names.
        index: of the class.
        images: number of images whose labels are known.
        present: number of these that have the label.
        average_precision: see ``average_precision``; None where no image has the label.
        accuracy: share of images where the label is present and its probability above 0.5, or
            neither.
        precision: share of images with a probability above 0.5 that have the label; None without
            any.
        recall: share of images with the label whose probability is above 0.5; None without any.
        maps: one entry for each method and variant; empty where none was made of this label.
    """

    label: str
    index: int
    images: int
    present: int
    average_precision: float | None
    accuracy: float
    precision: float | None
    recall: float | None
    maps: tuple[LabelMaps, ...] = ()


def average_precision(present: ArrayLike, scores: ArrayLike) -> float | None:
    """Compute the average precision of a label.

    The sum over cut-offs n, from the highest score to the lowest, of (R_n - R_(n-1)) P_n, with
    precision P and recall R of the images at or above the cut-off. Images with equal scores share a
    cut-off, so their order does not count. There is no interpolation.

    Args:
        present: whether each image has the label, [N].
        scores: its probability in each image, [N].

    Returns:
        The average precision, in (0, 1]; None where no image has the label.
    """
    truth, values = np.asarray(present, bool), np.asarray(scores)
    if not truth.any():
        return None
    order = np.argsort(-values, kind="stable")
    truth, values = truth[order], values[order]
    # The last image of each group of equal scores.
    ends = np.append(np.flatnonzero(np.diff(values)), len(values) - 1)
    hits = np.cumsum(truth)[ends]
    gained = np.diff(hits, prepend=0) / truth.sum()
    return float(np.sum(gained * hits / (ends + 1)))


class LabelTally:
    """Sums up the rows of ``evaluate`` for each label.

    Args:
        labels: the classes to measure.
    """

    def __init__(self, labels: Sequence[int]) -> None:
        self._labels = tuple(labels)
        self._present = {index: array("b") for index in labels}
        self._scores = {index: array("f") for index in labels}
        self._means: dict[int, dict[tuple[Method, str], tuple[RunningMean, RunningMean]]] = {
            index: {} for index in labels
        }

    def add(self, row: Mapping[str, Any]) -> None:
        """Add the row of one image, unless its labels are not known."""
        if not self._labels or row["present"] is None:
            return
        present = set(row["present"])
        for index, score in zip(self._labels, row["probabilities"], strict=True):
            self._present[index].append(index in present)
            self._scores[index].append(score)
        for explained in row["explained"]:
            if explained["target"] in present:
                self._add_maps(explained)

    def _add_maps(self, explained: Mapping[str, Any]) -> None:
        means = self._means[explained["target"]]
        for method, variants in explained["methods"].items():
            for variant, numbers in variants.items():
                increase, drop = means.setdefault((method, variant), (RunningMean(), RunningMean()))
                increase.add(float(numbers["increase"]))
                drop.add(float(numbers["drop"]))

    def figures(self, names: Sequence[str]) -> tuple[LabelFigures, ...]:
        """Return the figures of each label so far, in the order of the classes.

        Args:
            names: of all classes of the network, or empty.
        """
        return tuple(
            self._of_label(index, names[index] if names else str(index))
            for index in self._labels
            if self._present[index]
        )

    def _of_label(self, index: int, name: str) -> LabelFigures:
        present = np.array(self._present[index], bool)
        scores = np.array(self._scores[index], np.float32)
        predicted = scores > CUTOFF
        both = int((present & predicted).sum())
        return LabelFigures(
            label=name,
            index=index,
            images=len(present),
            present=int(present.sum()),
            average_precision=average_precision(present, scores),
            accuracy=float((present == predicted).mean()),
            precision=both / int(predicted.sum()) if predicted.any() else None,
            recall=both / int(present.sum()) if present.any() else None,
            maps=tuple(
                LabelMaps(
                    method=method,
                    variant=variant,
                    maps=increase.count,
                    average_increase=increase.mean,
                    average_increase_standard_error=increase.error,
                    average_drop=drop.mean,
                    average_drop_standard_error=drop.error,
                )
                for (method, variant), (increase, drop) in self._means[index].items()
            ),
        )


def format_labels_csv(labels: Sequence[LabelFigures]) -> str:
    """Format figures as CSV, a line for each label, method and variant; one for labels without."""
    text = io.StringIO()
    own = [name for name in LabelFigures.__struct_fields__ if name != "maps"]
    of_maps = LabelMaps.__struct_fields__
    writer = csv.DictWriter(text, [*own, *of_maps])
    writer.writeheader()
    for label in labels:
        figures = {name: getattr(label, name) for name in own}
        for maps in label.maps or (None,):
            writer.writerow(figures | (msgspec.structs.asdict(maps) if maps is not None else {}))
    return text.getvalue()
