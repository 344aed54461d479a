"""Compare the accuracy of two networks on the same images, of each class and of all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

import msgspec

from ..calibrate.running_mean import RunningMean


class ClassAccuracy(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Accuracy on the images of a class.

    Attributes:
        index: of the class; None for all images.
        images: how many.
        after: share that is classified right.
        after_error: its standard error.
        before, before_error: the same of the network before training, if it had these classes.
        change: accuracy after less accuracy before.
        change_error: its standard error, of the differences image by image.
    """

    index: int | None
    images: int
    after: float
    after_error: float
    before: float | None = None
    before_error: float | None = None
    change: float | None = None
    change_error: float | None = None


@dataclass(frozen=True)
class Prediction:
    """Predictions of one image whose class is known.

    Attributes:
        label: its class.
        after: the class predicted by the trained network.
        before: by the network before training; None: it had other classes.
    """

    label: int
    after: int
    before: int | None = None


def compare_accuracy(predictions: Iterable[Prediction]) -> list[ClassAccuracy]:
    """Compute accuracies of all images, then of each class that some image has."""
    whole, of_class = _Means(), dict[int, _Means]()
    for one in predictions:
        for means in (whole, of_class.setdefault(one.label, _Means())):
            means.add(one)
    if not whole.after.count:
        return []
    return [whole.figures(None), *(of_class[label].figures(label) for label in sorted(of_class))]


def count_confusion(predictions: Iterable[Prediction]) -> Counter[tuple[int, int]]:
    """Count by (class, class predicted after training) how many images there are."""
    return Counter((one.label, one.after) for one in predictions)


@dataclass
class _Means:
    before: RunningMean = field(default_factory=RunningMean)
    after: RunningMean = field(default_factory=RunningMean)
    change: RunningMean = field(default_factory=RunningMean)

    def add(self, one: Prediction) -> None:
        right = one.after == one.label
        self.after.add(right)
        if one.before is not None:
            self.before.add(one.before == one.label)
            self.change.add(float(right) - float(one.before == one.label))

    def figures(self, index: int | None) -> ClassAccuracy:
        figures = ClassAccuracy(
            index=index,
            images=self.after.count,
            after=self.after.mean,
            after_error=self.after.error,
        )
        if not self.before.count:
            return figures
        return msgspec.structs.replace(
            figures,
            before=self.before.mean,
            before_error=self.before.error,
            change=self.change.mean,
            change_error=self.change.error,
        )
