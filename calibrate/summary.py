"""Sum up an evaluation: means and standard errors over its maps."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

from ..runtime.cam import Method
from ..runtime.manifest import Manifest
from ..runtime.tft import Mask, Thresholds
from .dataset import Dataset
from .detection_accuracy import MatchTally
from .label_figures import LabelFigures, LabelTally, format_labels_csv
from .running_mean import RunningMean
from .settings import Settings

# Measures of a map: the name in an image's row, and the name in the result.
MEASURES = {
    "increase": "average_increase",
    "drop": "average_drop",
    "asked_increase": "cross_asked_increase",
    "asked_drop": "cross_asked_drop",
    "coverage": "coverage",
    "insertion": "insertion",
    "deletion": "deletion",
    "pointing": "pointing_game",
    "energy": "energy_in_box",
    "iou": "region_iou",
    "road_most": "road_most_relevant",
    "road_least": "road_least_relevant",
    "sparsity": "sparsity",
    "noise": "noise_stability",
    "shift": "shift_stability",
}


class Result(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Results of one method in one variant: means over maps, with standard errors.

    Attributes:
        method, variant: of the maps.
        mask, thresholds: the reading of TFT.
        images: number of images.
        maps: number of maps, as many as images, or one for each label of each image.
        accuracy: of the network; None if the data has no labels, or several an image.
        average_increase, average_drop: paper section 5.2.
        cross_asked_increase, cross_asked_drop: the same of another network's answers to these maps,
            if one is asked.
        coverage: mean of the mask, the share of the image that it shows.
        mean_rpi: at the best threshold, for ``tft``.
        improved: share of maps that some threshold improves, for ``tft``.
        insertion, deletion: areas under the curves, if measured.
        pointing_game, energy_in_box, region_iou: on images with boxes.
        road_most_relevant, road_least_relevant: see ``road.road``, if measured.
        sparsity: see ``quality.gini``.
        noise_stability, shift_stability: see ``stability.stability``, if measured, of ``original``.
    """

    method: Method
    variant: str
    mask: Mask
    thresholds: Thresholds
    images: int
    maps: int
    accuracy: float | None
    accuracy_standard_error: float | None
    average_increase: float
    average_increase_standard_error: float
    average_drop: float
    average_drop_standard_error: float
    coverage: float
    coverage_standard_error: float
    cross_asked_increase: float | None = None
    cross_asked_increase_standard_error: float | None = None
    cross_asked_drop: float | None = None
    cross_asked_drop_standard_error: float | None = None
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
    region_iou: float | None = None
    region_iou_standard_error: float | None = None
    road_most_relevant: float | None = None
    road_most_relevant_standard_error: float | None = None
    road_least_relevant: float | None = None
    road_least_relevant_standard_error: float | None = None
    sparsity: float | None = None
    sparsity_standard_error: float | None = None
    noise_stability: float | None = None
    noise_stability_standard_error: float | None = None
    shift_stability: float | None = None
    shift_stability_standard_error: float | None = None


