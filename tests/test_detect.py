"""Explainer.detect: what is found, where it lies in the image, and its maps and thresholds."""

from __future__ import annotations

import sys
from pathlib import Path

import cv2
import msgspec
import numpy as np
import pytest
from tiny_detector import DETECTOR, FINE, PADDING, SIZE, cell_boxes, write_tiny_detector

import whycam
from whycam.runtime.box_drawing import draw_box, join_heat
from whycam.runtime.boxes import Box, overlaps
from whycam.runtime.detection import to_supervision
from whycam.runtime.errors import ImageError, RequestError
from whycam.runtime.explainer import Explainer
from whycam.runtime.tft import Tft


def sigmoid(x: float) -> float:
    return float(1 / (1 + np.exp(-x)))


def scene() -> np.ndarray:
    """64 x 64 pixels: a red cell (2, 3), row and column, and a paler blue one (6, 1)."""
    image = np.zeros((SIZE, SIZE, 3), np.uint8)
    image[16:24, 24:32, 0] = 255
    image[48:56, 8:16, 2] = 204
    return image


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory):
    """Loads the tiny detector, with some fields of its manifest's ``Detector`` changed."""
    folder = tmp_path_factory.mktemp("detectors")

    def make(mean: float = 0.0, engine: str = "onnxruntime", **changes: object) -> Explainer:
        spec = msgspec.structs.replace(DETECTOR.preprocess, mean=(mean,) * 3)
        detector = msgspec.structs.replace(DETECTOR.detector, **changes)
        manifest = msgspec.structs.replace(DETECTOR, preprocess=spec, detector=detector)
        path = folder / f"{len(list(folder.iterdir()))}.onnx"
        write_tiny_detector(path, manifest)
        return whycam.load(path, engine, threads=1)

    return make


@pytest.fixture(scope="module")
def tiny_detector(made) -> Explainer:
    return made()


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_objects_come_with_class_score_box_and_map(made, engine):
    red, blue = made(engine=engine).detect(scene())
    assert (red.label, red.index, red.candidate) == ("red", 0, 2 * FINE + 3)
    assert (blue.label, blue.index, blue.candidate) == ("blue", 2, 6 * FINE + 1)
    np.testing.assert_allclose(
        [red.score, blue.score], [sigmoid(5), sigmoid(3)], rtol=1e-5
    )  # 204 of 255 are 0.8
    assert red.box == Box(20, 12, 36, 28)
    assert blue.box == Box(4, 44, 20, 60)
    for one, center in ((red, (20, 28)), (blue, (52, 12))):
        heat = one.on_image(one.map)
        assert heat.shape == (SIZE, SIZE)
        place = np.unravel_index(heat.argmax(), heat.shape)
        assert np.abs(np.array(place) - center).max() <= 4
        assert one.edge is None


def test_an_object_scores_more_than_the_least_score_in_the_graph_and_outside(made):
    (red, _) = made().detect(scene())
    for ranks in (True, False):
        explainer = made(ranks=ranks)
        assert explainer.detect(scene(), min_score=red.score) == []
        below = float(np.nextafter(np.float32(red.score), np.float32(0)))
        assert len(explainer.detect(scene(), min_score=below)) == 1


def test_boxes_and_maps_come_back_through_the_letterbox(tiny_detector):
    # 64 x 128 pixels: halved, with 16 rows of padding above and below.
    image = np.zeros((64, 128, 3), np.uint8)
    image[32:48, 64:80, 1] = 255  # in the input rows 32 to 40, columns 32 to 40: cell (4, 4)
    (green,) = tiny_detector.detect(image, "green", min_score=0.9)
    assert green.candidate == 4 * FINE + 4
    assert green.box == Box(56, 24, 88, 56)
    heat = green.on_image(green.map)
    assert heat.shape == (64, 128)
    assert heat[39:41, 71:73].min() > 0.9
    over = tiny_detector.detect(image, "green", min_score=0.9, geometry="image")[0]
    np.testing.assert_array_equal(over.map, heat)


def test_padding_is_what_the_detector_sees_around_an_image(tiny_detector):
    found = tiny_detector.detect(np.zeros((64, 128, 3), np.uint8), k=1, min_score=0.3)
    assert found[0].score == pytest.approx(sigmoid(10 * (PADDING / 255 - 0.5)), rel=1e-4)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("k", [1, 4, 30])
def test_suppression_in_the_graph_and_outside_agree(made, tiny_detector, seed, k):
    image = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8)
    image = image.repeat(16, 0).repeat(16, 1)
    outside = made(ranks=False).detect(image, k=k)
    inside = tiny_detector.detect(image, k=k)
    assert len(inside) > k // 10
    assert [(one.index, one.candidate, one.box) for one in inside] == [
        (one.index, one.candidate, one.box) for one in outside
    ]
    for one, other in zip(inside, outside, strict=True):
        np.testing.assert_array_equal(one.map, other.map)


