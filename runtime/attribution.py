"""Hold what one map of one class of one image says."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .boxes import Box
from .cam import Method
from .images import RGBImage
from .manifest_parts import Edge, Task
from .preprocess import Placement, to_image
from .region import Region
from .targets import ClassScore
from .tft import Tft

_LEAST_SHARE = 0.01  # of an image that is written as a number


@dataclass(frozen=True, eq=False)
class Attribution:
    """The map of a class with its numbers: the values of an ``Explanation``, see there."""

    index: int
    label: str
    probability: float
    method: Method
    map: NDArray[np.float32]
    original_map: NDArray[np.float32]
    image: RGBImage = field(repr=False)
    placement: Placement
    mask: NDArray[np.float32] | None = None
    threshold: float | None = None
    cut: float = 0.0
    rpi: NDArray[np.float32] | None = None
    improved: bool | None = None
    masked_probability: float | None = None
    tft: Tft | None = None
    geometry: str = "input"
    task: Task = "softmax"
    top: tuple[ClassScore, ...] = ()
    explained_area: float | None = None
    weights: NDArray[np.float32] | None = field(default=None, repr=False)
    box: Box | None = None
    candidate: int | None = None
    edge: Edge | None = None

    def __repr__(self) -> str:
        height, width = self.placement.image
        number = format_probability(self.probability, self.task, 3)
        symbol = "value" if self.task == "none" else "p"
        named = f"{self.label!r} ({self.index})" if self.label != str(self.index) else self.label
        threshold = ""
        if self.tft is not None:
            threshold = f", tau* {'none' if self.threshold is None else f'{self.threshold:.2g}'}"
        elif self.threshold is not None:
            threshold = f", naive {self.threshold:.2g}"
        return (
            f"Explanation({named}, {symbol} {number}, {self.method}{threshold}, "
            f"image {height} x {width})"
        )

    def on_image(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Carry ``map``, ``original_map`` or ``mask`` to the image's own pixels.

        Args:
            values: float32, one of the three.

        Returns:
            float32 [h, w], 0 outside what the network saw.
        """
        if self.geometry == "image":
            return values
        return to_image(values, self.placement)

    @cached_property
    def region(self) -> Region:
        """Return where the thresholded map is not zero, at the image's own pixels.

        Without thresholding, or where no threshold improves, that is where the map is not zero at
        all; see ``region_above``.
        """
        return self.region_above(self.cut)

    def region_above(self, value: float) -> Region:
        """Return where the map before thresholding is not zero and has at least a value.

        Args:
            value: of the map, in [0, 1].
        """
        original = self.on_image(self.original_map)
        return Region(np.asarray((original >= value) & (original > 0)))

    def to_dict(self) -> dict[str, Any]:
        """Collect the numbers, without arrays, ready for JSON; None for an rpi not tried."""
        numbers = {
            "index": self.index,
            "label": self.label,
            "task": self.task,
            "probability": self.probability,
            "method": self.method,
            "threshold": self.threshold,
            "cut": self.cut,
        }
        if self.explained_area is not None:
            numbers["explained_area"] = self.explained_area
        if self.rpi is not None and self.tft is not None:
            numbers |= {
                "improved": self.improved,
                "masked_probability": self.masked_probability,
                "mask": self.tft.mask,
                "thresholds": self.tft.thresholds,
                "taus": list(self.tft.taus),
                "evaluations": self.tft.evaluations,
                "rpi": [None if np.isnan(value) else float(value) for value in self.rpi],
            }
        return numbers

    def caption_lines(self) -> list[str]:
        """Say in two lines what was explained, and how: class; method, threshold and reading."""
        number = format_probability(self.probability, self.task, 3)
        over = ""
        if self.explained_area is not None:
            share = (
                f"{self.explained_area:.0%}"
                if self.explained_area >= _LEAST_SHARE
                else f"less than {_LEAST_SHARE:.0%}"
            )
            over = f" over {share} of the image"
        return [f"{self.label} {number}{over}", "  ".join([self.method, *self.threshold_words()])]

    def threshold_words(self) -> list[str]:
        """Say how the map was thresholded: the threshold, and the reading of TFT; or nothing."""
        if self.tft is not None:
            chosen = "TFT: no threshold helps"
            if self.threshold is not None:
                chosen = f"TFT tau* {self.threshold:.2g}"
            return [chosen, self.tft.reading]
        return [] if self.threshold is None else [f"lowest {self.threshold:.0%} muted"]


def format_probability(probability: float, task: Task, digits: int) -> str:
    """Write a probability with so many decimals, or the value that task ``none`` has instead."""
    return f"{probability:.{digits}f}" if task != "none" else f"{probability:.{digits + 1}g}"
