"""Fine-tune thresholds (paper section 4.1): cut a map where the class gains most.

Array API arithmetic, as in ``cam``. Two readings of the paper exist and both are offered: its
equations (``mask="binary", thresholds="value"``) and its authors' code (``mask="soft",
thresholds="rank"``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, Literal

import array_api_compat
import msgspec

from .cam import Method
from .errors import RequestError

Array = Any
# (values [..., P], positions) to the values at these positions in increasing order, [..., T].
OrderStatistics = Callable[[Array, Sequence[int]], Array]
Mask = Literal["binary", "soft"]
Thresholds = Literal["value", "rank"]

# Paper table 1: the customary share of a map's pixels, lowest first, that each method sets to 0.
NAIVE: dict[Method, float] = {
    "gradcam": 0.85,
    "gradcam++": 0.50,
    "ablation": 0.80,
    "layercam": 0.85,
    "scorecam": 0.50,
}


class Tft(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Settings of TFT: its reading, and the thresholds to evaluate.

    Attributes:
        mask: by which the normalised image is multiplied. ``binary``: 1 where the thresholded map
            is not zero (equation 5); ``soft``: the thresholded map itself.
        thresholds: meaning of tau. ``value``: keep map values >= tau (equation 4); ``rank``: set
            the lowest share tau of the pixels to 0; pixels that tie with the last kept one stay.
        taus: the thresholds, increasing, in [0, 1). Ignored with ``evaluations``: a search has
            those of its prior.
        evaluations: None: evaluate every threshold. k: evaluate k of them, chosen by a search that
            needs ``whycam calibrate thresholds``, see ``search``.

    Example:
        >>> Tft().reading
        'binary mask, value thresholds'
        >>> Tft(mask="soft", thresholds="rank", taus=(0.0, 0.25, 0.5, 0.75)).reading
        'soft mask, rank thresholds'
    """

    mask: Mask = "binary"
    thresholds: Thresholds = "value"
    taus: tuple[float, ...] = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
    evaluations: int | None = None

    def __post_init__(self) -> None:
        if self.mask not in ("binary", "soft"):
            raise RequestError(f"mask must be 'binary' or 'soft', not {self.mask!r}")
        if self.thresholds not in ("value", "rank"):
            raise RequestError(f"thresholds must be 'value' or 'rank', not {self.thresholds!r}")
        if not are_thresholds(self.taus):
            raise RequestError(
                f"taus must be a tuple of increasing numbers from 0 to below 1, not {self.taus!r}"
            )
        if self.evaluations is not None and not _is_count(self.evaluations):
            raise RequestError(f"evaluations must be None or 1 or more, not {self.evaluations!r}")

    @property
    def reading(self) -> str:
        """Name the reading in words, as figures and tables do."""
        return f"{self.mask} mask, {self.thresholds} thresholds"


def _is_count(number: Any) -> bool:
    return isinstance(number, int) and not isinstance(number, bool) and number >= 1


def are_thresholds(taus: Any) -> bool:
    """Tell whether ``taus`` is a tuple of increasing numbers in [0, 1)."""
    if not isinstance(taus, tuple) or not taus:
        return False
    if not all(isinstance(tau, int | float) for tau in taus):
        return False
    increasing = all(a < b for a, b in pairwise(taus))
    return increasing and taus[0] >= 0 and taus[-1] < 1  # which NaN is not


def by_sorting(values: Array, positions: Sequence[int]) -> Array:
    """Pick the values at some positions in increasing order: [..., P] to [..., T]."""
    xp = array_api_compat.array_namespace(values)
    ordered = xp.sort(values, axis=-1)
    return xp.stack([ordered[..., position] for position in positions], axis=-1)


