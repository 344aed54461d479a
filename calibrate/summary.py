"""Sum up an evaluation: means and standard errors over its images."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

from ..runtime.cam import Method
from ..runtime.manifest import Manifest
from .dataset import Dataset
from .settings import Settings

# Measures of a map: the name in an image's row, and the name in the result.
MEASURES = {
    "increase": "average_increase",
    "drop": "average_drop",
    "coverage": "coverage",
    "insertion": "insertion",
    "deletion": "deletion",
    "pointing": "pointing_game",
    "energy": "energy_in_box",
}


class Result(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Results of one method in one variant: means over images, with standard errors.

    Attributes:
        method, variant: of the maps.
        mask, thresholds: the reading of TFT.
        images: number of images.
        accuracy: of the network; None if the data has no labels.
        average_increase, average_drop: paper section 5.2.
        coverage: mean of the mask, the share of the image that it shows.
        mean_rpi: at the best threshold, for ``tft``.
        improved: share of images that some threshold improves, for ``tft``.
        insertion, deletion: areas under the curves, if measured.
        pointing_game, energy_in_box: on images with boxes.
    """

    method: Method
    variant: str
    mask: str
    thresholds: str
    images: int
    accuracy: float | None
    accuracy_standard_error: float | None
    average_increase: float
    average_increase_standard_error: float
    average_drop: float
    average_drop_standard_error: float
    coverage: float
    coverage_standard_error: float
    mean_rpi: float | None = None
    improved: float | None = None
    insertion: float | None = None
    insertion_standard_error: float | None = None
    deletion: float | None = None
    deletion_standard_error: float | None = None
    pointing_game: float | None = None
    pointing_game_standard_error: float | None = None
    energy_in_box: float | None = None
    energy_in_box_standard_error: float | None = None


class Evaluation(msgspec.Struct, frozen=True, kw_only=True):
    """The results of an evaluation.

    Attributes:
        model, engine, digest, data: the file, the engine it ran in, its digest, and the images.
        target: the class explained, ``predicted`` or ``label``.
        images: number of images measured.
        labelled: of these, the number whose class is known.
        accuracy, accuracy_standard_error: on the labelled images; None without any.
        results: one entry for each method and variant.
        taus: thresholds that TFT evaluated.
        rpi: for each method, the mean relative probability increase at each threshold.
        chosen: for each method, how often each threshold was chosen; last, how often none was.
        unreadable: images left out, and why (the first thousand).
        unreadable_count: number of all images left out.
        skipped: number of images whose label is no class of the network, if labels are explained.
        notes: remarks for the reader.
    """

    model: str
    engine: str
    digest: str
    data: str
    target: str
    images: int
    labelled: int
    accuracy: float | None
    accuracy_standard_error: float | None
    results: tuple[Result, ...]
    taus: tuple[float, ...] = ()
    rpi: dict[str, tuple[float, ...]] = msgspec.field(default_factory=dict)
    chosen: dict[str, tuple[int, ...]] = msgspec.field(default_factory=dict)
    unreadable: dict[str, str] = msgspec.field(default_factory=dict)
    unreadable_count: int = 0
    skipped: int = 0
    notes: tuple[str, ...] = ()

    def result(self, method: str, variant: str) -> Result:
        """Return the result of one method in one variant.

        Args:
            method: as ``gradcam``.
            variant: as ``original`` or ``tft``.

        Returns:
            Its means over the images.

        Raises:
            KeyError: it was not measured.
        """
        for result in self.results:
            if (result.method, result.variant) == (method, variant):
                return result
        raise KeyError((method, variant))

    def to_csv(self) -> str:
        """Format the results as CSV, one line each."""
        text = io.StringIO()
        writer = csv.DictWriter(text, Result.__struct_fields__)
        writer.writeheader()
        writer.writerows(msgspec.structs.asdict(result) for result in self.results)
        return text.getvalue()


