"""Explain a stream's frames one after the other, with the controls' current look."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from .. import pipeline
from ..cam import Method
from ..detect import detect_prepared
from ..detection import Detection
from ..explainer import Explainer
from ..explanation import Explanation, make_explanation
from ..pipeline import Prepared
from ..request import plan_request
from ..sweep import Choice, Floats
from ..targets import ClassScore, class_rows, rank_classes, resolve_targets
from ..tft import Tft
from .capture_thread import Frame
from .controls import Controls, Look, Quality, Reused
from .schedule import Schedule
from .track import EVALUATIONS, Allowance, Tracker


@dataclass(frozen=True, eq=False)
class PreparedFrame:
    """A frame, its preprocessed input, and the seconds that preprocessing took.

    Attributes:
        prepared: None where the explanation of an earlier frame is used.
        reused: why; None where ``prepared`` is set.
    """

    frame: Frame
    prepared: Prepared | None
    reused: Reused | None
    seconds: float


@dataclass(frozen=True, eq=False)
class Explained:
    """A frame with its explanation.

    Attributes:
        frame, explanation: of one another; None for a detector.
        ranking: the most probable classes, five at most.
        look: that it was explained with.
        seconds: of preprocessing and explaining.
        evaluations: evaluations of masked images.
        reused, detections: see ``StreamFrame``.
    """

    frame: Frame
    explanation: Explanation | None
    ranking: tuple[ClassScore, ...]
    look: Look
    seconds: float
    evaluations: int
    reused: Reused | None
    detections: tuple[Detection, ...] | None = None


class FrameExplainer:
    """Explains the frames of one stream.

    Args:
        explainer: from ``whycam.load``.
        controls: their look is read at each frame.
        quality: see ``Stream``.
        allowance: what each frame may spend on thresholds; None: what time the schedule leaves.
        schedule: of the source; None: it has no rate.
    """

    def __init__(
        self,
        explainer: Explainer,
        controls: Controls,
        quality: Quality,
        allowance: Allowance | None,
        schedule: Schedule | None,
    ) -> None:
        self._explainer, self._controls = explainer, controls
        self._quality, self._allowance, self._schedule = quality, allowance, schedule
        self._tracker = Tracker(partial(pipeline.classify, explainer.model), explainer.batch)
        self._tracked: tuple[Method | None, bool] = (None, False)
        self._prepared: tuple[int, tuple[int, ...]] | None = (
            None  # the last one's content and shape
        )
        self._last: tuple[Prepared, Explained] | None = None  # the last that was not reused

    def prepare(self, frame: Frame) -> PreparedFrame:
        """Preprocess a frame; needs no controls, so it may run ahead."""
        begun = time.perf_counter()
        reused = self._reusable(frame)
        prepared = None
        if reused is None:
            prepared = pipeline.prepare([frame.image], self._explainer.manifest)
            self._prepared = frame.content, frame.image.shape
        return PreparedFrame(frame, prepared, reused, time.perf_counter() - begun)

    def _reusable(self, frame: Frame) -> Reused | None:
        """Say why a frame needs no explanation of its own; None: it needs one."""
        if self._prepared is None:
            return None
        content, shape = self._prepared
        if frame.content == content:
            return "unchanged"
        if frame.image.shape != shape:
            return None
        if self._quality == "rate" and self._schedule is not None:
            late = self._schedule.is_late(frame.seconds, frame.arrived)
            return "explanation" if late else None
        return None

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
        frame, inputs, reused = prepared.frame, prepared.prepared, prepared.reused
        if inputs is None:
            assert self._last is not None, "the first frame is prepared"
            inputs, last = self._last
            if reused == "explanation" or self._still_holds(last, frame, look):
                seconds = prepared.seconds + time.perf_counter() - begun
                explained = _reuse(last, frame, look, reused, seconds)
                self._finish(frame)
                return explained
        explained = self._explain_anew(frame, inputs, look, prepared.seconds, begun)
        self._last = inputs, explained
        self._finish(frame)
        return explained

    def _still_holds(self, last: Explained, frame: Frame, look: Look) -> bool:
        """Tell whether the explanation of the same pixels is as good as a new one."""
        same = (look.method, look.tft, look.target)
        if same != (last.look.method, last.look.tft, last.look.target):
            return False
        if last.reused != "threshold" or self._schedule is None:
            return True
        return self._schedule.slack(frame.seconds, frame.arrived) <= 0  # else it can be completed

    def _explain_anew(
        self, frame: Frame, inputs: Prepared, look: Look, seconds: float, begun: float
    ) -> Explained:
        tracked = look.tft == "track"
        if (look.method, tracked) != self._tracked:
            self._tracker.reset()  # it knows the maps of another method, or old ones
            self._tracked = look.method, tracked
        if self._explainer.manifest.detector is not None:
            return self._detect(frame, inputs, look, seconds, begun)
        explanation, probabilities = self._explain(frame, inputs, look)
        evaluations = self._tracker.evaluations if tracked else _count_evaluated(explanation)
        return Explained(
            frame,
            explanation,
            rank_classes(probabilities, self._explainer.manifest),
            look,
            seconds + time.perf_counter() - begun,
            evaluations,
            "threshold" if tracked and not evaluations else None,
        )

    def _detect(
        self, frame: Frame, inputs: Prepared, look: Look, seconds: float, begun: float
    ) -> Explained:
        plan = self._controls.plan_detection(look)
        (found,) = detect_prepared(self._explainer.model, inputs, plan)
        (detections,) = found.by_method.values()
        evaluations = sum(_count_evaluated(one) for one in detections)
        took = seconds + time.perf_counter() - begun
        return Explained(frame, None, (), look, took, evaluations, None, tuple(detections))

    def _explain(self, frame: Frame, prepared: Prepared, look: Look) -> tuple[Explanation, Floats]:
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
            allowance = self._allowed(frame, len(settings.taus))
            choice = self._tracker.choose(class_map, settings, allowance)
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

    def _allowed(self, frame: Frame, thresholds: int) -> Allowance:
        """Return what a frame may spend on its thresholds."""
        if self._allowance is not None or self._schedule is None:
            return self._allowance or Allowance(EVALUATIONS)
        limit = self._schedule.limit(frame.seconds, frame.arrived)
        affordable = self._tracker.affordable(limit.average, thresholds)
        if self._quality == "full":
            return Allowance(max(affordable, EVALUATIONS))
        return Allowance(affordable, limit.most, least=0)

    def _finish(self, frame: Frame) -> None:
        if self._schedule is not None:
            self._schedule.finish(frame.seconds, frame.interval)


def _reuse(
    last: Explained, frame: Frame, look: Look, reused: Reused | None, seconds: float
) -> Explained:
    """Give a frame the explanation of an earlier one."""
    return Explained(
        frame,
        None if last.explanation is None else replace(last.explanation, image=frame.image),
        last.ranking,
        look,
        seconds,
        0,
        reused,
        None
        if last.detections is None
        else tuple(replace(one, image=frame.image) for one in last.detections),
    )


def _count_evaluated(explanation: Explanation) -> int:
    """Count the thresholds that TFT evaluated."""
    return 0 if explanation.rpi is None else int(np.count_nonzero(~np.isnan(explanation.rpi)))
