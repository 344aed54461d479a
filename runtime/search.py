"""Search the best of T thresholds with k < T evaluations, from a Gaussian prior learnt beforehand.

Each evaluation goes to the threshold with the largest expected improvement, and its result updates
the Gaussian, as in efficient global optimisation (Jones, Schonlau and Welch 1998, "Efficient
global optimization of expensive black-box functions", sections 3 and 4). Array API arithmetic, as
in ``cam``: the same lines run on NumPy arrays and are recorded as operators of a graph.

Symbols: gains y_t = logit p(masked at tau_t) - logit p(whole image), t = 1 ... T; features f of
the map and p (F numbers); prior y ~ Normal(B^T f, S). All functions take any leading axes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import array_api_compat
import msgspec

from .cam import METHODS, Method
from .errors import RequestError
from .tft import Array, Mask, Tft, Thresholds, are_thresholds

_SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
FEATURES = 3 + len(_SHARES) + 2
_LEAST = 1e-6  # probabilities are held this far from 0 and 1 before their logit is taken
_NOISE = 1e-2  # variance of a measured gain: float32 rounding leaves that much where p is near 1
_LEAST_VARIANCE = 1e-6
# Expected improvements closer than this count as equal, so that rounding does not decide.
_TIE, _TIE_SHARE = 1e-6, 1e-4


class Prior(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The distribution of a map's gains before any threshold is evaluated, learnt from images.

    Attributes:
        method: of the maps.
        mask, thresholds: the reading of TFT.
        taus: the T thresholds, increasing.
        mean, scale: by which the F features are standardised.
        coefficients: B [F][T].
        covariance: S [T][T].
        images: number of images that it was learnt from.
    """

    method: Method
    mask: Mask
    thresholds: Thresholds
    taus: tuple[float, ...]
    mean: tuple[float, ...]
    scale: tuple[float, ...]
    coefficients: tuple[tuple[float, ...], ...]
    covariance: tuple[tuple[float, ...], ...]
    images: int

    def __post_init__(self) -> None:
        if self.method not in METHODS or not are_thresholds(self.taus):
            raise ValueError(f"a prior of method {self.method!r} for the thresholds {self.taus}")
        if self.mask not in ("binary", "soft") or self.thresholds not in ("value", "rank"):
            raise ValueError(f"a prior for mask {self.mask!r}, thresholds {self.thresholds!r}")
        count = len(self.taus)
        widths = {len(row) for row in (*self.coefficients, *self.covariance)}
        heights = (len(self.coefficients), len(self.covariance), len(self.mean), len(self.scale))
        if widths != {count} or heights != (FEATURES, count, FEATURES, FEATURES):
            raise ValueError(f"a prior for {count} thresholds and {FEATURES} features has others")
        rows = (self.mean, self.scale, *self.coefficients, *self.covariance)
        if not all(math.isfinite(number) for row in rows for number in row):
            raise ValueError("a prior with NaN or infinite numbers")
        if min(self.scale) <= 0 or min(self.covariance[t][t] for t in range(count)) <= 0:
            raise ValueError("a prior with a scale or variance that is not positive")


def prior_for(priors: Iterable[Prior], method: str, settings: Tft) -> Prior:
    """Find the prior that a search needs.

    Raises:
        RequestError: none was learnt for this method in this reading.
    """
    known: dict[tuple[str, str, str], Prior] = {
        (one.method, one.mask, one.thresholds): one for one in priors
    }
    prior = known.get((method, settings.mask, settings.thresholds))
    if prior is not None:
        return prior
    learnt = ", ".join(f"{name} ({mask}, {by})" for name, mask, by in known) or "none"
    raise RequestError(
        f"evaluations={settings.evaluations} needs a prior of '{method}', mask {settings.mask}, "
        f"thresholds {settings.thresholds}, and the file has none; learnt: {learnt}. Run: whycam "
        f"calibrate thresholds MODEL DATA --method {method} --mask {settings.mask} --thresholds "
        f"{settings.thresholds}"
    )


@dataclass(frozen=True)
class Belief:
    """The Gaussian of the gains of some maps, given the thresholds evaluated so far.

    Attributes:
        mean: of y, float [..., T].
        covariance: of y, float [..., T, T].
        tried: which thresholds were evaluated, bool [..., T].
        best: the largest measured gain, at least 0 (that of the whole map), float [...].
    """

    mean: Array
    covariance: Array
    tried: Array
    best: Array


