"""Explain frames one after the other, as the look in force says."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..cam import Method
from ..explainer import Explainer, Images
from ..explanation import Explanation
from ..preprocess import Placement
from .attempt import Frame
from .controls import Controls, Look
from .track import Tracker

_RANKED = 5


@dataclass(frozen=True, eq=False)
class Prepared:
    """A frame with what the network is fed of it, and the seconds that took."""

    frame: Frame
    images: Images
    placement: Placement
    seconds: float


@dataclass(frozen=True, eq=False)
class Explained:
    """A frame with its explanation, the classes beside it, and what it took."""

    frame: Frame
    explanation: Explanation
    ranking: tuple[tuple[int, str, float], ...]
    look: Look
    seconds: float
    forwards: int


class FrameExplainer:
    """Explains the frames of one stream.

    Args:
        explainer: explains them.
        controls: say how, at each frame.
        forwards: see ``Tracker``.
    """

    def __init__(self, explainer: Explainer, controls: Controls, forwards: float) -> None:
        self._explainer, self._controls = explainer, controls
        self._tracker = Tracker(explainer.probabilities, forwards)
        self._tracked: tuple[Method | None, bool] = (None, False)

    def prepare(self, frame: Frame) -> Prepared:
        """What the network is fed of a frame; needs no control, and may run ahead."""
        begun = time.perf_counter()
        images, (placement,) = self._explainer.inputs([frame.picture])
        return Prepared(frame, images, placement, time.perf_counter() - begun)

    def prepare_and_explain(self, frame: Frame) -> Explained:
        """Both at once."""
        return self.explain(self.prepare(frame))

    def explain(self, prepared: Prepared) -> Explained:
        """Explain the next frame.

        Raises:
            RequestError, EngineError: see ``Explainer.explain``.
        """
        begun = time.perf_counter()
        look, frame = self._controls.look, prepared.frame
        tracked = look.tft == "track"
        if (look.method, tracked) != self._tracked:
            self._tracker.reset()  # what it knows is of other maps, or of long ago
            self._tracked = look.method, tracked
        explanation, probabilities = self._explainer.explain_prepared(
            frame.picture,
            prepared.images,
            prepared.placement,
            look.target,
            look.method,
            None if look.tft == "off" else True,
            self._tracker.choose if tracked else None,
        )
        return Explained(
            frame,
            explanation,
            self._ranked(probabilities),
            look,
            prepared.seconds + time.perf_counter() - begun,
            self._tracker.forwards if tracked else _tried(explanation),
        )

    def _ranked(self, probabilities: NDArray[np.float32]) -> tuple[tuple[int, str, float], ...]:
        count = min(_RANKED, len(probabilities))
        best = np.argpartition(-probabilities, count - 1)[:count]
        order = best[np.argsort(-probabilities[best], kind="stable")]
        label = self._explainer.manifest.label
        return tuple((int(i), label(int(i)), float(probabilities[i])) for i in order)


def _tried(explanation: Explanation) -> int:
    """The thresholds that a sweep tried."""
    return 0 if explanation.rpi is None else int(np.count_nonzero(~np.isnan(explanation.rpi)))
