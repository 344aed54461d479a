"""What whycam explain writes: names, one file or a folder, tables, nothing overwritten."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_cli import whycam  # noqa: F401
from test_region import fill

from whycam.runtime.region import Polygon


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Two images of different sizes and one that is none, in a folder."""
    folder = tmp_path / "in"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name, size in (("a.png", (40, 60)), ("b.png", (48, 32))):
        Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)).save(folder / name)
    (folder / "c.png").write_bytes(b"no image")
    return folder


def test_without_output_it_says_what_would_go_where(whycam, curved_onnx, images):  # noqa: F811
    result = whycam("explain", curved_onnx, images / "a.png")
    assert "nothing was written; with -o maps/ the overlay goes to maps/a." in result.out


def test_files_carry_class_method_and_threshold(whycam, curved_onnx, images, tmp_path):  # noqa: F811
    out = tmp_path / "out"
    kinds = "overlay,figure,map,mask"
    result = whycam(
        "explain", curved_onnx, images / "a.png", "-o", out, "--tft", "--save", kinds,
        "--format", "jpg", "--target", "2",
    )  # fmt: skip
    assert result.code == 0, result.err
    assert sorted(path.name for path in out.iterdir()) == [
        "a.2.gradcam.tft.figure.jpg",
        "a.2.gradcam.tft.jpg",
        "a.2.gradcam.tft.map.npy",
        "a.2.gradcam.tft.mask.png",
    ]
    assert "1 overlay, 1 figure, 1 map, 1 mask" in result.out
    assert np.load(out / "a.2.gradcam.tft.map.npy").shape == (40, 60)
    assert Image.open(out / "a.2.gradcam.tft.mask.png").size == (60, 40)
    others = ["--target", "3", "--tft", "--mask", "soft", "--thresholds", "rank"]
    assert whycam("explain", curved_onnx, images / "a.png", "-o", out, *others).code == 0
    assert (out / "a.3.gradcam.tft-soft-rank.png").is_file()


def test_nothing_is_overwritten_unless_asked(whycam, curved_onnx, images, tmp_path):  # noqa: F811
    for place in (tmp_path / "out", tmp_path / "one.png", tmp_path / "table.csv"):
        command = ["explain", curved_onnx, images / "a.png", "-o", place]
        assert whycam(*command).code == 0
        file = place if place.is_file() else next(place.iterdir())
        before = file.stat().st_mtime_ns
        again = whycam(*command)
        assert again.code == 2
        assert f"{file} exists already" in again.err
        assert "--overwrite" in again.err
        assert file.stat().st_mtime_ns == before
        assert whycam(*command, "--overwrite").code == 0
        assert file.stat().st_mtime_ns > before


@pytest.mark.parametrize(
    ("chosen", "options"),
    [
        (["--target", "2"], []),
        ([], ["--tft", "--save", "mask,map"]),
        (["--top", "2"], []),
        (["--target", "2,3"], ["--save", "comparison,overlay", "--naive"]),
    ],
)
def test_a_folder_whose_files_exist_is_refused_before_any_work(
    whycam,  # noqa: F811
    curved_onnx,
    images,
    tmp_path,
    chosen,
    options,
):
    (images / "c.png").unlink()
    command = ["explain", curved_onnx, images, "-o", tmp_path / "out", *chosen, *options]
    assert whycam(*command).code == 0
    written = sorted((tmp_path / "out").iterdir())
    of_first = [file for file in written if file.name.startswith("a.")]
    for file in of_first:
        file.unlink()
    left = [file.name for file in written if file not in of_first]
    again = whycam(*command)
    assert again.code == 2
    assert f"{len(left)} file" in again.err
    assert left[0] in again.err
    assert "--overwrite" in again.err
    assert ("is known only" in again.err) is ("--target" not in chosen)
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == left
    assert whycam(*command, "--overwrite").code == 0
    assert sorted((tmp_path / "out").iterdir()) == written


def test_files_of_another_class_method_or_threshold_are_in_nobody_s_way(
    whycam,  # noqa: F811
    curved_onnx,
    images,
    tmp_path,
):
    (images / "c.png").unlink()
    command = ["explain", curved_onnx, images, "-o", tmp_path / "out"]
    assert whycam(*command, "--target", "2").code == 0
    for options in (["--target", "3"], ["--target", "2", "--tft"], ["--top", "2"]):
        assert whycam(*command, *options).code == 0
    assert len(list((tmp_path / "out").iterdir())) == 8


