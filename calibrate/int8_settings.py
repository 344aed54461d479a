"""Settings of an INT8 calibration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..runtime.cam import Method
from ..runtime.errors import RequestError
from .ranges import CALIBRATORS, Calibrator

PERCENTILES = (99.99, 99.9)
WEIGHT_BITS = (8, 7)
FLOOR = {"top1": 0.95, "pearson": 0.95}
LEAST_IMAGES = 16


@dataclass(frozen=True)
class Recipe:
    """How activations and weights are mapped to integers."""

    calibrator: Calibrator
    percentile: float | None
    weight_bits: int

    def __str__(self) -> str:
        percentile = "" if self.percentile is None else f" {self.percentile:g}"
        weights = "" if self.weight_bits == 8 else f", {self.weight_bits}-bit weights"
        return f"{self.calibrator}{percentile}{weights}"


@dataclass(frozen=True)
class Settings:
    """Settings of an INT8 calibration.

    Attributes:
        calibrator: one, or ``auto``: the one whose maps agree best.
        percentile: for ``percentile``; None: the best of 99.99 and 99.9.
        weight_bits: see ``quantise.quantise``; None: 8, or 7 if 8 miss the floor on this processor.
        images: number of images to take ranges from, at most.
        held_out: number of images to measure the INT8 file on, at most.
        floor: least ``top1`` and ``pearson`` (the median, of each method).
        methods: whose maps are compared; None: those of the paper that the file supports.
        engine, threads, gpu: that candidates run in.

    Raises:
        RequestError: a value is unknown or out of range.
    """

    calibrator: str = "auto"
    percentile: float | None = None
    weight_bits: int | None = None
    images: int = 128
    held_out: int = 200
    floor: Mapping[str, float] | None = None
    methods: Sequence[Method] | None = None
    engine: str = "auto"
    threads: int | None = None
    gpu: int = 0

    def __post_init__(self) -> None:
        if self.calibrator not in ("auto", *CALIBRATORS):
            raise RequestError(
                f"there is no calibrator '{self.calibrator}'; choose from: auto, "
                f"{', '.join(CALIBRATORS)}"
            )
        if self.percentile is not None and not 50 < self.percentile <= 100:
            raise RequestError(
                f"percentile must be above 50 and at most 100, not {self.percentile}"
            )
        if self.weight_bits not in (None, *WEIGHT_BITS):
            raise RequestError(f"weight_bits must be 8 or 7, not {self.weight_bits}")
        if min(self.images, self.held_out) < LEAST_IMAGES // 2:
            raise RequestError(
                f"images and held_out must be {LEAST_IMAGES // 2} or more, not {self.images} "
                f"and {self.held_out}"
            )
        for name, value in (self.floor or {}).items():
            if name not in FLOOR or not 0 <= value <= 1:
                raise RequestError(
                    f"a floor is {' or '.join(FLOOR)} with a number from 0 to 1, not {name}={value}"
                )

    def recipes(self, weight_bits: int) -> list[Recipe]:
        """List the recipes to try with weights of this many bits."""
        percentiles = PERCENTILES if self.percentile is None else (self.percentile,)
        names = CALIBRATORS if self.calibrator == "auto" else (self.calibrator,)
        return [
            Recipe(name, percentile, weight_bits)  # type: ignore[arg-type]
            for name in names
            for percentile in (percentiles if name == "percentile" else (None,))
        ]