class Evaluation(msgspec.Struct, frozen=True, kw_only=True):
    """The results of an evaluation.

    Attributes:
        model, engine, digest, data: the file, the engine it ran in, its digest, and the images.
        target: the class explained, ``predicted`` or ``label``.
        images: number of images measured.
        labelled: of these, the number whose class is known.
        accuracy, accuracy_standard_error: share of labelled images whose label is the most probable
            class; None without any, or where images have several.
        labels: figures of each label, where the network's labels are independent (task sigmoid).
        mean_average_precision: over the labels that some image has; None without any.
        results: one entry for each method and variant.
        taus: thresholds that TFT evaluated.
        rpi: for each method, the mean relative probability increase at each threshold.
        chosen: for each method, how often each threshold was chosen; last, how often none was.
        unreadable: images left out, and why (the first thousand).
        unreadable_count: number of all images left out.
        skipped: number of images without a label that is a class of the network, if labels are
            explained.
        detections: of a detector, the number explained; None for a classifier.
        matched: of these, the number that an annotated box of their class overlaps by half; None
            without annotations.
        annotated: number of annotated boxes whose class the detector has; None without any.
        precision: share of detections, of classes that are annotated, that match a box of their
            class which no detection with a higher score has taken, see ``count_matches``.
        recall: share of annotated boxes that a detection matches.
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
    labels: tuple[LabelFigures, ...] = ()
    mean_average_precision: float | None = None
    taus: tuple[float, ...] = ()
    rpi: dict[str, tuple[float, ...]] = msgspec.field(default_factory=dict)
    chosen: dict[str, tuple[int, ...]] = msgspec.field(default_factory=dict)
    unreadable: dict[str, str] = msgspec.field(default_factory=dict)
    unreadable_count: int = 0
    skipped: int = 0
    detections: int | None = None
    matched: int | None = None
    annotated: int | None = None
    precision: float | None = None
    recall: float | None = None
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

    def labels_to_csv(self) -> str:
        """Format the figures of the labels as CSV, a line for each label, method and variant."""
        return format_labels_csv(self.labels)


class Tally:
    """Sums up the rows of ``evaluate``."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.count = self.maps = self.skipped = self.unreadable_count = 0
        self._matched: int | None = None
        self._matches = MatchTally()
        self._labels = LabelTally(settings.labels)
        self._accuracy = RunningMean()
        self._means: dict[tuple[str, str, str], RunningMean] = {}
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
        self._labels.add(row)
        self._matches.add(row.get("matches", ()))
        for explained in row["explained"]:
            self.maps += 1
            if explained.get("matched") is not None:
                self._matched = (self._matched or 0) + explained["matched"]
            for method, variants in explained["methods"].items():
                self._add_maps(method, variants)

    def _add_maps(self, method: str, variants: Mapping[str, Mapping[str, Any]]) -> None:
        """Add the variants of one map."""
        for variant, numbers in variants.items():
            for measure in MEASURES:
                if measure in numbers:
                    self._mean(method, variant, measure).add(float(numbers[measure]))
        if "tft" in variants:
            self._add_sweep(method, variants["tft"])

    def _mean(self, method: str, variant: str, measure: str) -> RunningMean:
        return self._means.setdefault((method, variant, measure), RunningMean())

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
        labels = self._labels.figures(manifest.labels)
        precisions = [one.average_precision for one in labels if one.average_precision is not None]
        precision, recall, annotated = self._matches.figures()
        keys = {(method, variant) for method, variant, _ in self._means}
        return Evaluation(
            model=manifest.model,
            engine=engine,
            digest=manifest.digest,
            data=f"{data.path} ({data.kind})",
            target=settings.target,
            images=self.count,
            labelled=labels[0].images if labels else labelled,
            accuracy=accuracy,
            accuracy_standard_error=error,
            results=tuple(
                Result(
                    method=method,
                    variant=variant,
                    mask=settings.tft.mask,
                    thresholds=settings.tft.thresholds,
                    images=self.count,
                    maps=self.maps,
                    accuracy=accuracy,
                    accuracy_standard_error=error,
                    **self._numbers(method, variant),
                )
                for method in settings.methods
                for variant in settings.variants
                if (method, variant) in keys
            ),
            labels=labels,
            mean_average_precision=sum(precisions) / len(precisions) if precisions else None,
            taus=settings.tft.taus if self._rpi else (),
            rpi={m: tuple(map(float, total / self.maps)) for m, total in self._rpi.items()},
            chosen={m: tuple(map(int, counts)) for m, counts in self._chosen.items()},
            unreadable=self._unreadable,
            unreadable_count=self.unreadable_count,
            skipped=self.skipped,
            detections=None if manifest.detector is None else self.maps,
            matched=self._matched,
            annotated=annotated,
            precision=precision,
            recall=recall,
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
