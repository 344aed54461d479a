"""Track the best threshold of a video's maps with a few evaluations a frame.

The gains of a class's thresholds are modelled as a Gaussian, as in ``search``, that changes from
frame to frame. A frame starts from the Gaussian of the last frame with the same class, widened the
more the map has changed since. Each evaluation goes to the threshold with the largest expected
rise of the probability, and its result updates the Gaussian, until no rise is worth an evaluation
or the frame's time is over. A map like the last one takes one or two evaluations, a new scene or
class as many as a sweep. A frame without time for any evaluation keeps the last threshold of its
class.

Symbols: gains y_t = logit p(masked at tau_t) - logit p(whole frame), t = 1 ... T. From one frame
to the next, with rho in [0, 1],

    y' ~ Normal(mu + rho (y - mu), rho^2 C + (1 - rho^2) S)

where C is the covariance of y after the last frame's evaluations, and mu and S are mean and
covariance over all frames, updated with each.
"""

from __future__ import annotations

import math
import statistics
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .. import search, tft
from ..errors import RequestError
from ..search import Belief
from ..sweep import (
    Choice,
    Classify,
    Floats,
    Request,
    count_kept,
    hold_threshold,
    make_choice,
    mask_input,
    masked_probabilities,
)
from ..tft import Tft

# Chosen on Grad-CAM of EfficientNet-Lite0 over two videos; see benchmarks/track.py.
EVALUATIONS = 3.9
# S before the first frame: a variance that neighbouring thresholds share, one that they do not, and
# the distance in tau over which the shared part falls to about half.
_VARIANCE, _OWN_VARIANCE, _LENGTH = 2.0, 0.05, 0.15
_NOISE = 0.1  # variance of a measured gain: frames differ in more than the map shows
_RHO, _RHO_OTHER_CLASS = 0.95, 0.67
_LEARNING = 0.03  # weight of a frame in mu and S
_STEERING = 0.2  # how fast the number of evaluations returns to the budget
_CLASSES = 64  # whose Gaussians are kept
_TIMES = 15  # whose median is the time of an evaluation


@dataclass(frozen=True)
class Allowance:
    """What a frame may spend on its thresholds.

    Attributes:
        evaluations: of the network, averaged over frames; if not below the number of thresholds,
            all of them are evaluated.
        seconds: no evaluation begins that would end later than this after the first one began.
        least: evaluations that are made at any rate.
    """

    evaluations: float
    seconds: float = math.inf
    least: int = 1

    def __post_init__(self) -> None:
        if not self.evaluations >= self.least:
            raise RequestError(
                f"a tracker needs {self.least} evaluation a frame or more, not {self.evaluations}"
            )


@dataclass(frozen=True, eq=False)
class _Remembered:
    """The Gaussian of a class after the last frame that it was explained in.

    Attributes:
        mean, covariance: of its gains, float64 [T] and [T, T].
        map: of that frame, centred and scaled to unit length, float32 [H, W].
        threshold: the index of the class's last threshold that was evaluated and chosen; None: none
            improved.
    """

    mean: NDArray[np.float64]
    covariance: NDArray[np.float64]
    map: Floats
    threshold: int | None


