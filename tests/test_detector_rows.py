"""What the numbers of a candidate mean is proved by the graph, or asked for."""

import detector_networks as networks
import numpy as np
import onnx
import pytest
import torch
from detector_networks import CLASSES, SIZE
from numpy.testing import assert_allclose
from test_detector_export import IMAGE, LABELS, PLAIN, run, write

from whycam.export import to_onnx
from whycam.runtime.errors import ExportError

NOBODY = np.zeros((2, 1, 2), np.int64)


def corners(boxes: torch.Tensor) -> torch.Tensor:
    """Left, top, right, bottom of centre, width and height, along the first axis but one."""
    centre, half = boxes[:, :2], boxes[:, 2:] / 2
    return torch.cat([centre - half, centre + half], 1)


class Changed(networks.Yolo8):
    """The rows of ``Yolo8`` with other numbers in place of centre, width and height."""

    def __init__(self, change) -> None:
        super().__init__()
        self.change = change

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = super().forward(x)
        return torch.cat([self.change(rows[:, :4]), rows[:, 4:]], 1)


class Changed5(networks.Yolo5):
    """The rows of ``Yolo5``, three anchors a cell, the same way."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = super().forward(x)
        return torch.cat([corners(rows[..., :4].transpose(1, 2)).transpose(1, 2), rows[..., 4:]], 2)


READINGS = {
    "corners": (corners, "corners"),
    "shares": (lambda boxes: boxes / SIZE, "shares"),
    "corners as shares": (lambda boxes: corners(boxes) / SIZE, "corners"),
    "vertical first": (lambda boxes: boxes[:, [1, 0, 3, 2]], "vertical"),
    "corners, vertical first": (lambda boxes: corners(boxes)[:, [1, 0, 3, 2]], "corners"),
}


@pytest.mark.parametrize("name", READINGS)
def test_the_meaning_of_a_boxs_numbers_is_told_by_how_they_move(tmp_path, name):
    change, word = READINGS[name]
    model = networks.fill(Changed(change))
    result = to_onnx(write(model, tmp_path / "a.onnx"), tmp_path / "b.onnx")
    found = run(result.path, ["candidate_boxes"], NOBODY)["candidate_boxes"]
    with torch.no_grad():
        rows = networks.Yolo8.forward(model, torch.from_numpy(IMAGE))
    expected = corners(rows[:, :4]).transpose(1, 2).numpy()
    assert_allclose(found, expected, rtol=1e-4, atol=1e-3)
    assert any(word in note for note in result.notes)


def test_corners_of_three_anchors_a_cell_are_told_as_well(tmp_path):
    model = networks.fill(Changed5())
    options = {"format": "yolov5", "labels": LABELS}
    result = to_onnx(write(model, tmp_path / "a.onnx"), tmp_path / "b.onnx", **options)
    found = run(result.path, ["candidate_boxes"], NOBODY)["candidate_boxes"]
    with torch.no_grad():
        expected = model(torch.from_numpy(IMAGE))[..., :4].numpy()
    assert_allclose(found, expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda boxes: boxes / 8, "these are no boxes in pixels"),
        (lambda boxes: boxes[:, [2, 3, 0, 1]], "size, size, x, y"),
        (lambda boxes: torch.cat([boxes[:, :1], boxes[:, :3]], 1), "x, x, y, size"),
    ],
)
def test_numbers_that_are_no_box_are_refused_also_where_the_format_is_named(
    tmp_path, change, words
):
    file = write(networks.fill(Changed(change)), tmp_path / "a.onnx")
    with pytest.raises(ExportError, match=words):
        to_onnx(file, tmp_path / "b.onnx", format="yolov8", labels=LABELS)


class Unproved(networks.Yolo8):
    """Boxes that follow from the mean of the image as well."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = super().forward(x)
        return torch.cat([rows[:, :4] + 1e-9 * x.mean((1, 2, 3))[:, None, None], rows[:, 4:]], 1)


