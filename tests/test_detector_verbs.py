"""The verbs on a detector's file: what they write, and what they refuse before any work."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from PIL import Image
from test_cli import whycam  # noqa: F401
from tiny_detector import SIZE, write_tiny_detector

import whycam as package
from whycam.runtime.onnxfile import append_manifest, digest


@pytest.fixture(scope="module")
def detector_onnx(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("detector") / "tiny.onnx"
    write_tiny_detector(path)
    return path


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A red and a blue object, an empty image, and a file that is none."""
    folder = tmp_path / "in"
    folder.mkdir()
    scene = np.zeros((SIZE, SIZE, 3), np.uint8)
    scene[16:24, 24:32, 0], scene[48:56, 8:16, 2] = 255, 204
    Image.fromarray(scene).save(folder / "a.png")
    Image.fromarray(np.zeros((SIZE, SIZE, 3), np.uint8)).save(folder / "b.png")
    return folder


def test_explain_lists_objects_and_says_what_it_would_write(whycam, detector_onnx, images):  # noqa: F811
    result = whycam("explain", detector_onnx, images)
    assert result.code == 0, result.err
    lines = [line.split() for line in result.out.splitlines()]
    assert lines[1][:5] == ["a.png", "gradcam", "red", "(0)", "0.9933"]
    assert lines[2][2] == "blue"
    assert lines[3] == ["b.png", "no", "detection"]
    assert "1 images without a detection of score 0.25 or more" in result.out
    assert "maps/a.detections.gradcam.png" in result.out


def test_explain_writes_one_image_with_all_boxes(whycam, detector_onnx, images, tmp_path):  # noqa: F811
    out = tmp_path / "out"
    assert whycam("explain", detector_onnx, images, "-o", out, "--no-caption").code == 0
    assert sorted(path.name for path in out.iterdir()) == [
        "a.detections.gradcam.png",
        "b.detections.gradcam.png",
    ]
    drawn = np.asarray(Image.open(out / "a.detections.gradcam.png").convert("RGB"))
    found = package.load(detector_onnx, threads=1).detect(images / "a.png")
    style = package.Style(caption=False)
    scale = drawn.shape[0] // SIZE
    expected = package.draw_detections(found[0].image, found, style, scale)
    np.testing.assert_array_equal(drawn, expected)
    again = whycam("explain", detector_onnx, images, "-o", out)
    assert again.code == 2
    assert "nothing was begun" in again.err
    one = tmp_path / "why.png"
    assert whycam("explain", detector_onnx, images / "a.png", "-o", one).code == 0
    assert one.is_file()


def test_explain_writes_each_detection_by_its_rank(whycam, detector_onnx, images, tmp_path):  # noqa: F811
    out = tmp_path / "out"
    result = whycam(
        "explain", detector_onnx, images, "-o", out, "--tft", "--save",
        "overlay,figure,map,mask,csv,jsonl,coco", "--method", "layercam", "--json",
    )  # fmt: skip
    assert result.code == 0, result.err
    names = {path.name for path in out.iterdir()}
    for rank, label in ((1, "0-red"), (2, "2-blue")):
        stem = f"a.{rank}.{label}.layercam.tft"
        assert {f"{stem}.png", f"{stem}.figure.png", f"{stem}.map.npy", f"{stem}.mask.png"} <= names
    assert np.load(out / "a.1.0-red.layercam.tft.map.npy").shape == (SIZE, SIZE)
    rows = list(csv.DictReader((out / "explanations.csv").open()))
    assert [row["label"] for row in rows] == ["red", "blue", ""]
    assert [float(rows[0][f"box_{side}"]) for side in ("left", "top", "right", "bottom")] == [
        20, 12, 36, 28,
    ]  # fmt: skip
    assert float(rows[1]["score"]) == pytest.approx(1 / (1 + np.exp(-3)), rel=1e-5)
    assert rows[2]["height"] == str(SIZE)
    records = [json.loads(line) for line in (out / "explanations.jsonl").open()]
    assert records[0]["candidate"] == 19
    assert records[0]["box"] == [20, 12, 36, 28]
    assert records[0]["region"]["area"] > 0
    coco = json.loads((out / "explanations.coco.json").read_text())
    assert len(coco["images"]) == 2
    assert coco["annotations"][0]["bbox"] == [20, 12, 16, 16]
    assert [one["name"] for one in coco["categories"]] == ["red", "green", "blue"]
    printed = result.json()["detections"]
    assert [row.get("label") for row in printed] == ["red", "blue", None]
    assert len(printed[0]["written"]) == 4