def test_settings_choose_among_candidates(tiny_detector):
    assert [one.label for one in tiny_detector.detect(scene(), min_score=0.97)] == ["red"]
    assert tiny_detector.detect(scene(), min_score=0.999) == []
    assert [one.label for one in tiny_detector.detect(scene(), k=1)] == ["red"]
    assert [one.label for one in tiny_detector.detect(scene(), "blue")] == ["blue"]
    assert [one.label for one in tiny_detector.detect(scene(), ["blue", 0])] == ["red", "blue"]
    # A large square: neighbours overlap by a third.
    image = np.zeros((SIZE, SIZE, 3), np.uint8)
    image[16:32, 16:32, 1] = 255
    few = tiny_detector.detect(image, iou=0.05, k=100)
    many = tiny_detector.detect(image, k=100)
    assert len(few) < len(many)
    boxes = np.array([one.box for one in few], np.float32)
    assert (overlaps(boxes, boxes) - np.eye(len(few))).max() <= 0.05


def test_named_candidates_are_explained_whatever_their_score(tiny_detector):
    found = tiny_detector.detect(scene(), [(19, "red"), (0, 1)])
    assert [(one.candidate, one.label) for one in found] == [(19, "red"), (0, "green")]
    assert found[1].score == pytest.approx(sigmoid(-5), rel=1e-4)
    (alone,) = tiny_detector.detect(scene(), (19, 0))
    assert alone.candidate == 19


def test_batches_give_what_single_images_give(tiny_detector, tmp_path):
    images = [scene(), np.zeros((SIZE, SIZE, 3), np.uint8), scene()[:, ::-1]]
    together = tiny_detector.detect(images)
    assert [len(found) for found in together] == [2, 0, 2]
    for found, image in zip(together, images, strict=True):
        assert [one.box for one in found] == [one.box for one in tiny_detector.detect(image)]
    both = tiny_detector.detect(images, method=["layercam", "gradcam"])
    assert list(both) == ["layercam", "gradcam"]
    np.testing.assert_allclose(both["layercam"][0][0].map, both["gradcam"][0][0].map ** 2)
    cv2.imwrite(str(tmp_path / "a.png"), scene()[..., ::-1])
    (tmp_path / "b.png").write_bytes(b"nothing")
    plan = whycam.runtime.detection_plan.plan_detection(tiny_detector.manifest)
    (_, first), (_, second) = tiny_detector.iter_detections(tmp_path, plan)
    assert [one.label for one in first.by_method["gradcam"]] == ["red", "blue"]
    assert isinstance(second, ImageError)


def test_bgr_frames_have_their_colours(tiny_detector):
    found = tiny_detector.detect(scene()[..., ::-1], color="BGR")
    assert [one.label for one in found] == ["red", "blue"]
    np.testing.assert_array_equal(found[0].image, scene())


def test_tft_evaluates_the_best_candidate_that_overlaps_by_half(made):
    """Each threshold by hand: mask the input, score all candidates, look for the same object."""
    explainer = made(mean=0.1)
    (whole,) = explainer.detect(scene(), (19, 0), tft=True)
    image = np.zeros((SIZE, SIZE, 3), np.uint8)
    # Red where the map is high, and dark in the rest of the cell, which a mask makes brighter.
    image[whole.original_map >= 0.8, 0] = 255
    (red,) = explainer.detect(image, "red", tft=True)
    normalised = np.moveaxis(image / np.float32(255) - np.float32(0.1), -1, 0)
    near = overlaps(np.array([red.box], np.float32), cell_boxes())[0] >= 0.5
    expected = []
    for tau in Tft().taus:
        mask = (red.original_map >= tau) & (red.original_map != 0)
        outputs = explainer.engine.run(
            {
                "image": (normalised * mask)[None].astype(np.float32),
                "target": np.zeros((1, 1, 2), np.int64),
            },
            ["candidate_scores"],
        )
        masked = outputs["candidate_scores"][0, near, 0].max()
        expected.append(max(masked - red.score, 0) / red.score)
    assert max(expected) > 0.01
    np.testing.assert_allclose(red.rpi, expected, atol=1e-5)
    assert red.threshold == Tft().taus[int(np.argmax(red.rpi))]
    assert red.improved
    assert red.masked_probability == pytest.approx(red.score * (1 + max(expected)), rel=1e-4)
    assert red.map.shape == (SIZE, SIZE)


