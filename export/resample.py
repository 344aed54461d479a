"""Record preprocessing in the graph: from an RGB image of any size to the network's input.

ONNX's Resize with antialias is not portable (one engine ignores the attribute, another rejects it).
Resampling is linear and separable, so two matrix products do it, with weights that the graph
computes from the image's size. Rounding is Pillow's, which training pipelines use: along rows
first, to integers in 0 .. 255, then along columns. (From version 13 on Pillow resizes columns first
where an image shrinks far more in height than in width; where a bicubic filter overshoots, the
clipping in between then differs.)

The weights are written against the array API: with NumPy for images of one known size, where they
are constants, and recorded where sizes are known at run time only.
"""

from __future__ import annotations

import math
from typing import Any

import array_api_compat
import numpy as np
import onnx_ir as ir

from ..runtime.errors import ExportError
from ..runtime.input_format import Interpolation, Layout, Preprocess
from .dims import Size
from .recorder import Namespace, Recorder
from .tensors import Tensor

Array = Any
_GREY = np.array([19595, 38470, 7471], np.float32)  # of 65536, as Pillow weighs red, green, blue


def check_embeddable(spec: Preprocess) -> None:
    """Refuse preprocessing that no graph does: nearest pixels, letterboxes, OpenCV's resize.

    Raises:
        ExportError: the preprocessing is one of these.
    """
    if spec.letterbox is not None or not spec.antialias:
        raise ExportError(
            "preprocessing inside the graph resizes with antialias and crops, and this network's "
            f"is {'a letterbox' if spec.letterbox is not None else 'a resize without antialias'}: "
            "export it without --embed-preprocess"
        )
    if spec.interpolation not in _FILTERS:
        raise ExportError(
            f"preprocessing inside the graph cannot be '{spec.interpolation}', which "
            f"depends on rounding; choose from: {', '.join(_FILTERS)}"
        )


def record_preprocess(
    recorder: Recorder,
    image: Tensor,
    spec: Preprocess,
    layout: Layout = "NCHW",
    size: tuple[int, int] | None = None,
) -> Tensor:
    """Record resizing, crop and normalisation as in ``runtime.preprocess``.

    Args:
        recorder: of the graph.
        image: uint8 [N, h, w, 3], RGB.
        spec: how images are prepared.
        layout: of the network's input.
        size: (h, w) of every image, with which weights are constants and cropped pixels are never
            resized; None for any size.

    Returns:
        float32 [N, C, H, W], or [N, H, W, C].
    """
    check_embeddable(spec)
    x = image.cast(ir.DataType.FLOAT)  # first, for TensorRT supports nothing else with uint8
    if size is not None:
        (top, rows), (left, columns) = (_trim(each) for each in _compute_weights(spec, size))
        x = x[:, top : top + rows.shape[1], left : left + columns.shape[1]]
        down = recorder.constant(rows)
        across = recorder.constant(np.ascontiguousarray(columns.T))
    else:
        down, across = _record_weights(recorder, spec)
        across = recorder.xp.matrix_transpose(across)
    x = x.transpose((0, 3, 1, 2))
    x = _round_to_uint8(down @ _round_to_uint8(x @ across))
    x = _convert_color(recorder, x, spec)
    mean, std = (
        recorder.constant(np.asarray(values, np.float32)[:, None, None])
        for values in (spec.mean, spec.std)
    )
    x = (x / 255.0 - mean) / std
    return x.transpose((0, 2, 3, 1)) if layout == "NHWC" else x


def _convert_color(recorder: Recorder, x: Tensor, spec: Preprocess) -> Tensor:
    """Convert RGB planes [N, 3, H, W] to the network's channels."""
    if spec.color == "BGR":
        order = recorder.constant(np.array([2, 1, 0], np.int64))
        return recorder.op("Gather", [x, order], x.shape, axis=1)
    if spec.color == "L":
        weighted = (x * recorder.constant(_GREY[:, None, None])).sum(1, keepdims=True)
        return recorder.xp.floor((weighted + 32768.0) / 65536.0)
    return x


def _compute_weights(spec: Preprocess, size: tuple[int, int]) -> list[np.ndarray]:
    full = [np.asarray(side, np.int64) for side in size]
    return [
        weights(np.arange(n), whole, new, kept, spec.interpolation)
        for n, whole, new, kept in zip(size, full, resized(full, spec), spec.size, strict=True)
    ]