def test_report_shows_each_detection(whycam, detector_onnx, images, tmp_path):  # noqa: F811
    out = tmp_path / "out"
    assert whycam("explain", detector_onnx, images, "-o", out, "--report", "--tft").code == 0
    page = (out / "report.html").read_text("utf-8")
    (data,) = re.findall(r'<script type="application/json"[^>]*>(.*?)</script>', page, re.DOTALL)
    document = json.loads(data)
    assert [one["name"] for one in document["images"]] == ["a.png #1", "a.png #2"]
    assert document["images"][0]["top"][0][0][0] == 0
    assert document["labels"] == {"0": "red", "2": "blue"}


@pytest.mark.parametrize(
    ("options", "labels"),
    [
        (["--top", "1"], ["red"]),
        (["--target", "blue"], ["blue"]),
        (["--target", "blue,red"], ["red", "blue"]),
        (["--target", "19:red,0:1"], ["red", "green"]),
        (["--min-score", "0.97"], ["red"]),
        (["--iou", "0.1", "--score", "class"], ["red", "blue"]),
    ],
)
def test_options_choose_what_is_explained(whycam, detector_onnx, images, options, labels):  # noqa: F811
    result = whycam("explain", detector_onnx, images / "a.png", "--json", *options)
    assert result.code == 0, result.err
    assert [row["label"] for row in result.json()["detections"]] == labels


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--save", "comparison", "-o", "x"], "compares the classes of whole images"),
        (["--save", "overlay"], "needs a place"),
        (["--top", "0"], "1 to 100 detections"),
        (["--target", "dog"], "no class is called 'dog'"),
        (["--target", "900:red"], "no candidate 900"),
        (["--score", "left"], "export it again with --score left"),
        (["--save", "mask", "-o", "x"], "no masks without thresholding"),
        (["-o", "x.npy"], "one file"),
        (["--on", "ray", "-o", "x"], "is a detector, and --on explains classifiers"),
        (["--method", "scorecam"], "exported with the methods"),
    ],
)
def test_explain_refuses_what_a_detector_cannot(
    whycam,  # noqa: F811
    detector_onnx,
    images,
    tmp_path,
    monkeypatch,
    options,
    message,
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("whycam.runtime.load.load", lambda *_, **__: pytest.fail("work was begun"))
    result = whycam("explain", detector_onnx, images / "a.png", *options)
    assert result.code == 2
    assert message in " ".join(result.err.split())
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    "options",
    [["--min-score", "0.5"], ["--iou", "0.5"], ["--score", "class"], ["--save", "detections"]],
)
def test_explain_refuses_a_detectors_options_for_a_classifier(
    whycam,  # noqa: F811
    curved_onnx,
    images,
    tmp_path,
    options,
):
    result = whycam("explain", curved_onnx, images / "a.png", *options, "-o", tmp_path / "x")
    assert result.code == 2
    assert "detector" in result.err
    assert not (tmp_path / "x").exists()


@pytest.fixture
def walk(tmp_path: Path) -> Path:
    """Three frames, in which a red object moves by a cell, and a fourth without it."""
    folder = tmp_path / "walk"
    folder.mkdir()
    for index in range(4):
        frame = np.zeros((SIZE, SIZE, 3), np.uint8)
        if index < 3:
            frame[16:24, 16 + 8 * index : 24 + 8 * index, 0] = 255
        Image.fromarray(frame).save(folder / f"{index}.png")
    return folder


def test_stream_records_and_draws_what_each_frame_has(whycam, detector_onnx, walk, tmp_path):  # noqa: F811
    record = tmp_path / "walk.jsonl"
    result = whycam(
        "stream", detector_onnx, "--source", walk, "--record", record, "--top", "3",
        "--min-score", "0.9", "--tft", "every", "--output", tmp_path / "walk.mp4",
    )  # fmt: skip
    assert result.code == 0, result.err
    lines = [json.loads(line) for line in record.open()]
    found = [[one["candidate"] for one in line["detections"]] for line in lines]
    assert found == [[18], [19], [20], []]
    assert lines[0]["detections"][0]["label"] == "red"
    assert lines[0]["timing"]["evaluations"] == 10
    assert (tmp_path / "walk.mp4").stat().st_size > 0


