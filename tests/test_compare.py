"""Comparison of two files: maps over the same pixels, refusals, and the page."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from report_pages import data_of, write_images
from tiny_file import write_tiny

import whycam
from whycam.calibrate import open_dataset
from whycam.calibrate.common_view import common_maps
from whycam.calibrate.fidelity import compare
from whycam.cli import main
from whycam.runtime.errors import DataError, RequestError
from whycam.runtime.manifest import Preprocess
from whycam.runtime.preprocess import Placement
from whycam.runtime.report.entry import encode_explanations


def ramp(placement: Placement, size: tuple[int, int], explanation):
    """An explanation whose map is a function of the place in the image alone."""
    height, width = size
    rows = placement.top + (np.arange(height) + 0.5) * (placement.bottom - placement.top) / height
    columns = placement.left + (np.arange(width) + 0.5) * (placement.right - placement.left) / width
    image_height, image_width = placement.image
    values = 0.7 * rows[:, None] / image_height + 0.3 * columns / image_width
    return replace(explanation, original_map=values.astype(np.float32), placement=placement)


@pytest.mark.parametrize("image", [(120, 200), (900, 1200)])
def test_maps_of_different_views_are_compared_over_what_both_saw(tiny, tmp_path, image):
    (path,) = write_images(tmp_path, 1)
    one = tiny.explain(path)
    height, width = image
    whole = ramp(Placement(image, 0, 0, height, width), (64, 64), one)
    crop = ramp(
        Placement(image, 0.1 * height, 0.2 * width, 0.9 * height, 0.7 * width), (48, 32), one
    )
    a, b = common_maps(whole, crop)
    assert a.shape == b.shape
    scale = min(1, 256 / width)
    np.testing.assert_allclose(a.shape, (0.8 * height * scale, 0.5 * width * scale), atol=1.5)
    # Beyond the outermost map pixels a map is continued without slope.
    inner = (slice(3, -3), slice(3, -3))
    np.testing.assert_allclose(a[inner], b[inner], atol=0.01)


def test_views_without_a_common_part_are_an_error(tiny, tmp_path):
    (path,) = write_images(tmp_path, 1)
    one = tiny.explain(path)
    left = replace(one, placement=Placement((100, 100), 0, 0, 100, 40))
    right = replace(one, placement=Placement((100, 100), 0, 60, 100, 100))
    with pytest.raises(DataError, match="no common part"):
        common_maps(left, right)


def test_the_same_view_is_compared_as_it_is(tiny, tmp_path):
    (path,) = write_images(tmp_path, 1)
    one = tiny.explain(path)
    assert common_maps(one, one)[0] is one.original_map


def test_a_network_of_another_image_size_is_compared(tiny, tiny_engine, manifest_of, tmp_path):
    write_images(tmp_path / "images", 4)
    other = whycam.Explainer(
        tiny_engine(), manifest_of(preprocess=Preprocess(size=(12, 12), resize=(12,)))
    )
    data = open_dataset(tmp_path / "images")
    found = compare(tiny, other, data.samples, ["gradcam"])
    itself = compare(tiny, tiny, data.samples, ["gradcam"])
    assert itself.maps["gradcam"].pearson == pytest.approx(1)
    assert 0 < found.maps["gradcam"].pearson < 1


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_classes": 2, "labels": ("ant", "bee")}, "they have 3 and 2 classes"),
        ({"labels": ("ant", "wasp", "cat")}, "class 1 is 'bee' in the one and 'wasp'"),
        ({"task": "sigmoid"}, "outputs mean something else"),
        (
            {
                "preprocess": Preprocess(
                    size=(8, 8), resize=(8,), mean=(0.5,), std=(0.5,), color="L"
                )
            },
            "other kinds of images",
        ),
    ],
    ids=["classes", "labels", "task", "colours"],
)
def test_networks_that_cannot_be_compared_are_told_why(
    tiny, tiny_engine, manifest_of, tmp_path, fields, message
):
    other = whycam.Explainer(tiny_engine(), manifest_of(**fields))
    with pytest.raises(RequestError, match=message):
        compare(tiny, other, [], ["gradcam"])


@pytest.fixture
def files(tiny_engine, manifest_of, tmp_path) -> tuple[Path, Path]:
    """Two networks that differ in their last layer."""
    engine = tiny_engine()
    paths = tmp_path / "before.onnx", tmp_path / "after.onnx"
    write_tiny(paths[0], manifest_of(methods=("gradcam",)), engine.mix, engine.linear)
    write_tiny(paths[1], manifest_of(methods=("gradcam",)), engine.mix, engine.linear[::-1])
    for label in ("ant", "bee"):
        write_images(tmp_path / "images", 0)
        write_images(tmp_path / "images" / label, 3)
    return paths


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    return stop.value.code


def test_compare_writes_a_page_with_both_maps(files, tmp_path):
    out = tmp_path / "out"
    assert run("compare", *files, tmp_path / "images", "-o", out, "--report") == 0
    assert {path.name for path in out.iterdir()} == {
        "compare.json",
        "compare.csv",
        "report.html",
    }
    data = data_of(out / "report.html")
    assert data["about"]["sources"] == ["before.onnx", "after.onnx"]
    assert len(data["images"]) == 6
    first, second = (whycam.load(path) for path in files)
    for image in data["images"]:
        path = tmp_path / "images" / image["name"]
        maps = {(one.get("source", 0), one["index"]): one for one in image["maps"]}
        own, others = first.explain(path), second.explain(path)
        assert image["label"] == {"ant": 0, "bee": 1}[path.parent.name]
        assert [top[0][0] for top in image["top"]] == [own.index, others.index]
        # Both explain both predicted classes; thresholds are those of the first.
        wanted = {(source, index) for source in (0, 1) for index in (own.index, others.index)}
        assert set(maps) == wanted
        assert "rpi" in maps[1, own.index]
        same_class = second.explain(path, own.index)
        assert maps[1, own.index]["probability"] == pytest.approx(same_class.probability)
        correlation = np.corrcoef(own.map.ravel(), same_class.map.ravel())[0, 1]
        assert image["similarity"]["gradcam"] == pytest.approx(correlation, abs=1e-5)


def test_labels_of_the_data_are_mapped_to_classes(files, tmp_path, capsys):
    folder, out = tmp_path / "images", tmp_path / "out"
    (folder / "ant").rename(folder / "n01")
    (tmp_path / "classes.csv").write_text("n01,cat\n")
    command = ["compare", *files, folder, "-o", out, "--report"]
    assert run(*command) == 0
    page = data_of(out / "report.html")
    assert {image.get("label") for image in page["images"]} == {None, 1}
    (note,) = (note for note in page["about"]["notes"] if "--classes" in note)
    assert note.startswith("1 of 2 labels are no class of the network (n01)")
    assert run(*command, "--classes", tmp_path / "classes.csv") == 0
    page = data_of(out / "report.html")
    assert {image["name"][:3]: image["label"] for image in page["images"]} == {"n01": 2, "bee": 1}
    assert not any("--classes" in note for note in page["about"]["notes"])
    capsys.readouterr()
    assert run(*command[:-1], "--classes", tmp_path / "classes.csv") == 2
    assert "--classes is a setting of --report" in capsys.readouterr().err


def test_one_file_compared_with_itself_has_two_names(files, tmp_path):
    out = tmp_path / "out"
    assert run("compare", files[0], files[0], tmp_path / "images", "-o", out, "--report") == 0
    names = data_of(out / "report.html")["about"]["sources"]
    assert len(set(names)) == 2


def test_a_page_needs_a_place(files, tmp_path, capsys):
    assert run("compare", *files, tmp_path / "images", "--report") == 2
    assert "-o FOLDER" in capsys.readouterr().err


def test_names_of_the_one_file_name_the_classes_of_both(tiny, tiny_engine, manifest_of, tmp_path):
    (path,) = write_images(tmp_path, 1)
    nameless = whycam.Explainer(tiny_engine(), manifest_of(labels=()))
    for both in ((tiny, nameless), (nameless, tiny)):
        encoded = encode_explanations("0", [[one.explain(path)] for one in both])
        assert encoded.labels == {0: "ant", 1: "bee", 2: "cat"}
