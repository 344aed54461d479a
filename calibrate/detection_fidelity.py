"""Compare the detections of two files, engines or precisions, and their maps."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np

from ..runtime.boxes import overlaps
from ..runtime.cam import Method
from ..runtime.detection import Detection
from ..runtime.detection_plan import DETECTIONS, plan_detection
from ..runtime.errors import DataError, ImageError, RequestError
from ..runtime.explainer import Explainer
from ..runtime.request import check_detector
from ..runtime.similarity import pearson, top_overlap
from ..runtime.timing import Tick
from .common_view import common_maps
from .dataset import Sample
from .fidelity import MapFidelity, find_difference

SAME_OBJECT = 0.5  # overlap (IoU) from which on two boxes of one class are of the same object


class DetectionFidelity(msgspec.Struct, frozen=True, kw_only=True):
    """Agreement of two detectors.

    Attributes:
        reference, other: engine and precision.
        images: images compared.
        detections, others: how many objects the reference finds, and the other.
        matched: how many are found by both: of one class, with boxes that overlap by half.
        iou: mean overlap of the matched boxes; None without any.
        score: mean absolute difference of their scores; None without any.
        maps: of the matched detections, by method; empty without any.
        lost: the images of which an object is not found again, with how many.
        unreadable: images left out, and why.
    """

    reference: str
    other: str
    images: int
    detections: int
    others: int
    matched: int
    iou: float | None
    score: float | None
    maps: dict[str, MapFidelity]
    lost: dict[str, int]
    unreadable: dict[str, str] = msgspec.field(default_factory=dict)


def compare_detectors(
    reference: Explainer,
    other: Explainer,
    samples: Sequence[Sample],
    methods: Sequence[Method] | None = None,
    most: int = DETECTIONS,
    min_score: float | None = None,
    tick: Tick | None = None,
) -> DetectionFidelity:
    """Detect in the same images with both, match the objects, and compare scores, boxes and maps.

    Args:
        reference: the detector to compare with.
        other: a detector of the same classes.
        samples: images.
        methods: by default those that both files have.
        most, min_score: which objects count, see ``Explainer.detect``.
        tick: called with (name, images done).

    Raises:
        RequestError: one file is no detector, the two have other classes, or no common method.
        DataError: no image can be read.
    """
    for one in (reference, other):
        check_detector(one.manifest)
    reason = find_difference(reference.manifest, other.manifest)
    if reason is not None:
        raise RequestError(
            f"{reference.manifest.model} and {other.manifest.model} cannot be compared: {reason}"
        )
    both = [each for each in reference.manifest.methods if each in other.manifest.methods]
    chosen = tuple(methods or both)
    absent = [each for each in chosen if each not in both]
    if absent or not chosen:
        raise RequestError(
            f"cannot compare {', '.join(absent) or 'no'} maps; both files have: {', '.join(both)}"
        )
    plans = [
        plan_detection(one.manifest, None, chosen, None, most=most, min_score=min_score)
        for one in (reference, other)
    ]
    tally = _Tally(chosen)
    files = [sample.path for sample in samples]
    streams = (
        one.iter_detections(files, plan)
        for one, plan in zip((reference, other), plans, strict=True)
    )
    for sample, (_, ours), (_, theirs) in zip(samples, *streams, strict=True):
        failed = next((each for each in (ours, theirs) if isinstance(each, ImageError)), None)
        if failed is not None:
            tally.unreadable[sample.name] = str(failed)
        else:
            assert not isinstance(ours, ImageError)
            assert not isinstance(theirs, ImageError)
            tally.add(sample.name, ours.by_method, theirs.by_method)
        if tick is not None:
            tick(sample.name, 1)
    if not tally.images:
        why = next(iter(tally.unreadable.values()), "there are none")
        raise DataError(f"no image to compare with can be read: {why}")
    return DetectionFidelity(
        reference=reference.engine.description,
        other=other.engine.description,
        images=tally.images,
        detections=tally.ours,
        others=tally.theirs,
        matched=len(tally.ious),
        iou=float(np.mean(tally.ious)) if tally.ious else None,
        score=float(np.mean(tally.apart)) if tally.ious else None,
        maps={method: tally.of(method) for method in chosen if tally.ious},
        lost=tally.lost,
        unreadable=tally.unreadable,
    )


class _Tally:
    """What was compared so far."""

    def __init__(self, methods: Sequence[Method]) -> None:
        self.images = self.ours = self.theirs = 0
        self.ious: list[float] = []
        self.apart: list[float] = []
        self.lost: dict[str, int] = {}
        self.unreadable: dict[str, str] = {}
        self._correlations: dict[Method, list[float]] = {method: [] for method in methods}
        self._overlaps: dict[Method, list[float]] = {method: [] for method in methods}

    def add(
        self,
        name: str,
        ours: dict[Method, list[Detection]],
        theirs: dict[Method, list[Detection]],
    ) -> None:
        first = next(iter(self._correlations))
        pairs = match_objects(ours[first], theirs[first])
        self.images += 1
        self.ours += len(ours[first])
        self.theirs += len(theirs[first])
        if len(pairs) < len(ours[first]):
            self.lost[name] = len(ours[first]) - len(pairs)
        for mine, other, iou in pairs:
            self.ious.append(iou)
            self.apart.append(abs(ours[first][mine].score - theirs[first][other].score))
            for method in self._correlations:
                a, b = common_maps(ours[method][mine], theirs[method][other])
                self._correlations[method].append(pearson(a, b))
                self._overlaps[method].append(top_overlap(a, b))

    def of(self, method: Method) -> MapFidelity:
        """Summarise one method's maps."""
        correlations, tops = self._correlations[method], self._overlaps[method]
        return MapFidelity(
            pearson=float(np.median(correlations)),
            pearson_low=float(np.percentile(correlations, 5)),
            iou=float(np.median(tops)),
            iou_low=float(np.percentile(tops, 5)),
        )


def match_objects(
    ours: Sequence[Detection], theirs: Sequence[Detection]
) -> list[tuple[int, int, float]]:
    """Pair detections of one class whose boxes overlap by half, those that overlap most first.

    Args:
        ours, theirs: of one image.

    Returns:
        Indices of both, and their IoU; each index at most once.
    """
    if not ours or not theirs:
        return []
    boxes = [np.array([one.box for one in side], np.float32) for side in (ours, theirs)]
    iou = overlaps(boxes[0], boxes[1])
    same = np.array([[a.index == b.index for b in theirs] for a in ours])
    iou = np.where(same, iou, 0)
    found = []
    while iou.max() >= SAME_OBJECT:
        mine, other = map(int, np.unravel_index(iou.argmax(), iou.shape))
        found.append((mine, other, float(iou[mine, other])))
        iou[mine, :] = iou[:, other] = 0
    return found
