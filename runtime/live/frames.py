"""Explain a stream's frames one after the other, with the controls' current look."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial

import numpy as np

from .. import pipeline
from ..cam import Method
from ..explainer import Explainer
from ..explanation import Explanation, make_explanation
from ..pipeline import Prepared
from ..request import plan_request
from ..sweep import Choice, Floats
from ..targets import ClassScore, class_rows, rank_classes, resolve_targets
from ..tft import Tft
from .capture_thread import Frame
from .controls import Controls, Look
from .track import Tracker


@dataclass(frozen=True, eq=False)
class PreparedFrame:
    """A frame, its preprocessed input, and the seconds that preprocessing took."""

    frame: Frame
    prepared: Prepared
    seconds: float


@dataclass(frozen=True, eq=False)
class Explained:
    """A frame with its explanation.

    Attributes:
        frame, explanation: of one another.
        ranking: the most probable classes, five at most.
        look: that it was explained with.
        seconds: of preprocessing and explaining.
        evaluations: evaluations of masked images.
    """

    frame: Frame
    explanation: Explanation
    ranking: tuple[ClassScore, ...]
    look: Look
    seconds: float
    evaluations: int


class FrameExplainer:
    """Explains the frames of one stream.

    Args:
        explainer: from ``whycam.load``.
        controls: their look is read at each frame.
        evaluations: budget of ``Tracker``.
    """

    def __init__(self, explainer: Explainer, controls: Controls, evaluations: float) -> None:
        self._explainer, self._controls = explainer, controls
        self._tracker = Tracker(partial(pipeline.classify, explainer.model), evaluations)
        self._tracked: tuple[Method | None, bool] = (None, False)

    def prepare(self, frame: Frame) -> PreparedFrame:
        """Preprocess a frame; needs no controls, so it may run ahead."""
        begun = time.perf_counter()
        prepared = pipeline.prepare([frame.image], self._explainer.manifest)
        return PreparedFrame(frame, prepared, time.perf_counter() - begun)

    def prepare_and_explain(self, frame: Frame) -> Explained:
        """Preprocess and explain a frame."""
        return self.explain(self.prepare(frame))

    def explain(self, prepared: PreparedFrame) -> Explained:
        """Explain the next frame.

        Raises:
            RequestError, EngineError: see ``Explainer.explain``.
        """
        begun = time.perf_counter()
        look = self._controls.look
        tracked = look.tft == "track"
        if (look.method, tracked) != self._tracked:
            self._tracker.reset()  # it knows the maps of another method, or old ones
            self._tracked = look.method, tracked
        explanation, probabilities = self._explain(prepared.prepared, look)
        return Explained(
            prepared.frame,
            explanation,
            rank_classes(probabilities, self._explainer.manifest),
            look,
            prepared.seconds + time.perf_counter() - begun,
            self._tracker.evaluations if tracked else _count_evaluated(explanation),
        )

    def _explain(self, prepared: Prepared, look: Look) -> tuple[Explanation, Floats]:
        """Return the explanation, and the probabilities of all classes, float32 [C]."""
        model, tracked = self._explainer.model, look.tft == "track"
        thresholding = None if look.tft == "off" else True
        plan = plan_request(model.manifest, look.method, thresholding, sweep_outside=tracked)
        (target,) = class_rows(resolve_targets(look.target, 1, True, model.manifest))
        inference = pipeline.infer(model, prepared.inputs, [target], plan)
        (class_map,) = pipeline.map(model, inference, plan)
        (settings,) = (one.settings for one in plan.methods)
        choice: Choice | None
        if tracked and isinstance(settings, Tft):
            choice = self._tracker.choose(class_map, settings)
        else:
            (choice,) = pipeline.threshold(model, inference, [class_map], plan)
        explanation = make_explanation(
            model.manifest,
            class_map,
            choice,
            settings,
            prepared.images[0],
            prepared.placements[0],
            inference.probabilities[0],
        )
        return explanation, inference.probabilities[0]


def _count_evaluated(explanation: Explanation) -> int:
    """Count the thresholds that TFT evaluated."""
    return 0 if explanation.rpi is None else int(np.count_nonzero(~np.isnan(explanation.rpi)))
