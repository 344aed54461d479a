"""Class activation maps: activations and gradients in, maps in [0, 1] out.

Written against the Python array API standard, so the same lines run on NumPy arrays and are
recorded as operators when export writes a graph. Symbols follow the paper (section 2.4):
activations A [N, K, h, w], gradients G = d score_c / d A [N, k, K, h, w] for k explained classes
an image, weights alpha [N, k, K], raw maps [N, k, h, w].
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Literal, get_args

import array_api_compat
import numpy as np

Array = Any
Method = Literal[
    "cam",
    "gradcam",
    "gradcam++",
    "layercam",
    "ablation",
    "scorecam",
    "hirescam",
    "xgradcam",
    "legrad",
]
METHODS: tuple[Method, ...] = get_args(Method)
# Those that sum activations; the others read attention maps, which are no raw outputs.
ACTIVATION_METHODS: tuple[Method, ...] = tuple(m for m in METHODS if m != "legrad")
Score = Literal["logit", "prob"]

# Below this part of a map's magnitude, differences are float32 rounding: the map is constant.
_CONSTANT = 1e-6
_NORMAL = 1.1754943508222875e-38  # the smallest normal float32
_EPS = 1e-7
_GAMMA = 2.0  # of Layer-CAM's fusion, as published


def raw_map(
    method: Method, activations: Array, gradients: Array, weights: Array | None = None
) -> Array:
    """Sum the activations by their weights: phi(sum_k alpha_k A_k) (paper equation 3).

    Args:
        method: one of ``ACTIVATION_METHODS``.
        activations: A, float [N, K, h, w].
        gradients: G, float [N, k, K, h, w]; unused by ``ablation`` and ``scorecam``.
        weights: alpha, float [N, k, K], for the methods that do not take it from the gradients.

    Returns:
        float [N, k, h, w], not normalised; no negative values, but for ``cam``.
    """
    raw = signed_map(method, activations, gradients, weights)
    return raw if method == "cam" else _relu(raw)


def signed_map(
    method: Method, activations: Array, gradients: Array, weights: Array | None = None
) -> Array:
    """Sum the activations by their weights, as ``raw_map`` does before it drops negative values."""
    if method == "layercam":  # Jiang et al. 2021: weights per element
        return (_relu(gradients) * activations[:, None, ...]).sum(-3)
    if method == "hirescam":  # Draelos and Carin 2020: gradients element-wise, not averaged
        return (gradients * activations[:, None, ...]).sum(-3)
    alpha = weights if weights is not None else channel_weights(method, activations, gradients)
    n, channels, height, width = activations.shape
    summed = alpha @ activations.reshape((n, channels, height * width))
    return summed.reshape((n, alpha.shape[1], height, width))


def attention_relevance(gradients: Array) -> Array:
    """Compute the relevance of each key of attention maps (LeGrad, Bousselham et al. 2024).

    r_j = mean over heads h and queries i of ReLU(G_hij), with G = d score_c / d P and P the
    attention probabilities, [N, heads, queries, keys].

    Args:
        gradients: G, float [N, k, keys, heads, queries].

    Returns:
        float [N, k, keys], no negative values; those of places make the raw map.
    """
    xp = array_api_compat.array_namespace(gradients)
    return xp.mean(_relu(gradients), axis=(-2, -1))


def fuse(raws: Sequence[Array]) -> Array:
    """Fuse Layer-CAM's maps of several layers into one (Jiang et al. 2021, equation 9).

    Each map is divided by its largest value and compressed by tanh(2 x), so that a layer with one
    high peak does not hide the others, then resized to the finest layer. The maximum is taken.

    Args:
        raws: float [N, k, h, w], one for each layer, no negative values.

    Returns:
        float [N, k, h, w] of the finest layer, in [0, 1).
    """
    xp = array_api_compat.array_namespace(raws[0])
    size = finest([tuple(int(side) for side in raw.shape[-2:]) for raw in raws])
    fused = None
    for raw in raws:
        peak = xp.max(raw, axis=(-2, -1), keepdims=True)
        zero = peak <= 0.0
        unit = xp.where(zero, 0.0 * raw, raw / xp.where(zero, 1.0 + peak, peak))
        compressed = resize(xp.tanh(_GAMMA * unit), size)
        fused = compressed if fused is None else xp.maximum(fused, compressed)
    return fused


def add_levels(raws: Sequence[Array]) -> Array:
    """Add raw maps of the levels of a pyramid, resized to the finest one.

    Gradients of one score are comparable from level to level, so that a level which the score does
    not depend on adds nothing.

    Args:
        raws: float [N, k, h, w], one for each level.

    Returns:
        float [N, k, h, w] of the finest level.
    """
    size = finest([tuple(int(side) for side in raw.shape[-2:]) for raw in raws])
    total = resize(raws[0], size)
    for raw in raws[1:]:
        total = total + resize(raw, size)
    return total


def finest(sizes: Sequence[tuple[int, ...]]) -> tuple[int, int]:
    """Return (h, w) of the finest of several layers."""
    return max(size[-2] for size in sizes), max(size[-1] for size in sizes)


def channel_weights(method: Method, activations: Array, gradients: Array) -> Array:
    """Compute the weights alpha_k that a method takes from the gradients.

    - ``cam`` (Zhou et al. 2016): alpha_k = W[c, k]. Behind global average pooling and a linear
      layer G = W[c, k] / (h w) everywhere, so its sum is W[c, k].
    - ``gradcam`` (Selvaraju et al. 2017): alpha_k = mean_ij G.
    - ``gradcam++`` (Chattopadhay et al. 2018): alpha_k = sum_ij a ReLU(G) with
      a = G^2 / (2 G^2 + (sum_ij A_k) G^3 + 1e-6), and a = 0 where G = 0.
    - ``xgradcam`` (Fu et al. 2020): alpha_k = sum_ij (A_k / sum_ij A_k) G.

    Returns:
        float [N, k, K].
    """
    xp = array_api_compat.array_namespace(activations, gradients)
    if method == "gradcam":
        return xp.mean(gradients, axis=(-2, -1))
    if method == "cam":
        return xp.sum(gradients, axis=(-2, -1))
    total = xp.sum(activations, axis=(-2, -1))[:, None, :, None, None]
    if method == "xgradcam":
        share = activations[:, None, ...] / (total + _EPS)
        return xp.sum(share * gradients, axis=(-2, -1))
    if method == "gradcam++":
        square = gradients * gradients
        denominator = 2.0 * square + total * square * gradients + 1e-6
        zero = gradients == 0.0
        a = xp.where(zero, 0.0 * square, square / xp.where(zero, 1.0 + square, denominator))
        return xp.sum(a * _relu(gradients), axis=(-2, -1))
    raise ValueError(f"{method} does not take its weights from the gradients")


def ablation_weights(
    logits: Array, drops: Array, selected: Array, score: Score, independent: bool = False
) -> Array:
    """Compute Ablation-CAM's weights (Desai and Ramaswamy 2020): alpha_k = (y - y_k) / y.

    y is the explained class's score and y_k the same with channel k of A set to zero. For
    probabilities, with odds o_j = exp(z_j - z_c) and r_j = exp(d_c - d_j), d_j what a logit loses,
    this is sum_j o_j (r_j - 1) / (1 + sum_j o_j r_j) over j != c: a form that keeps its digits
    where y is all but 1. The probability of an independent label, a sigmoid, has one other outcome:
    o = exp(-z_c) and r = exp(d_c).

    Args:
        logits: z, float [N, C].
        drops: d, what each logit loses without channel k, float [N, K, C].
        selected: one-hot of the explained classes, float [N, k, C].
        score: ``prob`` (the paper) or ``logit``.
        independent: whether probabilities are sigmoids of independent labels, not a softmax.

    Returns:
        float [N, k, K]; 0 where y is 0.
    """
    xp = array_api_compat.array_namespace(logits, drops)
    y = xp.sum(logits[:, None, :] * selected, axis=-1, keepdims=True)
    own_drop = selected @ xp.matrix_transpose(drops)
    if score == "logit":
        zero = y == 0.0
        return xp.where(zero, 0.0 * own_drop, own_drop / xp.where(zero, 1.0 + y, y))
    if independent:
        rest = xp.exp(xp.clip(-y, max=40.0))
        grown = xp.exp(xp.clip(own_drop, max=40.0))
        return rest * (grown - 1.0) / (1.0 + rest * grown)
    # exp(40) squared is finite in float32; a class that far behind has probability 1e-18. Below
    # exp(-80) numbers become subnormal, with which processors count fifteen times as slowly.
    odds = xp.exp(xp.clip(logits[:, None, :] - y, min=-80.0, max=40.0)) * (1.0 - selected)
    ratio = xp.exp(xp.clip(own_drop[..., None] - drops[:, None, :, :], max=40.0))
    gain = ((ratio - 1.0) @ odds[..., None])[..., 0]
    return gain / (1.0 + (ratio @ odds[..., None])[..., 0])


def finish(raw: Array, size: tuple[Any, Any]) -> Array:
    """Resize raw maps [..., h, w] to [..., H, W] and scale each to [0, 1] by its range.

    A constant map comes out all zero; so does one whose differences are no more than float32
    rounding of its magnitude. Non-finite values count as zero: NaN never comes out.
    """
    xp = array_api_compat.array_namespace(raw)
    raw = xp.where(xp.isfinite(raw), raw, 0.0)
    # Unit magnitude first: what a map shows must not depend on the scale of the gradients.
    magnitude = xp.max(xp.abs(raw), axis=(-2, -1), keepdims=True)
    raw = raw / xp.clip(magnitude, min=_NORMAL)
    low = xp.min(raw, axis=(-2, -1), keepdims=True)
    spread = xp.max(raw, axis=(-2, -1), keepdims=True) - low
    unit = xp.where(spread <= _CONSTANT, 0.0, (raw - low) / xp.clip(spread, min=_CONSTANT))
    maps = resize(unit, size)
    low = xp.min(maps, axis=(-2, -1), keepdims=True)
    high = xp.max(maps, axis=(-2, -1), keepdims=True)
    return (maps - low) / (high - low + _EPS)  # at most 1, for the divisor is the larger


def resize(maps: Array, size: tuple[Any, Any]) -> Array:
    """Resize maps [..., h, w] to [..., H, W]: bilinear, half-pixel centres, no antialias.

    The same numbers as OpenCV's ``INTER_LINEAR`` and torch's ``bilinear`` without
    ``align_corners``; two matrix products, which any engine runs.
    """
    xp = array_api_compat.array_namespace(maps)
    height, width = maps.shape[-2:]
    if not all(isinstance(side, int) for side in (height, width, *size)):
        down, across = (
            _recorded_enlarging(xp, height, size[0]),
            _recorded_enlarging(xp, width, size[1]),
        )
        return down @ maps @ xp.matrix_transpose(across)
    rows, columns = _enlarging(height, size[0]), _enlarging(width, size[1])
    device = array_api_compat.device(maps)
    left = xp.asarray(rows, dtype=maps.dtype, device=device)
    right = xp.asarray(columns.T, dtype=maps.dtype, device=device)
    return left @ maps @ right


def _recorded_enlarging(xp: Any, size: Any, wanted: Any) -> Array:
    """Compute ``_enlarging`` in a graph that learns lengths at run time: float32 [wanted, size]."""
    before, after = (xp.asarray(length, dtype=xp.float32) for length in (size, wanted))
    places = (xp.astype(xp.arange(wanted), xp.float32) + 0.5) * (before / after) - 0.5
    held = xp.minimum(xp.maximum(places, 0.0), before - 1.0)
    away = xp.abs(held[:, None] - xp.astype(xp.arange(size), xp.float32))
    return xp.clip(1.0 - away, min=0.0)


@lru_cache(maxsize=32)
def _enlarging(size: int, wanted: int) -> np.ndarray:
    """The same for every map of a network: float64 [wanted, size]."""
    return interpolation_matrix(size, (np.arange(wanted) + 0.5) * (size / wanted) - 0.5)


def interpolation_matrix(size: int, positions: np.ndarray) -> np.ndarray:
    """Build the matrix that interpolates linearly at ``positions``, with the edges held.

    Returns:
        float64 [len(positions), size]; each row sums to 1.
    """
    clipped = np.clip(positions, 0.0, size - 1.0)
    below = np.minimum(np.floor(clipped).astype(np.int64), max(size - 2, 0))
    fraction = clipped - below
    matrix = np.zeros((len(positions), size))
    rows = np.arange(len(positions))
    matrix[rows, below] = 1.0 - fraction
    matrix[rows, np.minimum(below + 1, size - 1)] += fraction
    return matrix


def _relu(x: Array) -> Array:
    xp = array_api_compat.array_namespace(x)
    return xp.clip(x, min=0.0)