def test_one_explanation_goes_to_one_file(whycam, curved_onnx, images, tmp_path):  # noqa: F811
    for name, options in (("why.webp", []), ("map.npy", []), ("mask.png", ["--save", "mask"])):
        result = whycam(
            "explain", curved_onnx, images / "a.png", "-o", tmp_path / name, "--tft", *options
        )
        assert result.code == 0, result.err
        assert (tmp_path / name).is_file()
        assert f"written to {tmp_path / name}" in result.out
    refused = whycam("explain", curved_onnx, images, "-o", tmp_path / "all.png")
    assert refused.code == 2
    assert "name a folder" in refused.err
    assert not (tmp_path / "all.png").exists()


def test_a_table_has_a_row_for_each_image_and_for_what_is_none(
    whycam,  # noqa: F811
    curved_onnx,
    images,
    tmp_path,
):
    saves = ["--save", "csv,jsonl,coco", "--tft"]
    result = whycam("explain", curved_onnx, images, "-o", tmp_path / "out", *saves)
    assert result.code == 2  # c.png
    with open(tmp_path / "out" / "explanations.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    lines = (tmp_path / "out" / "explanations.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    names = [Path(row["file"]).name for row in rows]
    assert names == ["a.png", "b.png", "c.png"]
    assert "no image" in rows[2]["error"]
    assert records[2].keys() == {"file", "error"}
    coco = json.loads((tmp_path / "out" / "explanations.coco.json").read_text())
    assert [image["width"] for image in coco["images"]] == [60, 32]
    assert len(coco["categories"]) == 7
    for row, record, note in zip(rows, records, coco["annotations"], strict=False):
        assert row["tft"] == "binary mask, value thresholds"
        assert (row["threshold"] == "none") is (record["threshold"] is None)
        assert float(row["probability"]) == record["probability"] == note["score"]
        shape = int(row["height"]), int(row["width"])
        region = record["region"]
        polygons = [
            Polygon(np.array(one["exterior"]), tuple(map(np.array, one["holes"])))
            for one in region["polygons"]
        ]
        filled = np.sum([np.zeros(shape, int), *(fill(one, shape) for one in polygons)], 0)
        assert filled.sum() == region["area"] == int(row["area"]) == note["area"]
        left, top, right, bottom = (int(row[side]) for side in ("left", "top", "right", "bottom"))
        assert region["box"] == [left, top, right, bottom]
        assert note["bbox"] == [left, top, right - left, bottom - top]
        if any(one.holes for one in polygons):
            runs = note["segmentation"]["counts"]
            decoded = np.repeat(np.arange(len(runs)) % 2, runs).reshape(shape, order="F")
        else:
            parts = [np.reshape(part, (-1, 2)) for part in note["segmentation"]]
            decoded = np.sum([fill(Polygon(part, ()), shape) for part in parts], 0)
        assert np.array_equal(decoded, filled)


def test_a_table_alone_holds_any_number_of_images(whycam, curved_onnx, images, tmp_path):  # noqa: F811
    pattern = f"{images}/[ab].png"
    assert whycam("explain", curved_onnx, pattern, "-o", tmp_path / "all.jsonl").code == 0
    assert len((tmp_path / "all.jsonl").read_text().splitlines()) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["all.jsonl", "in"]


def test_names_of_outputs_are_unique(whycam, curved_onnx, images, tmp_path):  # noqa: F811
    for name in ("a.jpg", "a-2.png"):
        Image.open(images / "b.png").save(images / name)
    (images / "c.png").unlink()
    result = whycam("explain", curved_onnx, images, "-o", tmp_path / "out")
    assert result.code == 0, result.err
    assert len(list((tmp_path / "out").iterdir())) == 4


def test_an_address_is_refused_in_words(whycam, curved_onnx):  # noqa: F811
    result = whycam("explain", curved_onnx, "https://example.org/cat.jpg")
    assert result.code == 2
    assert "whycam downloads nothing" in result.err
