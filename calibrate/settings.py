"""Settings of an evaluation."""

from __future__ import annotations

from typing import Literal, get_args

import msgspec

from ..runtime.cam import Method
from ..runtime.tft import Tft

Variant = Literal["original", "naive", "tft"]
VARIANTS: tuple[Variant, ...] = get_args(Variant)
Target = Literal["predicted", "label"]


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """Settings of an evaluation.

    Attributes:
        methods: whose maps.
        variants: ``original``: the map as it is; ``naive``: cut where the method's users cut by
            habit (paper table 1); ``tft``: cut at the best threshold.
        tft: the reading; its ``mask`` is also how every variant's map masks the image.
        target: the class to explain: the ``predicted`` one, or the data's ``label``, of independent
            labels each one that the image has.
        labels: classes whose figures are measured one by one, of a network with independent labels.
        accuracy: whether the most probable class is compared with the data's label.
        curve_steps: of insertion and deletion; 0: not measured, for they take twice as many
            forward passes for each map.
        road: whether ROAD is measured, which takes 18 evaluations and seconds for each map.
        stability: whether maps of slightly changed images are compared, which takes 7 evaluations
            for each image.
        most, min_score, iou: of a detector, see ``Explainer.detect``; None for a classifier, or the
            file's.
        asked: digest of another network that is asked about the maps as well; None: none is.
    """

    methods: tuple[Method, ...]
    variants: tuple[Variant, ...] = VARIANTS
    tft: Tft = Tft()
    target: Target = "predicted"
    labels: tuple[int, ...] = ()
    accuracy: bool = True
    curve_steps: int = 0
    road: bool = False
    stability: bool = False
    asked: str | None = None
    most: int | None = None
    min_score: float | None = None
    iou: float | None = None
