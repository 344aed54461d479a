"""Fit the prior of a threshold search to sweeps of many images."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ..runtime import search
from ..runtime.cam import Method
from ..runtime.search import Prior
from ..runtime.sweep import Floats
from ..runtime.tft import Tft

Doubles = NDArray[np.float64]

_HELD_OUT = 4  # every fourth image is held out
_RIDGE = 100.0  # on standardised features
_JITTER = 1e-4  # added to the variances, so that the covariance can be inverted


@dataclass
class SweepRecord:
    """The sweeps of N images by one method in one reading of TFT; lists with an entry an image.

    Attributes:
        features: of the map, float32 [F].
        probability: of the explained class for the whole image.
        masked: of the explained class for the image under each threshold's mask, float32 [T].
    """

    features: list[Floats] = field(default_factory=list)
    probability: list[float] = field(default_factory=list)
    masked: list[Floats] = field(default_factory=list)

    def arrays(self) -> tuple[Floats, Floats, Floats]:
        """Stack the lists: features [N, F], probability [N], masked [N, T]."""
        return (
            np.stack(self.features),
            np.array(self.probability, np.float32),
            np.stack(self.masked),
        )


def is_held_out(index: int) -> bool:
    """Tell whether an image, by its place among the usable ones, is held out from fitting."""
    return index % _HELD_OUT == _HELD_OUT - 1


def held_out_mask(count: int) -> NDArray[np.bool_]:
    """Return for each of ``count`` images whether it is held out, bool [N]."""
    return np.array([is_held_out(index) for index in range(count)])


def fit_prior(record: SweepRecord, settings: Tft, method: Method) -> Prior:
    """Fit a prior to the images that are not held out.

    A ridge regression of the gains on the features, and the covariance of its residuals: B =
    argmin |Y - X B|^2 + 100 |B|^2 on standardised features X, the constant's row of B unpenalised;
    S = E^T E / N + 1e-4 I with E = Y - X B.
    """
    features, probability, masked = record.arrays()
    train = ~held_out_mask(len(probability))
    x = features[train].astype(np.float64)
    y = compute_gains(probability, masked)[train].astype(np.float64)
    mean, scale = x.mean(0), x.std(0)
    mean[0], scale[0] = 0, 1
    scale[scale < 1e-6] = 1  # a feature that is the same for all images predicts nothing
    x = (x - mean) / scale
    penalty = _RIDGE * np.eye(search.FEATURES)
    penalty[0, 0] = 0
    coefficients = np.linalg.solve(x.T @ x + penalty, x.T @ y)
    residuals = y - x @ coefficients
    covariance = residuals.T @ residuals / len(x) + _JITTER * np.eye(y.shape[1])
    return Prior(
        method=method,
        mask=settings.mask,
        thresholds=settings.thresholds,
        taus=settings.taus,
        mean=_round(mean),
        scale=_round(scale),
        coefficients=tuple(map(_round, coefficients)),
        covariance=tuple(map(_round, covariance)),
        images=len(x),
    )


def compute_gains(probability: Floats, masked: Floats) -> Floats:
    """Compute y = logit p(masked) - logit p, float32 [N, T], of [N] and [N, T] probabilities."""
    return np.asarray(search.logit(masked) - search.logit(probability)[..., None])


def _round(row: Doubles) -> tuple[float, ...]:
    return tuple(float(f"{value:.6g}") for value in row)
