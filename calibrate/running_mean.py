"""Keep the mean of numbers and its standard error, without keeping the numbers."""

from __future__ import annotations

import math


class RunningMean:
    """Running mean and standard error (Welford 1962).

    Attributes:
        count: how many numbers were added.
        mean: of them; 0 before the first.
    """

    def __init__(self) -> None:
        self.count, self.mean, self._squares = 0, 0.0, 0.0

    def add(self, value: float) -> None:
        """Add a number."""
        self.count += 1
        step = value - self.mean
        self.mean += step / self.count
        self._squares += step * (value - self.mean)

    @property
    def error(self) -> float:
        """Return the standard error of the mean; 0 for a single number."""
        if self.count < 2:
            return 0.0
        return math.sqrt(self._squares / (self.count - 1) / self.count)