def features(maps: Array, probability: Array) -> Array:
    """Compute the features that predict gains: logit p, shares of the map, mean, spread.

    Args:
        maps: float [..., H, W] in [0, 1].
        probability: p of the explained class for the whole image, float [...].

    Returns:
        float [..., F]: the shares are of pixels >= 0.1, 0.2, ... 0.9.
    """
    xp = array_api_compat.array_namespace(maps, probability)
    whole = logit(probability)
    mean = xp.mean(maps, axis=(-2, -1))
    away = maps - mean[..., None, None]
    shares = [xp.mean(xp.astype(maps >= edge, maps.dtype), axis=(-2, -1)) for edge in _SHARES]
    spread = xp.sqrt(xp.mean(away * away, axis=(-2, -1)))
    one = 0.0 * whole + 1.0
    return xp.stack([one, whole, whole * whole / 10.0, *shares, mean, spread], axis=-1)


def logit(probability: Array) -> Array:
    """Compute log(p / (1 - p)), with p held in [1e-6, 1 - 1e-6]."""
    xp = array_api_compat.array_namespace(probability)
    clipped = xp.clip(probability, _LEAST, 1.0 - _LEAST)
    return xp.log(clipped / (1.0 - clipped))


def begin(prior: Prior, features: Array) -> Belief:
    """Begin with the prior: mean B^T f, covariance S, of the features f [..., F]."""
    xp = array_api_compat.array_namespace(features)

    def constant(values: Sequence[float] | Sequence[Sequence[float]]) -> Array:
        return xp.asarray(values, dtype=features.dtype, device=array_api_compat.device(features))

    standard = (features - constant(prior.mean)) / constant(prior.scale)
    mean = standard @ constant(prior.coefficients)
    zero = 0.0 * mean
    return Belief(mean, zero[..., None] + constant(prior.covariance), zero > 0.5, zero[..., 0])


def expected_improvement(belief: Belief) -> Array:
    """Compute E[max(y - best, 0)] in logits (Jones et al. 1998); -1 where evaluated already.

    With d = mean - best and s the standard deviation, d Phi(d / s) + s phi(d / s). Phi is taken
    as 1 / (1 + exp(-1.5976 z - 0.07056 z^3)), which is within 2e-4 (Page 1977): no array API and
    few engines have erf.

    Returns:
        float [..., T].
    """
    xp = array_api_compat.array_namespace(belief.mean)
    steps = belief.mean.shape[-1]
    index = xp.arange(steps, device=array_api_compat.device(belief.mean))
    diagonal = xp.astype(index[:, None] == index, belief.mean.dtype)
    variance = xp.sum(belief.covariance * diagonal, axis=-1)
    deviation = xp.sqrt(xp.clip(variance, min=_LEAST_VARIANCE))
    ahead = belief.mean - belief.best[..., None]
    z = xp.clip(ahead / deviation, -8.0, 8.0)
    below = 1.0 / (1.0 + xp.exp(-1.5976 * z - 0.07056 * z * z * z))
    density = xp.exp(-0.5 * z * z) * (1.0 / math.sqrt(2.0 * math.pi))
    return xp.where(belief.tried, -1.0, ahead * below + deviation * density)


def next_step(belief: Belief) -> Array:
    """Choose the next threshold: one-hot float [..., T] of the largest expected improvement."""
    xp = array_api_compat.array_namespace(belief.mean)
    expected = expected_improvement(belief)
    largest = xp.max(expected, axis=-1, keepdims=True)
    good = expected >= largest - (_TIE + _TIE_SHARE * xp.abs(largest))
    good = good & ~belief.tried
    steps = expected.shape[-1]
    index = xp.arange(steps, device=array_api_compat.device(expected))
    first = xp.min(xp.where(good, index, steps), axis=-1, keepdims=True)
    return xp.astype(index == first, expected.dtype)


def observe(belief: Belief, step: Array, gain: Array, noise: float = _NOISE) -> Belief:
    """Condition the Gaussian on one measured gain.

    Args:
        belief: before the measurement.
        step: the threshold, one-hot float [..., T].
        gain: y at that threshold, float [...].
        noise: variance of the measurement.
    """
    xp = array_api_compat.array_namespace(belief.mean)
    column = xp.sum(belief.covariance * step[..., None, :], axis=-1)
    variance = xp.sum(column * step, axis=-1) + noise
    weights = column / variance[..., None]
    surprise = gain - xp.sum(belief.mean * step, axis=-1)
    return Belief(
        mean=belief.mean + weights * surprise[..., None],
        covariance=belief.covariance - weights[..., :, None] * column[..., None, :],
        tried=belief.tried | (step > 0.5),
        best=xp.where(gain > belief.best, gain, belief.best),
    )
