"""What an explanation can do: draw, save, plot, become JSON."""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import re
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import whycam
from whycam import Style, WhyCamError
from whycam.runtime.errors import MissingExtraError, RequestError
from whycam.runtime.targets import ClassScore


@pytest.fixture(scope="module")
def explained(lite0, chelsea) -> dict[str, whycam.Explanation]:
    return {
        "plain": lite0.explain(chelsea),
        "naive": lite0.explain(chelsea, tft="naive"),
        "tft": lite0.explain(chelsea, tft=True),
        "geometry image": lite0.explain(chelsea, tft=True, geometry="image"),
    }


KINDS = ("plain", "naive", "tft", "geometry image")


def test_an_explanation_is_one_line(explained):
    assert repr(explained["plain"]) == (
        "Explanation('tiger cat' (282), p 0.393, gradcam, image 300 x 451)"
    )
    assert ", tau* 0.4, " in repr(explained["tft"])
    assert ", naive 0.85, " in repr(explained["naive"])
    whole = dataclasses.replace(explained["tft"], threshold=None, improved=False, cut=0.0)
    assert ", tau* none, " in repr(whole)


def test_top_holds_the_five_most_probable_classes(explained, lite0, chelsea):
    probabilities = lite0.classify(chelsea)[0]
    order = np.argsort(-probabilities)[:5]
    found = explained["plain"].top
    assert [one.index for one in found] == order.tolist()
    np.testing.assert_allclose([one.probability for one in found], probabilities[order], rtol=1e-4)
    assert found[0].label == "tiger cat"


def test_a_notebook_shows_the_image_and_escapes_labels(explained):
    named = dataclasses.replace(
        explained["tft"], label="<script>", top=(ClassScore(0, "<b>bold</b>", 0.5),)
    )
    shown = named._repr_html_()
    assert "<script>" not in shown
    assert "&lt;script&gt; 0.393" in shown
    assert "&lt;b&gt;bold&lt;/b&gt;" in shown
    data = base64.b64decode(re.search(r"data:image/jpeg;base64,([^']+)", shown)[1])
    assert Image.open(io.BytesIO(data)).size == (451, 300)


def test_where_no_threshold_helps_none_is_said(tiny, tmp_path):
    """Never 0, which is a threshold like the others."""
    whole = tiny.explain(np.zeros((8, 8, 3), np.uint8), tft=True)
    assert (whole.improved, whole.threshold) == (False, None)
    assert whole.to_dict()["threshold"] is None
    said = " ".join([*whole.caption_lines(), *(text.get_text() for text in whole.figure().texts)])
    assert "no threshold helps" in said
    assert "tau* 0" not in said


def test_explanation_is_frozen(explained):
    with pytest.raises(dataclasses.FrozenInstanceError):
        explained["plain"].index = 3


@pytest.mark.parametrize("kind", KINDS)
def test_overlay_has_the_size_of_the_image(explained, kind):
    drawn = explained[kind].overlay()
    assert drawn.shape == (300, 451, 3)
    assert drawn.dtype == np.uint8
    assert (drawn != explained[kind].image).any()


def test_overlay_leaves_the_image_alone_where_the_map_is_zero(explained):
    found, bare = explained["plain"], Style(crop="none")
    outside = found.on_image(found.map) == 0
    assert outside.any()
    np.testing.assert_array_equal(found.overlay(bare)[outside], found.image[outside])
    transparent = Style(crop="none", opacity=0)
    np.testing.assert_array_equal(found.overlay(transparent), found.image)


def test_original_overlay_ignores_the_threshold(explained):
    shown = explained["tft"].overlay(original=True)
    np.testing.assert_array_equal(shown, explained["plain"].overlay())


@pytest.mark.parametrize("draw", [lambda e: e.figure(), lambda e: e.save("x.png", "figure")])
def test_without_matplotlib_a_figure_names_the_extra(tiny, monkeypatch, tmp_path, draw):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "whycam.runtime.figure", raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    found = tiny.explain(np.zeros((8, 8, 3), np.uint8))
    with pytest.raises(MissingExtraError, match=r'pip install "whycam\[plot\]"'):
        draw(found)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("opacity", [-0.1, 1.1, float("nan")])
def test_unusable_opacity_is_refused(opacity):
    with pytest.raises(RequestError, match="opacity"):
        Style(opacity=opacity)


def test_an_unknown_colormap_is_refused_with_those_there_are():
    with pytest.raises(RequestError, match=r"inferno, .*, jet; not 'rainbow'"):
        Style(colormap="rainbow")


@pytest.mark.parametrize("kind", ["map", "mask"])
@pytest.mark.parametrize("name", ["map.npz", "map.txt", "map", "map.jpg"])
def test_a_map_is_not_written_under_an_ending_that_promises_another_format(
    tiny, tmp_path, name, kind
):
    found = tiny.explain(np.zeros((8, 8, 3), np.uint8), tft=True)
    with pytest.raises(RequestError, match=r"end .* with \.npy"):
        found.save(tmp_path / name, kind)
    assert not list(tmp_path.iterdir())