def test_tft_of_an_object_that_is_lost_scores_nothing(made):
    """Maps that lie beside the object leave none of it."""
    red, _ = made().detect(scene(), tft=Tft(taus=(0.9,)))
    # Nine tenths of the map's peak leave a few pixels of the cell: no score of red near 0.99.
    assert not red.improved
    assert red.threshold is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": "dog"}, "no class is called 'dog'"),
        ({"target": 7}, "there is no class 7"),
        ({"target": (99, 0)}, "there is no candidate 99"),
        ({"target": (1, 2, 3)}, "pair"),
        ({"target": [(1, 2), 0]}, "not both"),
        ({"target": []}, "empty list"),
        ({"target": True}, "a target is a class"),
        ({"k": 0}, "1 to 100"),
        ({"k": 101}, "1 to 100"),
        ({"min_score": 1.0}, "least score"),
        ({"iou": 1.5}, "iou must lie"),
        ({"method": "ablation"}, "exported with the methods gradcam, layercam"),
        ({"method": "lime"}, "there is no method"),
        ({"score": "left"}, "explains the score of the class, not the left edge.*--score left"),
        ({"geometry": "screen"}, "geometry"),
    ],
)
def test_what_cannot_be_is_refused(tiny_detector, options, message):
    with pytest.raises(RequestError, match=message):
        tiny_detector.detect(scene(), **options)


def test_files_that_explain_an_edge_say_so_and_have_no_tft(made):
    explainer = made(score="left")
    first, *_ = explainer.detect(scene(), score="left")
    assert first.edge == "left"
    assert "left edge" in repr(first)
    assert "left edge" in first.caption_lines()[0]
    assert explainer.detect(scene(), tft="naive")[0].threshold == 0.85
    with pytest.raises(RequestError, match="TFT looks for the threshold that raises a score"):
        explainer.detect(scene(), tft=True)


def test_networks_without_suppression_refuse_an_overlap(made):
    with pytest.raises(RequestError, match="nothing is suppressed"):
        made(iou=None, ranks=False).detect(scene(), iou=0.5)
    duplicates = made(iou=None, ranks=False).detect(scene(), k=5, min_score=0.9)
    assert [one.label for one in duplicates] == ["red", "blue"]


def test_a_classifier_finds_no_boxes(tiny):
    with pytest.raises(RequestError, match=r"is no detector.*Explainer\.explain"):
        tiny.detect(scene())


def test_numbers_are_ready_for_json_and_people(tiny_detector):
    red, _ = tiny_detector.detect(scene())
    assert repr(red) == (
        "Detection('red' (0), score 0.993, box 20 12 36 28, gradcam, image 64 x 64)"
    )
    numbers = red.to_dict()
    assert numbers["box"] == [20, 12, 36, 28]
    assert (numbers["candidate"], numbers["score"]) == (19, red.score)
    assert "data:image/jpeg;base64" in red._repr_html_()


def test_overlays_show_the_box_and_the_explained_edge(made, tmp_path):
    red, _ = made(score="top").detect(scene())
    drawn = red.overlay()
    assert drawn[28, 30].tolist() == [90, 220, 255]  # the bottom of the box
    assert drawn[12, 28].tolist() == [255, 140, 0]  # its top, which is explained
    assert red.save(tmp_path / "red.png").is_file()
    image = np.zeros((20, 20, 3), np.uint8)
    draw_box(image, Box(-5, -5, 400, 400))  # is cut at the image's edges
    assert image[0, 0].tolist() == [90, 220, 255]


def test_all_objects_are_drawn_on_one_image(tiny_detector):
    found = tiny_detector.detect(scene())
    heat = join_heat(found)
    np.testing.assert_array_equal(heat, np.maximum(*(one.on_image(one.map) for one in found)))
    image = np.full((SIZE, SIZE, 3), 90, np.uint8)
    drawn = whycam.draw_detections(image, found, whycam.Style(caption=False))
    for one in found:
        left, _, _, bottom = map(round, one.box)
        assert drawn[bottom, left].tolist() == [90, 220, 255]
    assert np.array_equal(drawn[0], image[0])  # where there is neither heat nor a box
    assert np.array_equal(whycam.draw_detections(image, []), image)
    with pytest.raises(RequestError, match="not of one of 63 x 64"):
        whycam.draw_detections(image[:-1], found)


def test_detections_are_those_of_supervision(tiny_detector):
    pytest.importorskip("supervision")
    found = tiny_detector.detect(scene())
    detections = to_supervision(found)
    assert detections.xyxy.tolist() == [list(one.box) for one in found]
    assert detections.class_id.tolist() == [0, 2]
    assert detections["class_name"].tolist() == ["red", "blue"]
    np.testing.assert_array_equal(detections.mask[1], found[1].region.mask)
    assert len(to_supervision([])) == 0
    assert len(found[0].to_detections()) == 1


def test_without_supervision_detections_say_what_to_install(tiny_detector, monkeypatch):
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(RequestError, match="pip install supervision"):
        to_supervision(tiny_detector.detect(scene()))


def test_detecting_loads_no_torch(tmp_path: Path, run_python):
    path = tmp_path / "tiny.onnx"
    write_tiny_detector(path)
    assert (
        run_python(f"""
        import sys
        import numpy as np
        import whycam
        whycam.load({str(path)!r}).detect(np.zeros((64, 64, 3), np.uint8))
        print("torch" in sys.modules)
    """)
        == "False"
    )
