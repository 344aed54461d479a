"""Decide what is asked of a detector: which objects, which maps, which graph outputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

import numpy as np

from .cam import Method
from .errors import RequestError
from .manifest import Manifest
from .manifest_parts import Detector, ExplainedScore
from .request import RequestPlan, Thresholding, check_detector, plan_methods
from .targets import find_label
from .tft import Tft

MOST_DETECTIONS = 100
DETECTIONS = 10  # explained of an image, unless a caller says otherwise


@dataclass(frozen=True)
class DetectionPlan:
    """What is explained in each image, and what one run of the graph must return for it.

    Attributes:
        request: the methods and the outputs.
        detector: of the file.
        most: detections of an image, at most.
        min_score: a detection scores more.
        iou: overlap from which on a worse candidate is suppressed; None: none is.
        classes: that are looked for; None: all.
        pairs: candidates and classes to explain, whatever their score; None: the best detections.
    """

    request: RequestPlan
    detector: Detector
    most: int
    min_score: float
    iou: float | None
    classes: tuple[int, ...] | None = None
    pairs: tuple[tuple[int, int], ...] | None = None

    @property
    def in_graph(self) -> bool:
        """Whether the graph itself chooses what is explained, in the same run."""
        own = self.detector
        return (
            self.pairs is None
            and self.classes is None
            and own.ranks
            and self.iou == own.iou
            and self.min_score >= own.min_score
        )


def plan_detection(
    manifest: Manifest,
    target: Any = None,
    methods: Method | Sequence[Method] | None = None,
    thresholding: Thresholding = None,
    *,
    most: int = DETECTIONS,
    min_score: float | None = None,
    iou: float | None = None,
    score: ExplainedScore | None = None,
) -> DetectionPlan:
    """Plan which objects a detector explains, and how.

    Args:
        manifest: of the detector.
        target, methods, thresholding, most, min_score, iou, score: see ``Explainer.detect``.

    Raises:
        RequestError: the file is no detector, or cannot do that.
    """
    check_detector(manifest)
    detector = manifest.detector
    assert detector is not None
    if score is not None and score != detector.score:
        raise RequestError(
            f"this file explains {_name_score(detector.score)}, not {_name_score(score)}: export "
            f"it again with --score {score}"
        )
    request = plan_methods(manifest, methods, thresholding)
    swept = any(isinstance(one.settings, Tft) for one in request.methods)
    if swept and detector.score != "class":
        raise RequestError(
            "TFT looks for the threshold that raises a score, and this file explains "
            f"{_name_score(detector.score)}: use tft='naive' (--naive), or no threshold"
        )
    if isinstance(most, bool) or not 1 <= most <= MOST_DETECTIONS:
        raise RequestError(f"1 to {MOST_DETECTIONS} detections can be explained, not {most}")
    if min_score is not None and not 0 <= min_score < 1:
        raise RequestError(f"the least score must lie in [0, 1), not {min_score}")
    if iou is not None and not 0 <= iou <= 1:
        raise RequestError(f"iou must lie in [0, 1], not {iou}")
    if iou is not None and detector.iou is None:
        raise RequestError(
            f"a {detector.format} detector returns each object once, and nothing is suppressed: "
            "leave out iou"
        )
    pairs, classes = _resolve(target, manifest, detector)
    return DetectionPlan(
        request=request,
        detector=detector,
        most=min(most, detector.candidates) if pairs is None else len(pairs),
        min_score=detector.min_score if min_score is None else min_score,
        iou=detector.iou if iou is None else iou,
        classes=classes,
        pairs=pairs,
    )


def _name_score(score: ExplainedScore) -> str:
    return "the score of the class" if score == "class" else f"the {score} edge of the box"


_Resolved = tuple[tuple[tuple[int, int], ...] | None, tuple[int, ...] | None]


def _resolve(target: Any, manifest: Manifest, detector: Detector) -> _Resolved:
    """Return the pairs (candidate, class) that are named, or the classes; both None for neither."""
    if target is None:
        return None, None
    if isinstance(target, np.ndarray):
        target = target.tolist()
    listed = target if isinstance(target, list) else [target]
    listed = [tuple(one) if isinstance(one, list) else one for one in listed]
    if not listed:
        raise RequestError("an empty list of targets: name at least one class or candidate")
    paired = [isinstance(one, tuple) for one in listed]
    if not any(paired):
        return None, tuple(dict.fromkeys(_class(one, manifest) for one in listed))
    if not all(paired):
        raise RequestError("targets are classes, or pairs (candidate, class), not both at once")
    pairs = tuple(_pair(one, manifest, detector) for one in listed)
    # The graph ranks as many of its candidates as there are targets, whether they are named or not.
    most = min(MOST_DETECTIONS, detector.candidates) if detector.ranks else MOST_DETECTIONS
    if len(pairs) > most:
        raise RequestError(f"{len(pairs)} targets: {most} are explained at most, in one call")
    return pairs, None


def _pair(pair: tuple[Any, ...], manifest: Manifest, detector: Detector) -> tuple[int, int]:
    if len(pair) != 2 or not _is_whole(pair[0]):
        raise RequestError(f"a target is a pair (candidate, class), not {pair!r}")
    if not 0 <= pair[0] < detector.candidates:
        raise RequestError(
            f"there is no candidate {pair[0]}: they go from 0 to {detector.candidates - 1}"
        )
    return int(pair[0]), _class(pair[1], manifest)


def _class(target: Any, manifest: Manifest) -> int:
    if isinstance(target, str):
        return find_label(target, manifest.labels)
    if not _is_whole(target):
        raise RequestError(
            f"a target is a class, by its label or index, or a pair (candidate, class), not "
            f"{target!r}"
        )
    if not 0 <= target < manifest.num_classes:
        raise RequestError(
            f"there is no class {target}: indices go from 0 to {manifest.num_classes - 1}"
        )
    return int(target)


def _is_whole(value: Any) -> TypeGuard[int]:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)
