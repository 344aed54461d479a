"""The report: what a page holds, that its maps are the explanations', and when none is written."""

from __future__ import annotations

import base64
import hashlib
import html
import io
import re
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from report_pages import data_of, parts_of, write_images, write_report
from tiny_file import write_tiny

import whycam
from whycam.cli import main
from whycam.cli.explain_report import shorten_names
from whycam.runtime.errors import OutputError, RequestError
from whycam.runtime.report.document import MOST_IMAGES, About, Report
from whycam.runtime.report.encode import Grid, enlarge, reduce_map
from whycam.runtime.report.entry import encode_explanations

EVIL = "</script><script>document.title='taken'</script>"


@pytest.mark.parametrize(
    ("grid", "size"),
    [((7, 7), (224, 224)), ((6, 10), (180, 320)), ((16, 16), (224, 224)), ((12, 9), (24, 18))],
)
def test_the_network_s_own_grid_is_recovered_from_an_enlarged_map(grid, size):
    """OpenCV's bilinear enlargement is what maps are made with; its values come back."""
    values = np.random.default_rng(0).random(grid, np.float32)
    enlarged = cv2.resize(values, size[::-1], interpolation=cv2.INTER_LINEAR)
    found = reduce_map(np.clip(enlarged, 0, 1))
    assert found.levels.shape == grid
    levels = found.low + (found.high - found.low) * found.levels / 255
    np.testing.assert_allclose(levels, values, atol=1 / 255)


def test_a_peak_above_the_largest_pixel_is_kept():
    """Maps are scaled by their largest pixel, which lies beside the peak of the enlargement."""
    values = np.zeros((7, 7), np.float32)
    values[3, 2] = 1
    enlarged = cv2.resize(values, (224, 224), interpolation=cv2.INTER_LINEAR)
    scaled = enlarged / enlarged.max()
    found = reduce_map(scaled)
    assert found.levels.shape == (7, 7)
    assert found.high > 1
    assert np.abs(enlarge(found, (224, 224)) - scaled).max() < 0.01


def test_a_map_without_any_grid_is_kept_at_64_by_64():
    noise = np.random.default_rng(1).random((224, 224), np.float32)
    assert reduce_map(noise).levels.shape == (64, 64)
    assert reduce_map(noise).is_reduced
    flat = reduce_map(np.zeros((32, 32), np.float32))
    assert flat.levels.tolist() == [[0]]
    assert not flat.is_reduced


def test_the_page_says_which_maps_it_reduces(tiny, tmp_path):
    (image,) = write_images(tmp_path, 1)
    one, two, three = tiny.explain(image, [0, 1, 2])
    noise = np.random.default_rng(1).random((224, 224), np.float32)
    for reduced in (1, 0):
        with Report(tmp_path / "report.html", 1) as report:
            fine = replace(two, original_map=noise) if reduced else two
            report.add(encode_explanations("0.png", [[one, fine, three]]))
            page = report.write(About(kind="explain", title="", sources=("tiny",), notes=("a",)))
        data = data_of(page)
        assert [entry.get("reduced", False) for entry in data["images"][0]["maps"]] == [
            False, bool(reduced), False,
        ]  # fmt: skip
        first, *others = data["about"]["notes"]
        assert first == "a"
        assert [note[:37] for note in others] == ["1 of 3 maps are finer than 64 x 64 va"] * reduced


def test_an_entry_has_the_numbers_of_its_explanations(tiny, tmp_path):
    (image,) = write_images(tmp_path, 1)
    explanations = tiny.explain(image, [-1, -2, -3], "layercam", tft=True)
    entry = encode_explanations("0.png", [explanations]).entry
    first, one = entry.maps[0], explanations[0]
    assert entry.size == (24, 16)
    assert entry.inputs[0] == pytest.approx((1 / 6, 0, 5 / 6, 1))
    assert (first.index, first.probability, first.cut) == (one.index, one.probability, one.cut)
    assert first.threshold == one.threshold
    assert first.rpi == pytest.approx(one.rpi)
    assert [index for index, _ in entry.top[0]] == [one.index for one in explanations]
    above = (one.on_image(one.original_map) >= one.cut) & (one.on_image(one.original_map) > 0)
    assert first.share == pytest.approx(above.mean())
    left, top, right, bottom = first.box
    assert above[top:bottom, left:right].sum() == above.sum()
    assert above[top].any()
    assert above[:, right - 1].any()


def test_grids_of_the_page_are_the_maps(tiny, tmp_path):
    page = write_report(tiny, tmp_path)
    image = tmp_path / "images" / "1.png"
    explanations = tiny.explain(image, [-1, -2, -3], "gradcam")
    parts, entry = parts_of(page, 1), data_of(page)["images"][1]
    assert len(parts) == 1 + len(entry["maps"])
    assert Image.open(io.BytesIO(parts[0])).size == (24, 16)
    for data, shown, one in zip(parts[1:], entry["maps"], explanations, strict=True):
        levels = np.frombuffer(data, np.uint8).reshape(shown["shape"])
        grid = Grid(levels, shown["low"], shown["high"])
        np.testing.assert_allclose(enlarge(grid, (8, 8)), one.original_map, atol=0.01)


def test_only_the_first_classes_are_thresholded(tiny, tmp_path):
    maps = data_of(write_report(tiny, tmp_path))["images"][0]["maps"]
    assert ["rpi" in one for one in maps] == [True, False, False]