def test_frames_of_a_stream_are_drawn_as_images_are(detector_onnx, walk):
    explainer = package.load(detector_onnx, threads=1)
    frames = list(package.stream(explainer, walk, smoothing=0.0))
    assert [len(frame.detections) for frame in frames] == [1, 1, 1, 0]
    assert all(frame.explanation is None for frame in frames)
    for frame in frames[:3]:
        left, top, right, bottom = map(round, frame.detections[0].box)
        assert frame.image[bottom, left].tolist() == [90, 220, 255]
        assert frame.image[(top + bottom) // 2, (left + right) // 2, 1] > 30  # heat on pure red
    np.testing.assert_array_equal(frames[3].image, frames[3].original)
    alone = next(iter(package.stream(explainer, walk, view="map", smoothing=0.0)))
    assert alone.image[-1, -1].tolist() == [0, 0, 4]  # inferno's colour of 0
    side = next(iter(package.stream(explainer, walk, view="side-by-side")))
    assert side.image.shape == (SIZE, 2 * SIZE, 3)


def test_unchanged_frames_cost_the_detector_nothing(detector_onnx):
    frame = np.zeros((SIZE, SIZE, 3), np.uint8)
    frame[16:24, 16:24, 0] = 255
    explainer = package.load(detector_onnx, threads=1)
    frames = list(package.stream(explainer, [frame, frame.copy()]))
    assert [each.reused for each in frames] == [None, "unchanged"]
    assert frames[1].detections[0].box == frames[0].detections[0].box


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--tft", "track"], "use every or off"),
        (["--evaluations", "2"], "which a detector has not"),
        (["--serve", "0"], "shows the classes of whole images"),
        (["--target", "dog"], "no class is called 'dog'"),
        (["--top", "1000"], "1 to 100 detections"),
        (["--score", "left"], "--score left"),
    ],
)
def test_stream_refuses_what_a_detector_cannot(whycam, detector_onnx, walk, options, message):  # noqa: F811
    result = whycam("stream", detector_onnx, "--source", walk, *options)
    assert result.code == 2
    assert message in " ".join(result.err.split())


@pytest.mark.parametrize("options", [["--top", "3"], ["--iou", "0.5"]])
def test_stream_refuses_a_detectors_options_for_a_classifier(whycam, curved_onnx, walk, options):  # noqa: F811
    result = whycam("stream", curved_onnx, "--source", walk, *options)
    assert result.code == 2
    assert "is for detectors" in result.err


def test_bench_times_one_and_ten_detections_beside_plain_detection(whycam, detector_onnx):  # noqa: F811
    result = whycam(
        "bench", detector_onnx, "--rounds", "2", "--threads", "1", "--engine", "onnxruntime",
        "--method", "layercam", "--json",
    )  # fmt: skip
    assert result.code == 0, result.err
    rows = result.json()["rows"]
    assert [(row["method"], row["tft"], row["detections"]) for row in rows] == [
        (None, False, 0),
        ("layercam", False, 1),
        ("layercam", False, 10),
        ("layercam", True, 1),
        ("layercam", True, 10),
    ]
    assert rows[0]["ratio_to_plain"] == 1
    assert all(row["ratio_to_plain"] > 0 for row in rows[1:])
    assert "sweep" in rows[4]["stages_median_ms"]
    table = whycam("bench", detector_onnx, "--rounds", "1", "--detections", "3", "--tft", "off")
    assert "detection" in table.out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--detections", "1000"], "1 to 80 detections"),
        (["--against", "torchcam"], "is a detector"),
        (["--method", "scorecam"], "exported with the methods"),
    ],
)
def test_bench_refuses_what_a_detector_cannot(whycam, detector_onnx, options, message):  # noqa: F811
    result = whycam("bench", detector_onnx, *options)
    assert result.code == 2
    assert message in " ".join(result.err.split())


def test_bench_refuses_detections_for_a_classifier(whycam, curved_onnx):  # noqa: F811
    result = whycam("bench", curved_onnx, "--detections", "1")
    assert result.code == 2
    assert "only a detector" in result.err


def annotate(folder: Path, name: str, objects: dict[str, tuple[int, int, int, int]]) -> None:
    """Write a Pascal VOC annotation; boxes in pixels from 0, right and bottom not in them."""
    parts = [
        f"<object><name>{label}</name><bndbox><xmin>{left + 1}</xmin><ymin>{top + 1}</ymin>"
        f"<xmax>{right}</xmax><ymax>{bottom}</ymax></bndbox></object>"
        for label, (left, top, right, bottom) in objects.items()
    ]
    (folder / f"{name}.xml").write_text(f"<annotation>{''.join(parts)}</annotation>")