def cut_values(
    maps: Array,
    taus: tuple[float, ...],
    thresholds: Thresholds,
    order_statistics: OrderStatistics = by_sorting,
) -> Array:
    """Compute the map value at which each threshold cuts.

    Args:
        maps: float [..., H, W] in [0, 1].
        taus: T thresholds, increasing.
        thresholds: see ``Tft``.
        order_statistics: how to find values by position; not every engine can sort.

    Returns:
        float [..., T], not decreasing.
    """
    xp = array_api_compat.array_namespace(maps)
    lead = maps.shape[:-2]
    if thresholds == "value":
        device = array_api_compat.device(maps)
        values = xp.asarray(taus, dtype=maps.dtype, device=device)
        return xp.broadcast_to(values, (*lead, len(taus)))
    count = maps.shape[-2] * maps.shape[-1]
    return order_statistics(xp.reshape(maps, (*lead, count)), rank_positions(taus, count))


def rank_positions(taus: Sequence[float], count: int) -> list[int]:
    """Compute how many of ``count`` pixels each threshold by rank mutes."""
    # The small addend undoes products such as 0.29 * 100 = 28.999999999999996.
    return [int(count * tau + 1e-6) for tau in taus]


def threshold_map(maps: Array, cut: Array) -> Array:
    """Set map values below the cut to 0: I_tau (equation 4). maps [..., H, W], cut [...]."""
    xp = array_api_compat.array_namespace(maps)
    return xp.where(maps >= cut[..., None, None], maps, 0.0 * maps)


def mask_of(thresholded: Array, mask: Mask) -> Array:
    """Make the mask of the image: M_tau (equation 5), or the thresholded map itself."""
    if mask == "soft":
        return thresholded
    xp = array_api_compat.array_namespace(thresholded)
    return xp.astype(thresholded != 0.0, thresholded.dtype)


# What an increase is related to where the class is less probable: float32 ends at 1e-38.
LEAST_PROBABILITY = 1e-30


def relative_probability_increase(masked: Array, probability: Array) -> Array:
    """Compute max(y^ - y, 0) / y (equation 7). masked [..., T], probability [...]."""
    xp = array_api_compat.array_namespace(masked)
    y = xp.clip(probability[..., None], min=LEAST_PROBABILITY)
    return xp.clip(masked - probability[..., None], min=0.0) / y


# Relative to the masked probability: what two runs of one engine over one image may differ by, for
# their batches differ. Two thresholds closer than that are equally good.
_ROUNDING = 1e-5


def choose(rpi: Array) -> Array:
    """Choose tau* = argmax RPI: the first largest along the last axis (paper section 4.1).

    Differences of float32 rounding do not count, so that every engine and every batch size
    chooses the same. NaN: not tried. rpi float [..., T] to int64 [...].
    """
    xp = array_api_compat.array_namespace(rpi)
    rpi = _tried(rpi)
    largest = xp.max(rpi, axis=-1, keepdims=True)
    good = rpi >= largest - _ROUNDING * (1.0 + largest)
    index = xp.arange(rpi.shape[-1], device=array_api_compat.device(rpi))
    return xp.min(xp.where(good, index, rpi.shape[-1]), axis=-1)


def improves(rpi: Array) -> Array:
    """Tell whether some threshold raised the probability by more than rounding: to bool.

    NaN: not tried.
    """
    xp = array_api_compat.array_namespace(rpi)
    return xp.max(_tried(rpi), axis=-1) > _ROUNDING


def _tried(rpi: Array) -> Array:
    """Replace NaN by -1, which no comparison selects: an rpi is never negative."""
    xp = array_api_compat.array_namespace(rpi)
    return xp.where(rpi >= 0.0, rpi, -1.0)


def best(rpi: Array, cuts: Array, taus: tuple[float, ...]) -> tuple[Array, Array]:
    """Compute tau* and its cut, each [...]; 0 where no threshold improves.

    Args:
        rpi: float [..., T]; NaN: not tried.
        cuts: from ``cut_values``, float [..., T].
        taus: T thresholds.
    """
    xp = array_api_compat.array_namespace(rpi)
    device = array_api_compat.device(rpi)
    steps = xp.arange(len(taus), device=device)
    chosen = (choose(rpi)[..., None] == steps) & improves(rpi)[..., None]
    values = xp.asarray(taus, dtype=rpi.dtype, device=device)
    zero = 0.0 * cuts
    return (
        xp.sum(xp.where(chosen, values, zero), axis=-1),
        xp.sum(xp.where(chosen, cuts, zero), axis=-1),
    )