def test_names_and_labels_are_text_whatever_they_hold(tiny, manifest_of, tmp_path):
    named = whycam.Explainer(tiny.engine, manifest_of(labels=(EVIL, "bee", "<!--")))
    page = write_report(named, tmp_path, facts=((EVIL, "<b>"),), notes=(EVIL,))
    text = page.read_text("utf-8")
    assert EVIL not in text
    assert EVIL in data_of(page)["labels"].values()
    with Report(tmp_path / "t.html", 1) as report:
        report.add(encode_explanations(EVIL, [[named.explain(tmp_path / "images" / "0.png")]]))
        report.write(About(kind="explain", title=EVIL, sources=(EVIL,)))
    text = (tmp_path / "t.html").read_text("utf-8")
    assert EVIL not in text
    assert f"<title>{html.escape(EVIL)}</title>" in text


def test_a_page_fetches_nothing_and_runs_its_own_script_alone(tiny, tmp_path):
    text = write_report(tiny, tmp_path).read_text("utf-8")
    policy = html.unescape(re.search(r'Content-Security-Policy" content="([^"]*)"', text)[1])
    assert "default-src 'none'" in policy
    assert re.findall(r"""(?:src|href)=["'](?!#)[^"']*|url\(|@import|fetch\(|XMLHttp""", text) == []
    scripts = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    assert len(scripts) == 1
    digest = base64.b64encode(hashlib.sha256(scripts[0].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy


def test_nothing_is_written_before_a_report_is_whole(tiny, tmp_path):
    images = write_images(tmp_path / "images", 1)
    with Report(tmp_path / "out" / "report.html", 1) as report:
        report.add(encode_explanations("0", [[tiny.explain(images[0])]]))
    assert not (tmp_path / "out").exists()
    (tmp_path / "file").write_text("")
    with (
        Report(tmp_path / "file" / "report.html", 1) as report,
        pytest.raises(OutputError, match="cannot write"),
    ):
        report.write(About(kind="explain", title="", sources=("tiny",)))


def test_more_images_than_a_browser_holds_are_refused_first(tmp_path):
    with pytest.raises(RequestError, match="too large for a browser"):
        Report(tmp_path / "report.html", MOST_IMAGES + 1)


@pytest.fixture
def run(capsys):
    def run(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stop:
            main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return stop.value.code, captured.out, captured.err

    return run


@pytest.fixture
def model(tiny_engine, manifest_of, tmp_path) -> Path:
    manifest = manifest_of(methods=("gradcam", "layercam"))
    path = tmp_path / "tiny.onnx"
    write_tiny(path, manifest, tiny_engine().mix, tiny_engine().linear)
    return path


def test_explain_writes_a_report_of_a_folder(run, model, tmp_path):
    write_images(tmp_path / "images")
    (tmp_path / "images" / "broken.png").write_bytes(b"no image")
    options = ["-o", tmp_path / "out", "--report", "--tft", "--method", "gradcam,layercam"]
    code, out, err = run("explain", model, tmp_path / "images", *options)
    assert code == 2
    assert "broken.png" in err
    assert "report.html" in out
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["report.html"]
    data = data_of(tmp_path / "out" / "report.html")
    assert [image["name"] for image in data["images"]] == ["0.png", "1.png", "2.png"]
    assert "broken.png" in data["about"]["notes"][0]
    assert data["about"]["reading"] == {"mask": "binary", "thresholds": "value"}
    first = data["images"][0]
    assert [(one["method"], "share" in one) for one in first["maps"]].count(("gradcam", True)) == 1
    assert len(first["maps"]) == 6
    assert len(first["top"][0]) == 3


def test_images_are_named_from_their_common_folder_on(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    files = [Path("a/x.png"), tmp_path / "a" / "b" / "y.png", Path("a/b/../z.png")]
    assert list(shorten_names(files).values()) == ["x.png", "b/y.png", "z.png"]
    assert shorten_names([Path("a/x.png")]) == {Path("a/x.png"): "x.png"}


def test_a_report_shows_the_class_asked_for_first(run, model, tmp_path):
    write_images(tmp_path / "images", 1)
    assert (
        run("explain", model, tmp_path / "images", "-o", tmp_path, "--report", "--target", "ant")[0]
        == 0
    )
    (image,) = data_of(tmp_path / "report.html")["images"]
    assert image["maps"][0]["index"] == 0
    assert sorted(one["index"] for one in image["maps"]) == [0, 1, 2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [([], "needs a place to write to"), (["-o", "x.png"], "needs a folder")],
)
def test_report_options_that_exclude_each_other_are_refused(run, model, arguments, message):
    code, _, err = run("explain", model, ".", "--report", *arguments)
    assert code == 2
    assert message in err


@pytest.mark.parametrize(
    ("fields", "options", "maps"),
    [
        ({"task": "none"}, [], 3),
        ({"task": "sigmoid"}, ["--tft"], 3),
        ({"top": 1, "outputs": ("raw",)}, ["--tft"], 1),
    ],
    ids=["values", "independent labels", "one class exported"],
)
def test_other_kinds_of_networks_have_reports(
    run, tiny_engine, manifest_of, tmp_path, fields, options, maps
):
    manifest = manifest_of(methods=("gradcam",), **fields)
    write_tiny(tmp_path / "m.onnx", manifest, tiny_engine().mix, tiny_engine().linear)
    write_images(tmp_path / "images", 2)
    place = ["-o", tmp_path / "out", "--report", *options]
    assert run("explain", tmp_path / "m.onnx", tmp_path / "images", *place)[0] == 0
    data = data_of(tmp_path / "out" / "report.html")
    assert data["about"]["task"] == fields.get("task", "softmax")
    assert [len(image["maps"]) for image in data["images"]] == [maps, maps]
