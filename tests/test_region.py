"""Regions: polygons that fill to exactly the mask, boxes, areas, COCO's runs."""

from __future__ import annotations

import sys

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from whycam import Region
from whycam.runtime.errors import RequestError
from whycam.runtime.region import Polygon

MASKS = st.tuples(st.integers(1, 12), st.integers(1, 12), st.integers(0, 2**32 - 1)).map(
    lambda drawn: np.random.default_rng(drawn[2]).random(drawn[:2]) < (drawn[2] % 10) / 9
)


def fill(polygon: Polygon, shape: tuple[int, int]) -> np.ndarray:
    """Fill by the even-odd rule: a pixel is inside if a ray from its centre crosses an odd count.

    Independent of how polygons are traced; only vertical sides can cross a ray to the right.
    """
    rows, columns = np.mgrid[: shape[0], : shape[1]] + 0.5
    inside = np.zeros(shape, bool)
    for points in (polygon.exterior, *polygon.holes):
        for (x, top), (x2, bottom) in zip(points, np.roll(points, -1, 0), strict=True):
            if x == x2:
                low, high = min(top, bottom), max(top, bottom)
                inside ^= (low < rows) & (rows < high) & (columns < x)
    return inside


@given(MASKS)
def test_polygons_with_their_holes_fill_exactly_the_mask(mask):
    region = Region(mask)
    parts = [fill(polygon, mask.shape) for polygon in region.polygons]
    count, _ = cv2.connectedComponents(mask.astype(np.uint8), connectivity=4)
    assert len(parts) == count - 1
    assert np.array_equal(np.sum([np.zeros(mask.shape, int), *parts], 0), mask)
    assert [part.sum() for part in parts] == sorted((part.sum() for part in parts), reverse=True)


@given(MASKS)
def test_sides_are_straight_and_closed_and_corners_are_corners(mask):
    for polygon in Region(mask).polygons:
        for points in (polygon.exterior, *polygon.holes):
            steps = np.roll(points, -1, 0) - points
            assert ((steps != 0).sum(1) == 1).all()  # along one axis
            along = steps[:, 0] != 0
            assert (along != np.roll(along, -1)).all()  # and then along the other


def test_a_ring_is_one_polygon_with_a_hole():
    mask = np.zeros((5, 7), bool)
    mask[1:4, 2:6] = True
    mask[2, 3:5] = False
    (polygon,) = Region(mask).polygons
    assert polygon.exterior.tolist() == [[2, 1], [6, 1], [6, 4], [2, 4]]
    (hole,) = polygon.holes
    assert sorted(hole.tolist()) == [[3, 2], [3, 3], [5, 2], [5, 3]]
    region = Region(mask)
    assert (region.area, region.box, region.share) == (10, (2, 1, 6, 4), 10 / 35)


def test_pixels_that_touch_at_a_corner_are_two_polygons():
    assert len(Region(np.eye(2, dtype=bool)).polygons) == 2


def test_an_empty_region_has_no_box_and_no_polygons():
    region = Region(np.zeros((3, 4), bool))
    assert (region.area, region.box, region.polygons, region.runs) == (0, None, (), [12])


@given(MASKS)
def test_runs_are_those_of_coco(mask):
    """Expanded by hand, and where pycocotools is installed by it."""
    runs = Region(mask).runs
    pixels = np.repeat(np.arange(len(runs)) % 2, runs)
    assert np.array_equal(pixels.reshape(mask.shape, order="F"), mask)
    assert all(runs[1:])


def test_runs_are_what_pycocotools_reads():
    coco = pytest.importorskip("pycocotools.mask")
    mask = np.random.default_rng(0).random((9, 13)) < 0.4
    encoded = coco.frPyObjects({"counts": Region(mask).runs, "size": [9, 13]}, 9, 13)
    assert np.array_equal(coco.decode(encoded), mask)
    assert coco.area(encoded) == mask.sum()


SCENE = np.random.default_rng(4).integers(0, 256, (40, 60, 3), np.uint8)


def test_the_region_of_an_explanation_is_where_its_cut_map_lies(tiny):
    found = tiny.explain(SCENE, tft="naive")
    assert found.region.mask.shape == found.image.shape[:2]
    original = found.on_image(found.original_map)
    assert np.array_equal(found.region.mask, (original >= found.cut) & (original > 0))
    assert 0 < found.region_above(0.95).area < found.region.area < found.region_above(0).area
    filled = [fill(polygon, found.region.mask.shape) for polygon in found.region.polygons]
    assert np.array_equal(np.sum(filled, 0), found.region.mask)


def test_detections_are_those_of_supervision(tiny):
    pytest.importorskip("supervision")
    found = tiny.explain(SCENE, tft="naive")
    detections = found.to_detections()
    assert detections.xyxy.tolist() == [list(found.region.box)]
    assert detections.area.tolist() == [found.region.area]
    assert detections["class_name"].tolist() == [found.label]


def test_without_supervision_detections_say_what_to_install(tiny, monkeypatch):
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(RequestError, match="pip install supervision"):
        tiny.explain(SCENE).to_detections()