def test_a_mask_without_thresholding_is_refused(tiny, tmp_path):
    found = tiny.explain(np.zeros((8, 8, 3), np.uint8))
    with pytest.raises(RequestError, match="no mask without thresholding"):
        found.save(tmp_path / "mask.png", "mask")


def test_saved_maps_and_masks_lie_over_the_images_own_pixels(explained, tmp_path):
    found = explained["tft"]
    values = np.load(found.save(tmp_path / "map.npy", "map"))
    np.testing.assert_array_equal(values, found.on_image(found.map))
    grey = np.asarray(Image.open(found.save(tmp_path / "map.png", "map")))
    np.testing.assert_array_equal(grey, np.rint(255 * values))
    mask = np.asarray(Image.open(found.save(tmp_path / "mask.png", "mask")))
    np.testing.assert_array_equal(mask, 255 * found.region.mask)


LABELS = ["日本語", "кошка", "ελληνικά", "Ärger", "قطة", "חתול"]


@pytest.mark.parametrize("label", LABELS)
@pytest.mark.parametrize("kind", ["overlay", "figure"])
def test_a_label_of_any_script_is_written_in_saved_images(tiny, tmp_path, label, kind):
    """No two labels look alike, as they would as question marks or boxes."""
    found = tiny.explain(np.full((200, 300, 3), 9, np.uint8))
    others = ["?" * len(label), "\ue000" * len(label), *(each for each in LABELS if each != label)]
    drawn = [
        np.asarray(
            Image.open(dataclasses.replace(found, label=each).save(tmp_path / "a.png", kind))
        )
        for each in (label, *others)
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # as matplotlib's of missing glyphs
        dataclasses.replace(found, label=label).save(tmp_path / "a.png", kind)
    for other in drawn[1:]:
        assert drawn[0].shape != other.shape or (drawn[0] != other).any()


@pytest.mark.parametrize("ending", [".png", ".jpg", ".JPG", ".webp"])
@pytest.mark.parametrize("kind", ["plain", "tft"])
def test_overlay_is_saved(explained, tmp_path, kind, ending):
    path = explained[kind].save(tmp_path / "new" / f"overlay{ending}")
    width, height = Image.open(path).size
    assert width == 451
    assert 300 < height < 360  # a caption above
    saved = np.asarray(Image.open(path).convert("RGB"))[-300:].astype(int)
    # Right way round: OpenCV writes BGR.
    assert np.abs(saved - explained[kind].overlay()).mean() < 8


def test_saved_file_replaces_an_older_one_and_nothing_else_is_left(explained, tmp_path):
    target = tmp_path / "why.png"
    target.write_text("older")
    assert explained["plain"].save(str(target)) == target
    assert Image.open(target).width == 451
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("name", ["why", "why.txt", "why.gif", ".png"])
def test_unknown_image_type_is_refused(explained, tmp_path, name):
    with pytest.raises(RequestError, match="cannot tell the image type"):
        explained["plain"].save(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_saving_below_a_file_or_over_a_folder_is_refused(explained, tmp_path):
    (tmp_path / "file").write_text("here first")
    (tmp_path / "folder.png").mkdir()
    for place in ("file/why.png", "folder.png"):
        with pytest.raises(WhyCamError, match="cannot write"):
            explained["plain"].save(tmp_path / place)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "folder.png"]


def test_full_disk_leaves_the_older_file_whole(explained, tmp_path, monkeypatch):
    target = tmp_path / "why.png"
    target.write_text("older")

    def half(path: Path, data: bytes) -> int:
        with path.open("wb") as file:
            file.write(data[: len(data) // 2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", half)
    with pytest.raises(WhyCamError, match="No space left"):
        explained["plain"].save(target)
    assert target.read_text() == "older"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize(("kind", "panels"), zip(KINDS, (2, 3, 4, 4), strict=True))
def test_figure_shows_what_there_is(explained, kind, panels):
    figure = explained[kind].figure()
    assert len(figure.axes) == panels + 1  # and a colour bar
    words = [text.get_text() for text in figure.texts]
    assert words[:3] == ["tiger cat", "p = 0.393", "gradcam"]
    assert ("binary mask, value thresholds" in words) is (explained[kind].tft is not None)


@pytest.mark.parametrize("ending", [".png", ".jpg", ".webp", ".tiff", ".bmp"])
def test_figure_is_saved(explained, tmp_path, ending):
    path = explained["tft"].save(tmp_path / f"figure{ending}", "figure")
    assert Image.open(path).width > 600


@pytest.mark.parametrize("kind", KINDS)
def test_numbers_are_ready_for_json(explained, kind):
    found = explained[kind]
    numbers = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert numbers["label"] == "tiger cat"
    assert numbers["threshold"] == found.threshold
    assert ("rpi" in numbers) is (found.tft is not None)
    if found.tft is not None:
        assert numbers["rpi"] == pytest.approx(found.rpi.tolist())
        assert numbers["taus"] == list(found.tft.taus)
