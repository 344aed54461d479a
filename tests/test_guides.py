"""Boxes and masks become regions of the network's view."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from whycam.calibrate.dataset import Classes, Dataset, Sample
from whycam.runtime.errors import DataError
from whycam.runtime.preprocess import Placement
from whycam.train.guides import open_guides

CLASSES = Classes(("cat", "dog"), 2)
# The network sees the middle half of the width of an image of 200 x 100 pixels.
VIEW = Placement((100, 200), 0, 50, 100, 150)
SIZE = (4, 4)


def _dataset(folder: Path, annotation: str | None = None) -> Dataset:
    samples = []
    for name in ("a", "b"):
        path = folder / f"{name}.png"
        Image.new("RGB", (200, 100)).save(path)
        noted = None
        if annotation is not None and name == "a":
            noted = folder / "a.xml"
            noted.write_text(annotation)
        samples.append(Sample(path, f"{name}.png", None, noted))
    return Dataset(folder, "folder", tuple(samples))


def _voc(*objects: tuple[str, int, int, int, int]) -> str:
    boxes = "".join(
        f"<object><name>{name}</name><bndbox><xmin>{left + 1}</xmin><ymin>{top + 1}</ymin>"
        f"<xmax>{right}</xmax><ymax>{bottom}</ymax></bndbox></object>"
        for name, left, top, right, bottom in objects
    )
    return f"<annotation>{boxes}</annotation>"


def test_box_covers_the_cells_that_the_network_sees_of_it(tmp_path):
    data = _dataset(tmp_path, _voc(("cat", 0, 0, 100, 50), ("dog", 100, 50, 200, 100)))
    guides = open_guides("auto", data, CLASSES)
    expected = np.zeros(SIZE)
    expected[:2, :2] = 1
    np.testing.assert_array_equal(guides.row(0, VIEW, 0, SIZE), expected)
    np.testing.assert_array_equal(guides.row(0, VIEW, 1, SIZE), expected[::-1, ::-1])
    both = guides.row(0, VIEW, None, SIZE)
    np.testing.assert_array_equal(both, expected + expected[::-1, ::-1])


def test_cells_are_covered_in_part(tmp_path):
    data = _dataset(tmp_path, _voc(("cat", 50, 0, 100, 37)))
    found = open_guides("voc", data, CLASSES).row(0, VIEW, 0, SIZE)
    np.testing.assert_allclose(found[:, 0], [1, 0.5, 0, 0])


def test_image_without_a_box_of_the_class_in_view_has_no_region(tmp_path):
    data = _dataset(tmp_path, _voc(("cat", 0, 0, 40, 100)))
    guides = open_guides("auto", data, CLASSES)
    for row in (
        guides.row(1, VIEW, 0, SIZE),  # no annotation
        guides.row(0, VIEW, 1, SIZE),  # a box of another class
        guides.row(0, VIEW, 0, SIZE),  # beside the view
        guides.row(0, None, 0, SIZE),  # an image that cannot be read
    ):
        assert (row == -1).all()


def test_boxes_of_names_that_the_network_does_not_know_count_for_every_class(tmp_path):
    data = _dataset(tmp_path, _voc(("tag", 50, 0, 150, 50)))
    assert open_guides("auto", data, CLASSES).row(0, VIEW, 1, SIZE)[:2].all()


def test_coco_boxes_are_read(tmp_path):
    document = {
        "images": [{"id": 7, "file_name": "b.png"}],
        "categories": [{"id": 3, "name": "dog"}],
        "annotations": [{"image_id": 7, "category_id": 3, "bbox": [100, 0, 50, 100]}],
    }
    path = tmp_path / "boxes.json"
    path.write_text(json.dumps(document))
    guides = open_guides(path, _dataset(tmp_path), CLASSES)
    found = guides.row(1, VIEW, 1, SIZE)
    np.testing.assert_array_equal(found, np.repeat([[0, 0, 1, 1]], 4, axis=0))
    assert (guides.row(0, VIEW, 1, SIZE) == -1).all()


@pytest.mark.parametrize("scale", [1, 2])
def test_masks_of_any_resolution_are_read(tmp_path, scale):
    (tmp_path / "masks").mkdir()
    mask = np.zeros((100 * scale, 200 * scale), np.uint8)
    mask[: 50 * scale, : 100 * scale] = 1  # any value above 0
    Image.fromarray(mask).save(tmp_path / "masks/a.png")
    guides = open_guides(tmp_path / "masks", _dataset(tmp_path), CLASSES)
    expected = np.zeros(SIZE)
    expected[:2, :2] = 1
    np.testing.assert_array_equal(guides.row(0, VIEW, 1, SIZE), expected)


def test_view_may_be_larger_than_the_image(tmp_path):
    (tmp_path / "masks").mkdir()
    Image.new("L", (200, 100), 255).save(tmp_path / "masks/a.png")
    guides = open_guides(tmp_path / "masks", _dataset(tmp_path), CLASSES)
    padded = Placement((100, 200), -50, 0, 150, 200)
    found = guides.row(0, padded, 0, SIZE)
    np.testing.assert_array_equal(found, np.repeat([[0], [1], [1], [0]], 4, axis=1))


def test_nothing_to_guide_by_is_an_error(tmp_path):
    data = _dataset(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "black").mkdir()
    Image.new("L", (200, 100)).save(tmp_path / "black/a.png")
    (tmp_path / "bad.json").write_text('{"images": 3}')
    for source, said in (
        ("auto", "has no boxes"),
        (tmp_path / "missing", "there is no"),
        (tmp_path / "empty", "has nothing for the 2 images"),
        (tmp_path / "black", "none of the 1 masks of .* marks anything"),
        (tmp_path / "bad.json", "as COCO's JSON"),
    ):
        with pytest.raises(DataError, match=said):
            open_guides(source, data, CLASSES)
