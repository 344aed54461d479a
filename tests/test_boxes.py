"""Boxes: overlaps, suppression and the way back to the image, against torchvision and by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchvision import ops

from whycam.runtime.boxes import overlaps, suppress, to_image
from whycam.runtime.input_format import Letterbox
from whycam.runtime.manifest import Preprocess
from whycam.runtime.preprocess import place


def random_boxes(count: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    corners = rng.uniform(0, 100, (count, 2))
    return np.concatenate([corners, corners + rng.uniform(5, 60, (count, 2))], 1).astype(np.float32)


def test_overlaps_equal_torchvisions():
    boxes, others = random_boxes(7, 0), random_boxes(40, 1)
    expected = ops.box_iou(torch.from_numpy(boxes), torch.from_numpy(others)).numpy()
    np.testing.assert_allclose(overlaps(boxes, others), expected, atol=1e-6)


def test_empty_boxes_overlap_nothing():
    point = np.array([[3, 3, 3, 3], [9, 9, 4, 4]], np.float32)
    assert not overlaps(point, point).any()


@pytest.mark.parametrize("iou", [0.2, 0.45, 0.7])
@pytest.mark.parametrize("seed", range(4))
def test_suppression_equals_torchvisions_class_by_class(iou, seed):
    boxes = random_boxes(300, seed)
    scores = np.random.default_rng(seed).uniform(0, 1, (300, 3)).astype(np.float32)
    best = scores.argmax(1)
    values = scores.max(1)
    likely = np.flatnonzero(values > 0.4)
    kept = ops.batched_nms(
        torch.from_numpy(boxes[likely]),
        torch.from_numpy(values[likely]),
        torch.from_numpy(best[likely]),
        iou,
    ).numpy()
    expected = [(candidate, best[candidate]) for candidate in likely[kept]]
    assert suppress(scores, boxes, 300, 0.4, iou).tolist() == [list(pair) for pair in expected]
    assert suppress(scores, boxes, 5, 0.4, iou).tolist() == [list(pair) for pair in expected[:5]]


def test_a_named_class_counts_even_where_another_one_is_likelier():
    boxes = np.array([[0, 0, 10, 10], [50, 50, 60, 60]], np.float32)
    scores = np.array([[0.9, 0.6], [0.1, 0.7]], np.float32)
    assert suppress(scores, boxes, 9, 0.25, 0.5).tolist() == [[0, 0], [1, 1]]
    assert suppress(scores, boxes, 9, 0.25, 0.5, {1}).tolist() == [[1, 1], [0, 1]]
    assert suppress(scores, boxes, 9, 0.65, 0.5, {1}).tolist() == [[1, 1]]


def test_without_suppression_duplicates_stay():
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 10]], np.float32)
    scores = np.array([[0.8], [0.9]], np.float32)
    assert suppress(scores, boxes, 9, 0.25, None).tolist() == [[1, 0], [0, 0]]
    assert suppress(scores, boxes, 9, 0.25, 0.5).tolist() == [[1, 0]]
    assert suppress(scores, boxes, 9, 0.95, 0.5).shape == (0, 2)


def test_boxes_come_back_from_a_letterbox():
    # 60 x 120 pixels in 96 x 96: scaled by 0.8 to 48 x 96, 24 rows of padding above.
    placement, _ = place((60, 120), Preprocess((96, 96), (), letterbox=Letterbox()))
    inside = np.array([[8, 32, 40, 64], [-5, 0, 99, 96]], np.float32)
    expected = [[10, 10, 50, 50], [0, 0, 120, 60]]
    np.testing.assert_allclose(to_image(inside, placement, (96, 96)), expected, atol=1e-4)
