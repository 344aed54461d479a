"""Read the losses of a run as a learning curve: each term over the steps."""

from __future__ import annotations

import csv
from pathlib import Path

import msgspec
import numpy as np

from ..runtime.errors import TrainingError
from .loop import LOSSES

MOST_POINTS = 120
_NOT_TERMS = 3  # step, epoch, learning rate


class LearningCurve(msgspec.Struct, frozen=True, kw_only=True):
    """Losses over the steps of a training.

    Attributes:
        steps: the last step of each point.
        terms: by name, the term's mean over the steps of each point, not multiplied by its weight;
            the first is the weighted sum of the others.
        epochs: the first step of each epoch but the first.
        span: how many steps a point is the mean of; the last point may have fewer.
    """

    steps: tuple[int, ...]
    terms: dict[str, tuple[float, ...]]
    epochs: tuple[int, ...]
    span: int


def read_learning_curve(folder: Path, most: int = MOST_POINTS) -> LearningCurve:
    """Read the losses that a run logged, as means over equally many steps.

    Args:
        folder: of the run.
        most: points of the curve.

    Raises:
        TrainingError: the log cannot be read.
    """
    path = folder / LOSSES
    try:
        with path.open(newline="") as file:
            header, *rows = list(csv.reader(file))
        values = np.array([[float(cell) for cell in row] for row in rows]).reshape(-1, len(header))
    except (OSError, ValueError) as error:
        raise TrainingError(f"cannot read the losses {path}: {error}") from error
    span = max(1, -(-len(values) // most))
    starts = np.arange(0, len(values), span)
    counts = np.diff(np.append(starts, len(values)))
    ends = starts + counts - 1
    means = np.add.reduceat(values, starts) / counts[:, None] if len(values) else values
    begun = np.flatnonzero(np.diff(values[:, 1])) + 1
    return LearningCurve(
        steps=tuple(int(step) for step in values[ends, 0]),
        terms={
            name: tuple(float(value) for value in means[:, at])
            for at, name in enumerate(header)
            if at >= _NOT_TERMS
        },
        epochs=tuple(int(step) for step in values[begun, 0]),
        span=span,
    )