@pytest.fixture
def voc(images: Path, tmp_path: Path) -> Path:
    """The two images with annotated boxes: the red object's, and one far from the blue object."""
    root = tmp_path / "voc"
    (root / "Annotations").mkdir(parents=True)
    images.rename(root / "JPEGImages")
    annotate(root / "Annotations", "a", {"red": (20, 12, 36, 26), "blue": (40, 0, 60, 20)})
    annotate(root / "Annotations", "b", {"green": (0, 0, 9, 9)})
    return root


def test_evaluate_measures_detections_against_the_boxes_they_match(whycam, detector_onnx, voc):  # noqa: F811
    command = ["evaluate", detector_onnx, voc, "--variants", "original", "--curves", "4"]
    result = whycam(*command, "--method", "gradcam", "--json")
    assert result.code == 0, result.err
    document = result.json()
    assert (document["detections"], document["matched"], document["images"]) == (2, 1, 2)
    (row,) = document["results"]
    red, _ = package.load(detector_onnx, threads=1).detect(voc / "JPEGImages" / "a.png", tft=True)
    inside = red.original_map[12:26, 20:36].sum() / red.original_map.sum()
    assert row["energy_in_box"] == pytest.approx(inside, rel=1e-4)
    assert row["pointing_game"] == 1
    assert row["maps"] == 2
    assert 0 < row["deletion"] < row["insertion"] <= 1
    assert 0 <= row["average_drop"] < 1
    printed = whycam(*command)
    assert "2 detections, of which 1 match an annotated box of their class" in printed.out
    matching = whycam(*command, "--target", "label", "--json").json()
    assert (matching["detections"], matching["matched"]) == (1, 1)
    # Red is found where it is annotated, blue elsewhere, and green is not found.
    for figures in (document, matching):
        accuracy = [figures[name] for name in ("precision", "recall", "annotated")]
        assert accuracy == pytest.approx([1 / 2, 1 / 3, 3])
    assert "precision 0.500, recall 0.333 of 3 annotated boxes" in " ".join(printed.out.split())


def test_boxes_of_a_coco_file_count_as_those_of_voc(whycam, detector_onnx, voc, tmp_path):  # noqa: F811
    corners = {"red": (20, 12, 36, 26), "blue": (40, 0, 60, 20), "green": (0, 0, 9, 9)}
    document = {
        "categories": [{"id": 7 + i, "name": name} for i, name in enumerate(corners)],
        "images": [{"id": 1, "file_name": "a.png"}, {"id": 2, "file_name": "b.png"}],
        "annotations": [
            {
                "image_id": 2 if name == "green" else 1,
                "category_id": 7 + i,
                "bbox": [left, top, right - left, bottom - top],
            }
            for i, (name, (left, top, right, bottom)) in enumerate(corners.items())
        ],
    }
    crowd = {"image_id": 1, "category_id": 7, "bbox": [0, 0, 64, 64], "iscrowd": 1}
    document["annotations"].insert(0, crowd)
    boxes = tmp_path / "instances.json"
    boxes.write_text(json.dumps(document))
    command = ["evaluate", detector_onnx, "--variants", "original", "--json"]
    expected = whycam(*command, voc).json()
    found = whycam(*command, voc / "JPEGImages", "--boxes", boxes)
    assert found.code == 0, found.err
    assert found.json()["results"] == expected["results"]
    assert found.json()["matched"] == expected["matched"] == 1
    assert found.json()["recall"] == expected["recall"] == pytest.approx(1 / 3)
    matching = whycam(*command, voc / "JPEGImages", "--boxes", boxes, "--target", "label")
    assert matching.code == 0, matching.err
    assert matching.json()["detections"] == 1
    boxes.write_text(json.dumps({**document, "images": [{"id": 1, "file_name": "x.png"}]}))
    for problem in ("cannot read", "has none of the 2 images"):
        result = whycam(*command, voc / "JPEGImages", "--boxes", boxes)
        assert result.code == 2
        assert problem in result.err
        boxes.write_text(json.dumps({"categories": [], "images": [], "annotations": []}))


