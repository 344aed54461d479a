"""Several classes of one image: which are chosen, the figure of their differences, and its file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from report_pages import write_images
from tiny_file import write_tiny

from whycam import draw_comparison
from whycam.cli import main, parse
from whycam.runtime.class_comparison import LESS, MORE, blend_difference
from whycam.runtime.errors import RequestError
from whycam.runtime.file_names import comparison_name


def run(capsys, *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return stop.value.code, captured.out, captured.err


@pytest.fixture
def model(tiny_engine, manifest_of, tmp_path) -> Path:
    manifest = manifest_of(methods=("gradcam",), labels=("ant", "bee", "cat, tiger"))
    write_tiny(tmp_path / "m.onnx", manifest, tiny_engine().mix, tiny_engine().linear)
    return tmp_path / "m.onnx"


@pytest.mark.parametrize(
    ("text", "classes"),
    [
        (None, [-1]),
        ("bee", ["bee"]),
        ("ant, 2,-1", ["ant", 2, -1]),
        ("Cat, Tiger", ["Cat, Tiger"]),
        ('ant,"cat, tiger"', ["ant", "cat, tiger"]),
    ],
)
def test_targets_are_separated_by_commas_that_no_label_has(text, classes):
    assert parse.targets(text, ("ant", "bee", "cat, tiger")) == classes


def test_colours_of_a_difference_by_hand():
    image = np.full((1, 3, 3), 100, np.uint8)
    difference = np.array([[1, 0, -1]], np.float32)
    drawn = blend_difference(image, difference, 0.5)
    expected = [
        np.rint(50 + np.array(MORE) / 2),
        np.full(3, 100),
        np.rint(50 + np.array(LESS) / 2),
    ]
    np.testing.assert_array_equal(drawn[0], expected)


def test_a_comparison_shows_where_each_class_has_more(tiny, tmp_path):
    (path,) = write_images(tmp_path, 1, (400, 400))
    one = tiny.explain(path)
    left, right = np.zeros((8, 8), np.float32), np.zeros((8, 8), np.float32)
    left[:, :4], right[:, 4:] = 1, 1
    pair = [
        replace(one, map=left, original_map=left, index=0, label="left"),
        replace(one, map=right, original_map=right, index=1, label="right"),
    ]
    drawn = draw_comparison(pair)
    height, width = drawn.shape[:2]
    assert width == 3 * 400 + 2 * 10
    panel = drawn[height - 400 :, 2 * 410 :].astype(int)
    orange = panel[..., 0] - panel[..., 2]
    assert orange[:, 20:180].mean() > 50
    assert orange[:, 220:380].mean() < -50


def test_more_classes_stand_above_their_differences_to_the_first(tiny, tmp_path):
    (path,) = write_images(tmp_path, 1, (400, 400))
    three = tiny.explain(path, [0, 1, 2])
    assert draw_comparison(three).shape[1] == 3 * 400 + 2 * 10
    assert draw_comparison(three).shape[0] > 2 * 400


def test_a_comparison_is_of_one_image_one_method_and_several_classes(tiny, tmp_path):
    image, other = write_images(tmp_path, 2)
    ant, bee = tiny.explain(image, [0, 1])
    with pytest.raises(RequestError, match="two classes or more"):
        draw_comparison([ant])
    with pytest.raises(RequestError, match="'ant' is there twice"):
        draw_comparison([ant, bee, ant])
    with pytest.raises(RequestError, match="of one method, not of gradcam and layercam"):
        draw_comparison([ant, tiny.explain(image, 1, "layercam")])
    with pytest.raises(RequestError, match="of one image"):
        draw_comparison([ant, tiny.explain(other, 1)])
    with pytest.raises(RequestError, match="of one image"):  # the same pixels, other maps
        draw_comparison([ant, bee.over_image()])
    again = tiny.explain(image, 1)
    np.testing.assert_array_equal(draw_comparison([ant, again]), draw_comparison([ant, bee]))


def test_names_of_comparisons_differ_with_their_classes(tiny, tmp_path):
    (path,) = write_images(tmp_path, 1)
    ant, bee, cat = tiny.explain(path, [0, 1, 2], tft=True)
    assert comparison_name("a", [ant, bee], ".png") == "a.0-ant-vs-1-bee.gradcam.tft.comparison.png"
    name = comparison_name("a", [ant, bee, cat], ".jpg")
    assert name == "a.0-ant-vs-1-bee-and-1-more.gradcam.tft.comparison.jpg"


def test_several_targets_are_compared_in_one_figure(model, tmp_path, capsys):
    write_images(tmp_path / "images", 2)
    options = ["-o", tmp_path / "out", "--target", "ant,bee", "--tft"]
    code, out, _ = run(capsys, "explain", model, tmp_path / "images", *options)
    assert code == 0
    assert "2 comparisons" in out
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        f"{number}.0-ant-vs-1-bee.gradcam.tft.comparison.png" for number in (0, 1)
    ]


def test_top_classes_are_compared_in_the_file_that_is_named(model, tmp_path, capsys):
    (image,) = write_images(tmp_path / "images", 1)
    file = tmp_path / "why.png"
    code, out, _ = run(capsys, "explain", model, image, "-o", file, "--top", "3")
    assert code == 0
    assert len([line for line in out.splitlines() if line.startswith("0.png")]) == 3
    assert Image.open(file).size[0] > 3 * 300


def test_targets_that_are_one_class_are_explained_once(model, tmp_path, capsys):
    (image,) = write_images(tmp_path / "images", 1)
    assert (
        run(capsys, "explain", model, image, "-o", tmp_path / "a.png", "--target", "ant,0")[0] == 0
    )
    one = run(capsys, "explain", model, image, "-o", tmp_path / "b.png", "--target", "ant")
    assert one[0] == 0
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_a_label_with_a_comma_is_one_class(model, tmp_path, capsys):
    (image,) = write_images(tmp_path / "images", 1)
    options = ["-o", tmp_path / "out", "--target", "cat, tiger"]
    assert run(capsys, "explain", model, image, *options)[0] == 0
    (path,) = (tmp_path / "out").iterdir()
    assert path.name == "0.2-cat-tiger.gradcam.png"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--top", "4"], "--top must be 1 to 3"),
        (["--top", "2", "--target", "ant"], "exclude each other"),
        (["--save", "comparison"], "needs several classes"),
        (["--target", "ant,wasp"], "no class is called 'wasp'"),
    ],
)
def test_classes_that_cannot_be_compared_are_refused(model, tmp_path, capsys, options, message):
    write_images(tmp_path / "images", 1)
    place = tmp_path / "out"
    code, _, err = run(capsys, "explain", model, tmp_path / "images", "-o", place, *options)
    assert code == 2
    assert message in err
    assert not place.exists()
