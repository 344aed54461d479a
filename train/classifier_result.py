"""Keep the result of a classifier's training."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class ClassifierResult:
    """The trained classifier and its accuracy.

    Attributes:
        folder: a model for ``whycam export`` and ``whycam train aft``.
        labels: its classes, the data's labels in order.
        accuracy: on the images held out.
        standard_error: of that.
        trained_on, held_out: images.
        unreadable: images left out, and why.
    """

    folder: Path
    labels: tuple[str, ...]
    accuracy: float
    standard_error: float
    trained_on: int
    held_out: int
    unreadable: dict[str, str]
