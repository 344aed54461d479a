"""Track the best threshold of a video's maps with a few evaluations a frame.

The gains of a class's thresholds are modelled as a Gaussian, as in ``search``, that changes from
frame to frame. A frame starts from the Gaussian of the last frame with the same class, widened the
more the map has changed since. Each evaluation goes to the threshold with the largest expected
rise of the probability, and its result updates the Gaussian, until no rise is worth an evaluation.
A map like the last one takes one or two evaluations, a new scene or class as many as a sweep.

Symbols: gains y_t = logit p(masked at tau_t) - logit p(whole frame), t = 1 ... T. From one frame
to the next, with rho in [0, 1],

    y' ~ Normal(mu + rho (y - mu), rho^2 C + (1 - rho^2) S)

where C is the covariance of y after the last frame's evaluations, and mu and S are mean and
covariance over all frames, updated with each.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .. import search, tft
from ..errors import RequestError
from ..search import Belief
from ..sweep import Choice, Classify, Floats, Request, count_kept, make_choice, mask_input
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


@dataclass(frozen=True, eq=False)
class _Remembered:
    """The Gaussian of a class after the last frame that it was explained in.

    Attributes:
        mean, covariance: of its gains, float64 [T] and [T, T].
        map: of that frame, centred and scaled to unit length, float32 [H, W].
    """

    mean: NDArray[np.float64]
    covariance: NDArray[np.float64]
    map: Floats


class Tracker:
    """Chooses the threshold of each frame of a video, as the module says.

    Attributes:
        evaluations: evaluations of the network for the last frame.

    Args:
        classify: runs the network.
        budget: evaluations a frame, on average; if not below the number of thresholds, every
            frame is swept in full.
    """

    def __init__(self, classify: Classify, budget: float = EVALUATIONS) -> None:
        if not budget >= 1:
            raise RequestError(f"a tracker needs 1 evaluation a frame or more, not {budget}")
        self.evaluations = 0
        self._classify, self._budget = classify, budget
        self.reset()

    def reset(self) -> None:
        """Forget all frames, as for another source or another method."""
        self._settings: Tft | None = None
        self._classes: OrderedDict[int, _Remembered] = OrderedDict()
        self._last: _Remembered | None = None
        self._worth = 0.02  # the expected rise of rpi that is worth an evaluation

    def choose(self, request: Request, settings: Tft) -> Choice:
        """Choose the threshold of the next frame.

        Args:
            request: the frame's map.
            settings: the reading of TFT, and the thresholds; ``evaluations`` is ignored.

        Returns:
            As from ``sweep``; rpi is NaN where a threshold was not evaluated.
        """
        is_first = settings != self._settings
        if is_first:
            self.reset()
            self._settings = settings
            self._mu = np.zeros(len(settings.taus))
            self._s = _first_covariance(settings.taus)
        unit = _unit(request.map)
        belief = self._expected(request.target, unit)
        full = is_first or self._budget >= len(settings.taus)
        masked, belief = self._evaluate(request, settings, belief, full)
        if not full:
            self._worth *= float(np.exp(_STEERING * (self.evaluations - self._budget)))
            self._worth = min(max(self._worth, 1e-5), 1e5)
        self._remember(request.target, _Remembered(belief.mean, belief.covariance, unit))
        probability = np.asarray(request.probability, np.float32)
        rpi = tft.relative_probability_increase(masked, probability)
        return make_choice(request.map, rpi, masked, settings)

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

    def _evaluate(
        self, request: Request, settings: Tft, belief: Belief, full: bool
    ) -> tuple[Floats, Belief]:
        """Evaluate thresholds while one is worth it; return probabilities, NaN elsewhere."""
        steps = len(settings.taus)
        cuts = tft.cut_values(request.map, settings.taus, settings.thresholds)
        masked = np.full(steps, np.nan, np.float32)
        whole = search.logit(np.float64(request.probability))
        known: dict[int, int] = {}  # pixels kept: the step that kept them
        self.evaluations = 0
        while not belief.tried.all():
            rise = expected_rise(belief)
            step = int(rise.argmax())
            if not full and self.evaluations and rise[step] < self._worth:
                break
            same = known.setdefault(int(count_kept(request.map, cuts[step])), step)
            if same == step:
                image = mask_input(request, cuts[step], settings)
                masked[step] = self._classify(image[None])[0, request.target]
                self.evaluations += 1
            else:
                masked[step] = masked[same]
            gain = search.logit(np.float64(masked[step])) - whole
            belief = search.observe(belief, np.eye(steps)[step], gain, _NOISE)
        return masked, belief

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
