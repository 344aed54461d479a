"""Measures of maps against numbers worked out by hand."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from whycam.calibrate.quality import (
    drops,
    energy_inside,
    gini,
    increases,
    insertion_deletion,
    pointing,
    region_iou,
)


def test_increase_and_drop_follow_the_paper():
    masked, probability = np.array([0.6, 0.2, 0.5, 0.0]), np.array([0.5, 0.4, 0.5, 0.8])
    np.testing.assert_array_equal(increases(masked, probability), [True, False, False, False])
    np.testing.assert_allclose(drops(masked, probability), [0, 0.5, 0, 1])


def test_drop_of_an_impossible_class_is_no_nan():
    assert drops(0.0, 0.0) == 0


def test_pointing_game_asks_for_the_maximum():
    values = np.zeros((4, 6), np.float32)
    values[2, 5] = 1
    assert pointing(values, [(5, 2, 6, 3)])
    assert not pointing(values, [(0, 0, 5, 4)])
    assert pointing(values, [(0, 0, 1, 1), (4.5, 1, 9, 9)])


def test_energy_is_the_share_inside_and_boxes_do_not_count_twice():
    values = np.ones((4, 4), np.float32)
    assert energy_inside(values, [(0, 0, 2, 4)]) == pytest.approx(0.5)
    assert energy_inside(values, [(0, 0, 2, 4), (0, 0, 2, 2)]) == pytest.approx(0.5)
    assert energy_inside(values, [(-3, -3, 9, 9)]) == pytest.approx(1)
    assert energy_inside(0 * values, [(0, 0, 2, 4)]) == 0


def test_insertion_and_deletion_of_a_class_that_is_one_pixel():
    """The class's probability is what is left of one pixel's value."""

    def classify(images: np.ndarray) -> np.ndarray:
        return images[:, :1, 3, 3].astype(np.float32)

    image = np.zeros((3, 8, 8), np.float32)
    image[:, 3, 3] = 1
    right = np.zeros((8, 8), np.float32)
    right[3, 3] = 1
    insertion, deletion = insertion_deletion(classify, image, right, 0, 64)
    # Restored with the first pixel, and gone with the first.
    blurred = insertion_deletion(classify, image, right, 0, 1)[0] * 2 - 1
    assert insertion == pytest.approx((64 - 0.5 + 0.5 * blurred) / 64)
    assert deletion == pytest.approx(0.5 / 64)
    wrong = 1 - right
    assert insertion_deletion(classify, image, wrong, 0, 64)[0] < insertion
    assert insertion_deletion(classify, image, wrong, 0, 64)[1] == pytest.approx((64 - 0.5) / 64)


def test_gini_is_0_for_an_even_map_and_near_1_for_one_pixel():
    assert gini(np.ones((4, 4), np.float32)) == pytest.approx(0)
    assert gini(np.zeros((4, 4), np.float32)) == 0
    one = np.zeros((10, 10), np.float32)
    one[3, 4] = 0.2
    assert gini(one) == pytest.approx(0.99)
    # By the mean absolute difference of all pairs: 2 (1 + 2 + 3 + 1 + 2 + 1) / (2 * 4 * 6).
    assert gini(np.array([[0, 1], [2, 3]], np.float32)) == pytest.approx(20 / 48)


def test_region_is_compared_with_the_boxes_together():
    values = np.zeros((4, 4), np.float32)
    values[:2] = 0.4
    values[0] = 0.9
    boxes = [(0, 0, 2, 4), (1, 0, 3, 4)]  # 12 pixels, of which 6 are in the region of 8
    assert region_iou(values, boxes) == pytest.approx(6 / 14)
    assert region_iou(values, boxes, 0.5) == pytest.approx(3 / 13)
    assert region_iou(0 * values, []) == 0


def test_measures_of_a_random_map_are_those_of_their_definitions():
    """What Quantus computes as well: benchmarks/quantus_parity.py compares both."""
    rng = np.random.default_rng(4)
    values = rng.random((8, 8)).astype(np.float32)
    box = (2, 1, 7, 5)
    mask = np.zeros((8, 8), bool)
    mask[1:5, 2:7] = True
    assert energy_inside(values, [box]) == pytest.approx(values[mask].sum() / values.sum())
    assert pointing(values, [box]) == bool(mask.reshape(-1)[values.argmax()])
    pairs = np.abs(values.reshape(-1, 1) - values.reshape(1, -1)).mean()
    assert gini(values) == pytest.approx(pairs / (2 * values.mean()), rel=1e-5)


def test_deletion_is_the_area_under_the_curve_of_flipped_pixels():
    """One step after another: the next pixels of the order are set to 0, and stay so."""
    rng = np.random.default_rng(5)
    image, values = rng.random((3, 8, 8), np.float32), rng.random((8, 8), np.float32)
    weights = rng.random((3, 8, 8), np.float32)

    def classify(images: np.ndarray) -> np.ndarray:
        return (images * weights).mean((1, 2, 3))[:, None] ** 2

    flipped, curve = image.copy(), [classify(image[None])[0, 0]]
    order = np.argsort(-values.reshape(-1))
    for step in range(16):
        for index in order[4 * step : 4 * step + 4]:
            flipped[:, index // 8, index % 8] = 0
        curve.append(classify(flipped[None])[0, 0])
    area = sum((a + b) / 2 for a, b in itertools.pairwise(curve)) / 16
    assert insertion_deletion(classify, image, values, 0, 16)[1] == pytest.approx(area, rel=1e-5)
