"""Preprocessing inside the graph: an RGB image of any size becomes the network's input.

ONNX's own Resize with antialias is not portable (one engine ignores the attribute, another rejects
it). Resampling is linear and separable, so it is two matrix products whose weights the graph
computes from the image's size; its rounding is Pillow's, which training pipelines use: along
rows first, to whole numbers in 0 .. 255, then along columns. (From version 13 on Pillow turns that
order round where an image shrinks far more in height than in width; where a bicubic filter
overshoots, the clipping in between then falls elsewhere.)

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
from .recorder import Recorder, Tensor

Array = Any
_GREY = np.array([19595, 38470, 7471], np.float32)  # of 65536, as Pillow weighs red, green, blue


def check_interpolation(spec: Preprocess) -> None:
    """Refuse what has no portable form in a graph.

    Raises:
        ExportError: nearest interpolation.
    """
    if spec.interpolation not in _FILTERS:
        raise ExportError(
            f"preprocessing inside the graph cannot be '{spec.interpolation}': which source "
            f"pixel is nearest is a matter of rounding; choose from: {', '.join(_FILTERS)}"
        )


def record_preprocess(
    recorder: Recorder,
    image: Tensor,
    spec: Preprocess,
    layout: Layout = "NCHW",
    size: tuple[int, int] | None = None,
) -> Tensor:
    """Resize, crop and normalise, as ``runtime.preprocess`` does.

    Args:
        recorder: of the graph.
        image: uint8 [N, h, w, 3], RGB.
        spec: what to do.
        layout: of the network's input.
        size: (h, w) of every image; then weights are constants, and pixels that the crop leaves out
            are left out at once. None: any size.

    Returns:
        float32 [N, C, H, W], or [N, H, W, C].
    """
    check_interpolation(spec)
    x = image.cast(ir.DataType.FLOAT)  # first of all: TensorRT does nothing else with uint8
    if size is not None:
        (top, rows), (left, columns) = (_trimmed(each) for each in _constant_weights(spec, size))
        x = x[:, top : top + rows.shape[1], left : left + columns.shape[1]]
        down = recorder.constant(rows)
        across = recorder.constant(np.ascontiguousarray(columns.T))
    else:
        down, across = _recorded_weights(recorder, spec)
        across = recorder.xp.matrix_transpose(across)
    x = x.transpose((0, 3, 1, 2))
    x = _whole(down @ _whole(x @ across))
    x = _in_color(recorder, x, spec)
    mean, std = (
        recorder.constant(np.asarray(values, np.float32)[:, None, None])
        for values in (spec.mean, spec.std)
    )
    x = (x / 255.0 - mean) / std
    return x.transpose((0, 2, 3, 1)) if layout == "NHWC" else x


def _in_color(recorder: Recorder, x: Tensor, spec: Preprocess) -> Tensor:
    """RGB planes [N, 3, H, W] in the network's channels."""
    if spec.color == "BGR":
        order = recorder.constant(np.array([2, 1, 0], np.int64))
        return recorder.op("Gather", [x, order], x.shape, axis=1)
    if spec.color == "L":
        weighted = (x * recorder.constant(_GREY[:, None, None])).sum(1, keepdims=True)
        return recorder.xp.floor((weighted + 32768.0) / 65536.0)
    return x


def _constant_weights(spec: Preprocess, size: tuple[int, int]) -> list[np.ndarray]:
    full = [np.asarray(side, np.int64) for side in size]
    return [
        weights(np.arange(n), whole, new, wanted, spec.interpolation)
        for n, whole, new, wanted in zip(size, full, resized(full, spec), spec.size, strict=True)
    ]


def _recorded_weights(recorder: Recorder, spec: Preprocess) -> list[Tensor]:
    full = [recorder.symbols[symbol].reshape(()) for symbol in ("h", "w")]
    return [
        weights(recorder.range(symbol), whole, new, wanted, spec.interpolation)
        for symbol, whole, new, wanted in zip(
            ("h", "w"), full, resized(full, spec), spec.size, strict=True
        )
    ]


def _trimmed(matrix: np.ndarray) -> tuple[int, np.ndarray]:
    """The first source pixel that counts at all, and the matrix from there to the last one."""
    used = np.flatnonzero(matrix.any(axis=0))
    first, last = int(used[0]), int(used[-1]) + 1
    return first, np.ascontiguousarray(matrix[:, first:last])


def _whole(values: Tensor) -> Tensor:
    """Rounded half up and held in 0 .. 255, as a uint8 image between two passes is."""
    xp = values.recorder.xp
    return xp.clip(xp.floor(values + 0.5), 0.0, 255.0)


def resized(full: list[Array], spec: Preprocess) -> list[Array]:
    """The size before the crop, as ``runtime.preprocess.place`` finds it; int64 scalars."""
    if not spec.resize:
        return full
    xp = array_api_compat.array_namespace(full[0])
    if len(spec.resize) == 2:
        return [xp.asarray(side, dtype=xp.int64) for side in spec.resize]
    (short,) = spec.resize
    height, width = full
    shorter = xp.minimum(height, width)
    return [(short * side) // shorter for side in (height, width)]


def _start(new: Array, wanted: int) -> Array:
    """Where a centred window begins; halves are rounded to even, as Python's ``round`` does."""
    xp = array_api_compat.array_namespace(new)
    excess = xp.maximum(new - wanted, xp.asarray(0, dtype=xp.int64))
    lack = xp.maximum(wanted - new, xp.asarray(0, dtype=xp.int64))
    half = excess // 2
    even = 2 * ((excess + 1) // 4)
    inside = xp.where(excess == 2 * half, half, even)
    return inside - lack // 2


def weights(
    source: Array, full: Array, new: Array, wanted: int, interpolation: Interpolation
) -> Array:
    """Resampling along one axis, as a matrix: how much each source pixel adds to each one wanted.

    Args:
        source: the source pixels' indices, int64 [n].
        full: how many pixels the image has along this axis, int64 scalar.
        new: how many it is resized to, int64 scalar.
        wanted: how many of these, from the centre, are kept.
        interpolation: the filter.

    Returns:
        float32 [wanted, n]; rows sum to 1, or to 0 outside the image.
    """
    xp = array_api_compat.array_namespace(source)
    place = xp.arange(wanted) + _start(new, wanted)
    # Pixel centres, in units of 1 / (2 new) source pixels: whole numbers, so no rounding yet.
    centre = (2 * place + 1)[:, None] * full
    distance = centre - (2 * source + 1) * new
    # Shrinking widens the filter: that is the antialias.
    unit = 2 * xp.maximum(full, new)
    away = xp.astype(xp.abs(distance), xp.float32) / xp.astype(unit, xp.float32)
    found = _FILTERS[interpolation](away)
    total = xp.sum(found, axis=-1, keepdims=True)
    found = found / xp.where(total == 0.0, 1.0 + total, total)
    inside = (place >= 0) & (place < new)
    return xp.where(inside[:, None], found, 0.0 * found)


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