class Clipped(networks.Yolo8):
    """Boxes that stop at the image's edge, so that they do not move evenly."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = super().forward(x)
        return torch.cat([rows[:, :4].clamp(0, 40), rows[:, 4:]], 1)


@pytest.mark.parametrize("network", [Unproved, Clipped])
def test_where_nothing_proves_the_boxes_the_format_must_be_named(tmp_path, network):
    file = write(networks.fill(network()), tmp_path / "a.onnx")
    with pytest.raises(ExportError, match=r"nothing in its graph proves.*--format yolov8"):
        to_onnx(file, tmp_path / "b.onnx", labels=LABELS)
    result = to_onnx(file, tmp_path / "b.onnx", format="yolov8")
    assert any("nothing in the graph proves" in note for note in result.notes)


def test_one_convolution_for_all_does_not_tell_objectness_from_a_class(tmp_path):
    """[N, A, 8] is objectness and three classes, or four classes: the question is asked."""
    file = write(networks.fill(networks.Yolo5()), tmp_path / "a.onnx")
    with pytest.raises(ExportError, match=r"nothing in the graph proves.*Add --labels"):
        to_onnx(file, tmp_path / "b.onnx")
    for options in ({"format": "yolov5"}, {"labels": LABELS}):
        assert to_onnx(file, tmp_path / "b.onnx", **options).manifest.num_classes == CLASSES
    with pytest.raises(ExportError, match=r"4 labels.*3 classes"):
        to_onnx(file, tmp_path / "b.onnx", labels=(*LABELS, "four"))


class Columns(networks.YoloX):
    """Candidates along the last axis, as YOLO 8 has them, with an objectness."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = super().forward(x).permute(0, 2, 1)
        points, steps = networks.centres(
            [torch.zeros(1, 1, SIZE // s, SIZE // s) for s in (8, 16, 32)]
        )
        centre = rows[:, :2] * steps.T + points.T
        return torch.cat([centre, rows[:, 2:4].exp() * steps.T, rows[:, 4:]], 1)


def test_an_objectness_is_never_read_as_the_first_class(tmp_path):
    file = write(networks.fill(Columns()), tmp_path / "a.onnx")
    for options in ({}, {"format": "yolov8"}):
        with pytest.raises(ExportError, match="depends on it is the objectness"):
            to_onnx(file, tmp_path / "b.onnx", **options)


def test_decoded_yolox_is_read_as_pixels(tmp_path):
    class Decoded(Columns):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x).permute(0, 2, 1)

    model = networks.fill(Decoded())
    result = to_onnx(write(model, tmp_path / "a.onnx"), tmp_path / "b.onnx")
    assert result.manifest.detector.format == "yolox"  # its objectness has a convolution of its own
    found = run(result.path, ["candidate_boxes"], NOBODY)["candidate_boxes"]
    with torch.no_grad():
        rows = model(torch.from_numpy(IMAGE))[..., :4].transpose(1, 2)
    assert_allclose(found, corners(rows).transpose(1, 2).numpy(), rtol=1e-4, atol=1e-3)


class CornersOfQueries(networks.Detr):
    """Corners as shares of the image, computed from centres and sizes in the graph."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logits, boxes = super().forward(x)
        return logits, corners(boxes.transpose(1, 2)).transpose(1, 2)


class DistancesOfQueries(networks.Detr):
    """Centres and sizes, computed from distances of the edges, as in D-FINE."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logits, distances = super().forward(x)
        low, high = 0.5 - distances[..., :2] / 2, 0.5 + distances[..., 2:] / 2
        return logits, torch.cat([(low + high) / 2, high - low], 2)


@pytest.mark.parametrize("network", [networks.Detr, CornersOfQueries, DistancesOfQueries])
def test_corners_of_queries_are_told_by_what_their_edges_depend_on(tmp_path, network):
    model = networks.fill(network())
    file = write(model, tmp_path / "a.onnx", "logits", "pred_boxes")
    options = {"labels": LABELS, "overrides": PLAIN}
    result = to_onnx(file, tmp_path / "b.onnx", **options)
    found = run(result.path, ["candidate_boxes"], NOBODY)["candidate_boxes"]
    with torch.no_grad():
        boxes = model(torch.from_numpy(IMAGE))[1] * SIZE
    is_corners = network is CornersOfQueries
    expected = boxes if is_corners else corners(boxes.transpose(1, 2)).transpose(1, 2)
    assert_allclose(found, expected.numpy(), rtol=1e-4, atol=1e-3)
    assert is_corners == any("corners" in note for note in result.notes)
    assert not any("nothing in the graph" in note for note in result.notes)


class OneClass(networks.Yolo5):
    """Six numbers a row: a box, an objectness and one class."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x)[..., :6]


class Centres(networks.Yolo10):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = super().forward(x)
        centre, side = (rows[..., :2] + rows[..., 2:4]) / 2, rows[..., 2:4] - rows[..., :2]
        return torch.cat([centre, side, rows[..., 4:]], 2)


@pytest.mark.parametrize(
    ("network", "labels", "words"),
    [
        (OneClass, LABELS, "sixth number of a row is no class"),
        (Centres, LABELS, "edges that are crossed"),
        (networks.Yolo10, LABELS[:1], "1 labels, and a class has the number"),
    ],
)
def test_six_numbers_that_are_no_corners_score_and_class_are_refused(
    tmp_path, network, labels, words
):
    file = write(networks.fill(network()), tmp_path / "a.onnx")
    with pytest.raises(ExportError, match=words):
        to_onnx(file, tmp_path / "b.onnx", format="yolov10", labels=labels)


def test_one_class_with_an_objectness_is_not_taken_for_end_to_end(tmp_path):
    file = write(networks.fill(OneClass()), tmp_path / "a.onnx")
    model = onnx.load(file)
    said = {"task": "detect", "names": "{0: 'one'}", "imgsz": f"[{SIZE}, {SIZE}]"}
    onnx.helper.set_model_props(model, said)
    onnx.save(model, file)
    assert to_onnx(file, tmp_path / "b.onnx").manifest.detector.format == "yolov5"


class Apart(networks.Yolo8):
    """Scores, and boxes as corners, cut out of rows."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        rows = super().forward(x)
        return rows[:, 4:].transpose(1, 2), corners(rows[:, :4]).transpose(1, 2)


def test_scores_that_are_cut_out_of_rows_are_read(tmp_path):
    model = networks.fill(Apart())
    file = write(model, tmp_path / "a.onnx", "scores", "boxes")
    options = {"format": "ssd", "labels": LABELS, "overrides": PLAIN}
    result = to_onnx(file, tmp_path / "b.onnx", **options)
    found = run(result.path, ["candidate_scores", "candidate_boxes"], NOBODY)
    with torch.no_grad():
        scores, boxes = model(torch.from_numpy(IMAGE))
    assert_allclose(found["candidate_scores"], scores.numpy(), atol=1e-5)
    assert_allclose(found["candidate_boxes"], boxes.numpy(), rtol=1e-4, atol=1e-3)
    assert result.manifest.gradient_score == "logit"