class Tracker:
    """Chooses the threshold of each frame of a video, as the module says.

    Attributes:
        evaluations: evaluations of the network for the last frame.

    Args:
        classify: runs the network.
        batch: images of one run of the network, at most; all thresholds of a frame share runs.
        clock: seconds, as ``time.perf_counter``.
    """

    def __init__(
        self,
        classify: Classify,
        batch: int = 1,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.evaluations = 0
        self._run, self._batch, self._clock = classify, batch, clock
        self._single: deque[float] = deque(maxlen=_TIMES)
        self._all: deque[float] = deque(maxlen=_TIMES)
        self.reset()

    def reset(self) -> None:
        """Forget all frames, as for another source or another method."""
        self._settings: Tft | None = None
        self._classes: OrderedDict[int, _Remembered] = OrderedDict()
        self._last: _Remembered | None = None
        self._worth = 0.02  # the expected rise of rpi that is worth an evaluation

    def affordable(self, seconds: float, thresholds: int) -> float:
        """Return how many evaluations take so many seconds, by those of the last frames.

        Args:
            seconds: of processing, not negative.
            thresholds: how many there are; evaluated together, they may take less time each.
        """
        if self._all and seconds >= statistics.median(self._all):
            return float(thresholds)
        if not self._single:
            return float(thresholds)  # the first frame evaluates all, and measures
        return min(seconds / self._seconds_of_one(), float(thresholds))

    def choose(self, request: Request, settings: Tft, allowance: Allowance) -> Choice:
        """Choose the threshold of the next frame.

        Args:
            request: the frame's map.
            settings: the reading of TFT, and the thresholds; ``evaluations`` is ignored.
            allowance: what it may spend; the first frame spends all.

        Returns:
            As from ``sweep``; rpi is NaN where a threshold was not evaluated. Where none was, the
            last threshold holds, see ``hold_threshold``.
        """
        is_first = settings != self._settings
        if is_first:
            self.reset()
            self._settings = settings
            self._mu = np.zeros(len(settings.taus))
            self._s = _first_covariance(settings.taus)
        unit = _unit(request.map)
        belief = self._expected(request.target, unit)
        self.evaluations = 0
        steps = len(settings.taus)
        if is_first:  # one after the other, which measures the time of one
            masked, belief = self._evaluate(
                request, settings, belief, Allowance(steps, least=steps)
            )
        elif allowance.evaluations >= steps:
            masked, belief = self._evaluate_all(request, settings, belief)
        else:
            masked, belief = self._evaluate(request, settings, belief, allowance)
            self._worth *= float(np.exp(_STEERING * (self.evaluations - allowance.evaluations)))
            self._worth = min(max(self._worth, 1e-5), 1e5)
        if self.evaluations:
            probability = np.asarray(request.probability, np.float32)
            rpi = tft.relative_probability_increase(masked, probability)
            choice = make_choice(request.map, rpi, masked, settings)
            threshold = int(tft.choose(rpi)) if choice.improved else None
        else:
            threshold = self._held(request.target)
            choice = hold_threshold(request.map, threshold, settings)
        remembered = _Remembered(belief.mean, belief.covariance, unit, threshold)
        self._remember(request.target, remembered)
        return choice

    def _held(self, target: int) -> int | None:
        """Return the last threshold of a class; of a new one, that of the frame before."""
        before = self._classes.get(target, self._last)
        return None if before is None else before.threshold

    def _expected(self, target: int, unit: Floats) -> Belief:
        """Predict a frame's gains before any threshold is evaluated."""
        mean, covariance = self._mu, self._s
        before, rho = self._classes.get(target), _RHO
        if before is None:
            before, rho = self._last, _RHO_OTHER_CLASS
        if before is not None and before.map.shape == unit.shape:
            rho *= max(0.0, float(np.vdot(unit, before.map)))
            mean = self._mu + rho * (before.mean - self._mu)
            covariance = rho**2 * before.covariance + (1 - rho**2) * self._s
        return Belief(mean, covariance, np.zeros(len(mean), bool), np.float64(0))

    def _evaluate_all(
        self, request: Request, settings: Tft, belief: Belief
    ) -> tuple[Floats, Belief]:
        """Evaluate all thresholds together; return their probabilities."""
        begun = self._clock()
        (masked,) = masked_probabilities(self._classify, [request], settings, self._batch)
        self._all.append(self._clock() - begun)
        whole = search.logit(np.float64(request.probability))
        steps = np.eye(len(settings.taus))
        for step, gain in zip(steps, search.logit(masked.astype(np.float64)) - whole, strict=True):
            belief = search.observe(belief, step, gain, _NOISE)
        return masked, belief

    def _evaluate(
        self, request: Request, settings: Tft, belief: Belief, allowance: Allowance
    ) -> tuple[Floats, Belief]:
        """Evaluate thresholds while one is worth it; return probabilities, NaN elsewhere."""
        steps = len(settings.taus)
        cuts = tft.cut_values(request.map, settings.taus, settings.thresholds)
        masked = np.full(steps, np.nan, np.float32)
        whole = search.logit(np.float64(request.probability))
        known: dict[int, int] = {}  # pixels kept: the step that kept them
        until = self._clock() + allowance.seconds
        while not belief.tried.all():
            rise = expected_rise(belief)
            step = int(rise.argmax())
            if self.evaluations >= allowance.least and (
                rise[step] < self._worth or self._clock() + self._seconds_of_one() > until
            ):
                break
            same = known.setdefault(int(count_kept(request.map, cuts[step])), step)
            if same == step:
                begun = self._clock()
                image = mask_input(request, cuts[step], settings)
                masked[step] = self._classify(image[None])[0, request.target]
                self._single.append(self._clock() - begun)
            else:
                masked[step] = masked[same]
            gain = search.logit(np.float64(masked[step])) - whole
            belief = search.observe(belief, np.eye(steps)[step], gain, _NOISE)
        return masked, belief

    def _classify(self, images: Floats) -> Floats:
        self.evaluations += len(images)
        return self._run(images)

    def _seconds_of_one(self) -> float:
        return max(statistics.median(self._single), 1e-6)

    def _remember(self, target: int, latest: _Remembered) -> None:
        """Keep a class's Gaussian, and update mean and covariance over all frames."""
        away = latest.mean - self._mu
        spread = latest.covariance + np.outer(away, away)
        self._mu = self._mu + _LEARNING * away
        self._s = (1 - _LEARNING) * self._s + _LEARNING * spread
        self._classes[target] = self._last = latest
        self._classes.move_to_end(target)
        if len(self._classes) > _CLASSES:
            self._classes.popitem(last=False)


def expected_rise(belief: Belief) -> NDArray[np.float64]:
    """Compute E[max(e^y - e^best, 0)], the expected rise of rpi by evaluating each threshold.

    With y ~ Normal(m, v), s^2 = v, b = best: e^(m + v/2) Phi((m + v - b) / s) - e^b Phi((m - b) /
    s). In units of rpi, because there an improbable class has more to gain than a probable one.

    Returns:
        float64 [T]; -1 where a threshold was evaluated already.
    """
    variance = np.clip(np.diagonal(belief.covariance), 1e-6, None)
    deviation = np.sqrt(variance)
    risen = np.exp(np.clip(belief.mean + variance / 2, -20, 20))
    rise = risen * _below((belief.mean + variance - belief.best) / deviation)
    rise -= np.exp(belief.best) * _below((belief.mean - belief.best) / deviation)
    return np.where(belief.tried, -1.0, np.maximum(rise, 0.0))


def _below(z: NDArray[np.float64]) -> NDArray[np.float64]:
    """Compute the normal distribution function Phi within 2e-4; see ``search``."""
    z = np.clip(z, -8.0, 8.0)
    return np.asarray(1.0 / (1.0 + np.exp(-1.5976 * z - 0.07056 * z**3)))


def _first_covariance(taus: Sequence[float]) -> NDArray[np.float64]:
    """Compute the covariance of T gains before anything was measured."""
    apart = np.subtract.outer(np.array(taus), np.array(taus)) / _LENGTH
    shared = _VARIANCE * np.exp(-0.5 * apart**2)
    return np.asarray(shared + _OWN_VARIANCE * np.eye(len(taus)))


def _unit(values: Floats) -> Floats:
    """Centre and scale to unit length, so that a product of two is their correlation."""
    away = values - values.mean()
    return np.asarray(away / (np.linalg.norm(away) + 1e-9), np.float32)