def _record_weights(recorder: Recorder, spec: Preprocess) -> list[Tensor]:
    full = [recorder.symbols[symbol].reshape(()) for symbol in ("h", "w")]
    return [
        weights(recorder.range(Size(1, (symbol,))), whole, new, kept, spec.interpolation)
        for symbol, whole, new, kept in zip(
            ("h", "w"), full, resized(full, spec), spec.size, strict=True
        )
    ]


def _trim(matrix: np.ndarray) -> tuple[int, np.ndarray]:
    """Crop a matrix to the source pixels with weights; returns the first of them as well."""
    used = np.flatnonzero(matrix.any(axis=0))
    first, last = int(used[0]), int(used[-1]) + 1
    return first, np.ascontiguousarray(matrix[:, first:last])


def _round_to_uint8(values: Tensor) -> Tensor:
    """Round half up and clip to 0 .. 255, as a uint8 image between two passes."""
    xp: Namespace = values.recorder.xp
    return xp.clip(xp.floor(values + 0.5), 0.0, 255.0)


def resized(full: list[Array], spec: Preprocess) -> list[Array]:
    """Compute the size before the crop, as ``runtime.preprocess`` does; int64 scalars."""
    if not spec.resize:
        return full
    xp = array_api_compat.array_namespace(full[0])
    if len(spec.resize) == 2:
        return [xp.asarray(side, dtype=xp.int64) for side in spec.resize]
    (short,) = spec.resize
    height, width = full
    shorter = xp.minimum(height, width)
    return [(short * side) // shorter for side in (height, width)]


def _start(new: Array, kept: int) -> Array:
    """Compute where a centred window begins; halves round to even, as in Python."""
    xp = array_api_compat.array_namespace(new)
    excess = xp.maximum(new - kept, xp.asarray(0, dtype=xp.int64))
    lack = xp.maximum(kept - new, xp.asarray(0, dtype=xp.int64))
    half = excess // 2
    even = 2 * ((excess + 1) // 4)
    inside = xp.where(excess == 2 * half, half, even)
    return inside - lack // 2


def weights(
    source: Array, full: Array, new: Array, kept: int, interpolation: Interpolation
) -> Array:
    """Compute the weight of each source pixel in each resized one, along one axis.

    Args:
        source: the source pixels' indices, int64 [n].
        full: how many pixels the image has along this axis, int64 scalar.
        new: how many it is resized to, int64 scalar.
        kept: how many of these, from the centre, are kept.
        interpolation: the filter.

    Returns:
        float32 [kept, n]; rows sum to 1, or to 0 outside the image.
    """
    xp = array_api_compat.array_namespace(source)
    place = xp.arange(kept) + _start(new, kept)
    # Pixel centres in units of 1 / (2 new) source pixels are integers, hence exact.
    centre = (2 * place + 1)[:, None] * full
    distance = centre - (2 * source + 1) * new
    # Shrinking widens the filter: that is the antialias.
    unit = 2 * xp.maximum(full, new)
    away = xp.astype(xp.abs(distance), xp.float32) / xp.astype(unit, xp.float32)
    weighted = _FILTERS[interpolation](away)
    total = xp.sum(weighted, axis=-1, keepdims=True)
    weighted = weighted / xp.where(total == 0.0, 1.0 + total, total)
    inside = (place >= 0) & (place < new)
    return xp.where(inside[:, None], weighted, 0.0 * weighted)


def _triangle(u: Array) -> Array:
    xp = array_api_compat.array_namespace(u)
    return xp.clip(1.0 - u, min=0.0)


def _cubic(u: Array) -> Array:
    """Keys' cubic convolution with a = -1/2, u >= 0."""
    xp = array_api_compat.array_namespace(u)
    near = (1.5 * u - 2.5) * u * u + 1.0
    far = ((-0.5 * u + 2.5) * u - 4.0) * u + 2.0
    return xp.where(u < 1.0, near, xp.where(u < 2.0, far, 0.0 * u))


def _lanczos(u: Array) -> Array:
    """sinc(u) sinc(u / 3) within three pixels, u >= 0."""
    xp = array_api_compat.array_namespace(u)
    t = math.pi * u
    zero = t == 0.0
    inside = 3.0 * xp.sin(t) * xp.sin(t / 3.0) / xp.where(zero, 1.0 + t, t * t)
    inside = xp.where(zero, 1.0 + 0.0 * t, inside)
    return xp.where(u < 3.0, inside, 0.0 * u)


_FILTERS = {"bilinear": _triangle, "bicubic": _cubic, "lanczos": _lanczos}