def test_without_annotations_maps_are_measured_against_their_own_boxes(
    whycam,  # noqa: F811
    detector_onnx,
    images,
    tmp_path,
):
    out = tmp_path / "out"
    result = whycam(
        "evaluate", detector_onnx, images, "--json", "-o", out, "--top", "1", "--min-score", "0.5"
    )
    assert result.code == 0, result.err
    assert (result.json()["detections"], result.json()["matched"]) == (1, None)
    assert (result.json()["precision"], result.json()["recall"]) == (None, None)
    rows = [json.loads(line) for line in (out / "images.jsonl").open()][1:]
    assert [len(row["explained"]) for row in rows] == [1, 0]
    assert rows[0]["explained"][0]["box"] == [20, 12, 36, 28]
    measures = rows[0]["explained"][0]["methods"]["gradcam"]
    assert set(measures) == {"original", "naive", "tft"}
    assert 0.3 < measures["original"]["energy"] < 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--report", "-o", "x"], "whycam explain --report shows its detections"),
        (["--stability"], "compares the maps of one class"),
        (["--ask", "{file}"], "is a detector"),
        (["--target", "label"], "match an annotated box"),
        (["--top", "0"], "1 to 100 detections"),
        (["--score", "left"], "--score left"),
        (["--method", "ablation"], "cannot make ablation maps"),
    ],
)
def test_evaluate_refuses_what_a_detector_cannot(whycam, detector_onnx, images, options, message):  # noqa: F811
    words = [word.format(file=detector_onnx) for word in options]
    result = whycam("evaluate", detector_onnx, images, *words)
    assert result.code == 2
    assert message in " ".join(result.err.split())


@pytest.mark.parametrize("options", [["--top", "3"], ["--iou", "0.5"]])
def test_evaluate_refuses_a_detectors_options_for_a_classifier(
    whycam,  # noqa: F811
    curved_onnx,
    images,
    options,
):
    result = whycam("evaluate", curved_onnx, images, *options)
    assert result.code == 2
    assert "is for detectors" in result.err


def test_compare_matches_the_objects_of_two_detectors(whycam, detector_onnx, images, tmp_path):  # noqa: F811
    same = whycam("compare", detector_onnx, detector_onnx, images, "--json").json()
    assert (same["detections"], same["others"], same["matched"]) == (2, 2, 2)
    assert (same["iou"], same["score"], same["lost"]) == (1, 0, {})
    assert all(maps["pearson"] == pytest.approx(1) for maps in same["maps"].values())
    # With every score lower, the weaker of the two objects is not found again.
    weaker = package.load(detector_onnx, threads=1)
    scores = sorted(one.score for one in weaker.detect(images / "a.png"))
    model = onnx.load(detector_onnx)
    del model.metadata_props[:]
    (sigmoid,) = [node for node in model.graph.node if node.op_type == "Sigmoid"]
    lower = numpy_helper.from_array(np.float32(np.log(scores[0] / (1 - scores[0]))), "lower")
    model.graph.initializer.append(lower)
    model.graph.node.insert(
        list(model.graph.node).index(sigmoid),
        onnx.helper.make_node("Sub", [sigmoid.input[0], "lower"], ["lowered"]),
    )
    sigmoid.input[0] = "lowered"
    onnx.save(model, tmp_path / "weak.onnx")
    manifest = msgspec.structs.replace(
        weaker.manifest,
        digest=digest(tmp_path / "weak.onnx"),
        detector=msgspec.structs.replace(weaker.manifest.detector, references=()),
    )
    append_manifest(tmp_path / "weak.onnx", manifest)
    command = ["compare", detector_onnx, tmp_path / "weak.onnx", images, "--min-score", "0.6"]
    result = whycam(*command, "--json")
    assert result.code == 0, result.err
    found = result.json()
    assert (found["detections"], found["others"], found["matched"]) == (2, 1, 1)
    assert found["lost"] == {"a.png": 1}
    assert found["score"] > 0.001
    assert "1 of 2 objects are found again" in whycam(*command).out


@pytest.mark.parametrize("options", [["--report", "-o", "x"], ["-o", "x"], ["--mask", "soft"]])
def test_compare_refuses_what_is_of_whole_images(whycam, detector_onnx, images, options):  # noqa: F811
    result = whycam("compare", detector_onnx, detector_onnx, images, *options)
    assert result.code == 2
    assert "classes of whole images" in result.err


def test_a_detector_is_not_compared_with_a_classifier(whycam, detector_onnx, curved_onnx, images):  # noqa: F811
    result = whycam("compare", detector_onnx, curved_onnx, images)
    assert result.code == 2
    assert "is no detector" in result.err
