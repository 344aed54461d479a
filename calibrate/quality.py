"""Measure how good an attribution map is, with measures from the literature."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..runtime.input_format import Layout
from ..runtime.sweep import Classify, Floats


def increases(masked: Any, probability: Any) -> Any:
    """Average increase (Chattopadhay et al. 2018; paper section 5.2) is the mean of these: 1
    where the class is more probable in the masked image than in the whole one."""
    return np.asarray(masked) > np.asarray(probability)


def drops(masked: Any, probability: Any) -> Any:
    """Average drop (same sources) is the mean of these: max(y - y^, 0) / y, in [0, 1]."""
    y = np.asarray(probability, np.float64)
    return np.maximum(y - np.asarray(masked, np.float64), 0) / np.maximum(y, 1e-30)


def pointing(values: Floats, boxes: Sequence[tuple[float, float, float, float]]) -> bool:
    """Pointing game (Zhang et al. 2018): whether the map's maximum lies inside an object's box.

    Args:
        values: the map over the image's pixels, [h, w].
        boxes: (left, top, right, bottom) in pixels.
    """
    row, column = np.unravel_index(int(np.argmax(values)), values.shape)
    x, y = float(column) + 0.5, float(row) + 0.5
    return any(left <= x < right and top <= y < bottom for left, top, right, bottom in boxes)


def energy_inside(values: Floats, boxes: Sequence[tuple[float, float, float, float]]) -> float:
    """Energy-based pointing game (Wang et al. 2020): the share of the map inside the boxes.

    0 for a map that is zero everywhere.
    """
    inside = _inside(values, boxes)
    whole = float(values.sum(dtype=np.float64))
    return float(values[inside].sum(dtype=np.float64)) / whole if whole > 0 else 0.0


def gini(values: Floats) -> float:
    """Sparsity: the Gini index of a map (Chalasani et al. 2020).

    0 for a map that is the same everywhere, near 1 for one that shows a few pixels alone; 0 also
    for a map that is zero everywhere. With x_i the n values in ascending order it is
    sum_i (2 i - n - 1) x_i / (n sum_i x_i), i = 1 ... n.
    """
    ascending = np.sort(np.abs(values.reshape(-1)).astype(np.float64))
    count, total = len(ascending), float(ascending.sum())
    if total <= 0:
        return 0.0
    return float(((2 * np.arange(1, count + 1) - count - 1) * ascending).sum() / (count * total))


def region_iou(
    values: Floats, boxes: Sequence[tuple[float, float, float, float]], cut: float = 0.0
) -> float:
    """Intersection over union of a map's region with the boxes, taken together.

    Args:
        values: the map over the image's pixels, [h, w].
        boxes: (left, top, right, bottom) in pixels.
        cut: the region is where the map is above it.
    """
    region, inside = values > cut, _inside(values, boxes)
    union = int(np.count_nonzero(region | inside))
    return np.count_nonzero(region & inside) / union if union else 0.0


def _inside(values: Floats, boxes: Sequence[tuple[float, float, float, float]]) -> Any:
    inside = np.zeros(values.shape, bool)
    for left, top, right, bottom in boxes:
        rows = slice(max(0, round(top)), max(0, round(bottom)))
        inside[rows, max(0, round(left)) : max(0, round(right))] = True
    return inside


def insertion_deletion(
    classify: Classify,
    image: Floats,
    values: Floats,
    target: int,
    steps: int,
    layout: Layout = "NCHW",
) -> tuple[float, float]:
    """Areas under the insertion and deletion curves (RISE, Petsiuk et al. 2018).

    Deletion sets pixels to the mean colour, the most important first; insertion restores them in
    a blurred image (Gaussian, sigma 5 pixels, as in RISE). Both follow the class's probability.

    Args:
        classify: the network.
        image: normalised, [C, H, W] or [H, W, C], as ``layout`` says.
        values: the map, [H, W].
        target: the class.
        steps: of the curves; each changes the same number of pixels.
        layout: of the image.

    Returns:
        (insertion, deletion), each in [0, 1]; higher insertion and lower deletion are better.
    """
    import cv2

    last = layout == "NHWC"
    channels = image if last else np.ascontiguousarray(image.transpose(1, 2, 0))
    # OpenCV drops an axis of one channel.
    blurred = cv2.GaussianBlur(channels, (11, 11), 5).reshape(channels.shape)
    blurred = blurred if last else blurred.transpose(2, 0, 1)
    order = np.argsort(-values.reshape(-1), kind="stable")
    place = np.empty(order.size, np.int64)
    place[order] = np.arange(order.size)
    rank = place.reshape(values.shape)
    shares = np.linspace(0, order.size, steps + 1)
    changed = np.expand_dims(np.stack([rank < share for share in shares]), -1 if last else 1)
    curves = []
    for inside, outside in ((image, blurred), (np.zeros_like(image), image)):
        rows = classify(np.where(changed, inside, outside).astype(np.float32))
        curves.append(float(np.trapezoid(rows[:, target], dx=1 / steps)))
    return curves[0], curves[1]