class _Mean:
    """Running mean and standard error (Welford 1962)."""

    def __init__(self) -> None:
        self.count, self.mean, self._squares = 0, 0.0, 0.0

    def add(self, value: float) -> None:
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


class Tally:
    """Sums up the rows of ``evaluate``."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.count = self.skipped = self.unreadable_count = 0
        self._accuracy = _Mean()
        self._means: dict[tuple[str, str, str], _Mean] = {}
        self._rpi: dict[str, np.ndarray] = {}
        self._chosen: dict[str, np.ndarray] = {}
        self._unreadable: dict[str, str] = {}

    def add(self, row: Mapping[str, Any]) -> None:
        """Add the row of one image."""
        if "error" in row:
            self.unreadable_count += 1
            if len(self._unreadable) < 1000:
                self._unreadable[row["name"]] = row["error"]
            return
        if "skipped" in row:
            self.skipped += 1
            return
        self.count += 1
        if row["label"] is not None:
            self._accuracy.add(row["label"] == row["predicted"])
        for method, variants in row["methods"].items():
            for variant, numbers in variants.items():
                for measure in MEASURES:
                    if measure in numbers:
                        self._mean(method, variant, measure).add(float(numbers[measure]))
            if "tft" in variants:
                self._add_sweep(method, variants["tft"])

    def _mean(self, method: str, variant: str, measure: str) -> _Mean:
        return self._means.setdefault((method, variant, measure), _Mean())

    def _add_sweep(self, method: str, numbers: Mapping[str, Any]) -> None:
        taus = self.settings.tft.taus
        rpi = self._rpi.setdefault(method, np.zeros(len(taus)))
        rpi += numbers["rpi"]
        chosen = self._chosen.setdefault(method, np.zeros(len(taus) + 1, np.int64))
        place = taus.index(numbers["threshold"]) if numbers["improved"] else len(taus)
        chosen[place] += 1
        self._mean(method, "tft", "rpi").add(max(numbers["rpi"]))
        self._mean(method, "tft", "improved").add(numbers["improved"])

    def result(
        self, manifest: Manifest, engine: str, data: Dataset, notes: Sequence[str]
    ) -> Evaluation:
        """Return the results so far."""
        settings = self.settings
        labelled = self._accuracy.count
        accuracy = self._accuracy.mean if labelled else None
        error = self._accuracy.error if labelled else None
        keys = {(method, variant) for method, variant, _ in self._means}
        return Evaluation(
            model=manifest.model,
            engine=engine,
            digest=manifest.digest,
            data=f"{data.path} ({data.kind})",
            target=settings.target,
            images=self.count,
            labelled=labelled,
            accuracy=accuracy,
            accuracy_standard_error=error,
            results=tuple(
                Result(
                    method=method,
                    variant=variant,
                    mask=settings.tft.mask,
                    thresholds=settings.tft.thresholds,
                    images=self.count,
                    accuracy=accuracy,
                    accuracy_standard_error=error,
                    **self._numbers(method, variant),
                )
                for method in settings.methods
                for variant in settings.variants
                if (method, variant) in keys
            ),
            taus=settings.tft.taus if self._rpi else (),
            rpi={m: tuple(map(float, total / self.count)) for m, total in self._rpi.items()},
            chosen={m: tuple(map(int, counts)) for m, counts in self._chosen.items()},
            unreadable=self._unreadable,
            unreadable_count=self.unreadable_count,
            skipped=self.skipped,
            notes=tuple(notes),
        )

    def _numbers(self, method: str, variant: str) -> dict[str, Any]:
        numbers: dict[str, Any] = {}
        for measure, name in MEASURES.items():
            mean = self._means.get((method, variant, measure))
            if mean is not None:
                numbers |= {name: mean.mean, f"{name}_standard_error": mean.error}
        for measure, name in (("rpi", "mean_rpi"), ("improved", "improved")):
            mean = self._means.get((method, variant, measure))
            if mean is not None:
                numbers[name] = mean.mean
        return numbers
