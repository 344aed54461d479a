"""What is drawn over a frame, and where."""

import itertools

import matplotlib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from whycam import Overlay
from whycam.runtime import fonts, text
from whycam.runtime.errors import RequestError
from whycam.runtime.explanation import Explanation
from whycam.runtime.manifest import Preprocess
from whycam.runtime.preprocess import place, to_image

SIZE = 32
PLAIN = {"caption": False, "smoothing": 0.0}


@pytest.fixture(autouse=True)
def forgotten():
    """Fonts are looked up anew where a test has changed what there is."""
    yield
    forget()


def forget():
    for cached in (fonts.find_font, text._split, text._parts):
        cached.cache_clear()


def frame_of(size, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def spot(row=16, column=16, width=6.0):
    """A round map, 0 away from its middle, float32 [SIZE, SIZE]."""
    rows, columns = np.mgrid[:SIZE, :SIZE]
    away = np.hypot(rows - row, columns - column) / width
    return np.maximum(0, 1 - away).astype(np.float32)


def explanation_of(frame, values, cut=0.0, spec=None, **fields):
    placement, _ = place(frame.shape[:2], spec or Preprocess(size=(SIZE, SIZE), resize=(SIZE,)))
    thresholded = np.where(values >= cut, values, np.float32(0))
    made = {
        "index": 3,
        "label": "cockatoo",
        "probability": 0.5,
        "method": "gradcam",
        "threshold": cut or None,
    }
    return Explanation(
        **(made | fields),
        map=thresholded,
        original_map=values,
        image=frame,
        placement=placement,
        cut=cut,
    )


def changed(before, after):
    return (before != after).any(-1)


def test_the_frame_stays_as_it_is_where_the_map_is_zero():
    frame = frame_of((200, 300))
    kept = frame.copy()
    explained = explanation_of(frame, spot())
    drawn = Overlay(**PLAIN).draw(frame, explained)
    values = to_image(explained.original_map, explained.placement)
    assert np.array_equal(frame, kept)  # drawn on a copy
    assert np.array_equal(drawn[values == 0], frame[values == 0])
    assert changed(frame, drawn)[values > 0.5].mean() > 0.99


def test_no_map_no_change():
    frame = frame_of((50, 60))
    empty = explanation_of(frame, np.zeros((SIZE, SIZE), np.float32))
    assert np.array_equal(Overlay(**PLAIN).draw(frame, empty), frame)


def test_only_what_is_above_the_threshold_is_drawn_and_outlined():
    frame = frame_of((320, 320))
    explained = explanation_of(frame, spot(), cut=0.5)
    values = to_image(explained.original_map, explained.placement)
    bare = Overlay(**PLAIN, contour=False).draw(frame, explained)
    assert not changed(frame, bare)[values < 0.45].any()
    assert changed(frame, bare)[values > 0.55].mean() > 0.99
    outlined = Overlay(**PLAIN).draw(frame, explained)
    white = (outlined == 255).all(-1) & changed(bare, outlined)
    assert white.any()
    assert np.abs(values[white] - 0.5).max() < 0.1


def test_a_hole_in_the_region_is_outlined_as_well():
    frame = frame_of((320, 320))
    ring = spot() * (spot(width=3.0) == 0)  # nothing within 3 of the middle
    explained = explanation_of(frame, ring, cut=0.2)
    bare = Overlay(**PLAIN, contour=False).draw(frame, explained)
    white = (Overlay(**PLAIN).draw(frame, explained) == 255).all(-1) & changed(
        bare, Overlay(**PLAIN).draw(frame, explained)
    )
    from_middle = np.hypot(*(np.argwhere(white) - 165).T) / 10  # in cells of the map
    assert (from_middle < 3.5).sum() > 50  # the inner edge
    assert (from_middle > 4).sum() > 50  # the outer edge


def test_the_outline_is_gone_with_the_threshold():
    frame = frame_of((320, 320))
    everywhere = np.full((SIZE, SIZE), 0.9, np.float32)
    outlined, bare = (Overlay(caption=False, contour=contour) for contour in (True, False))
    for overlay in (outlined, bare):
        overlay.draw(frame, explanation_of(frame, everywhere, cut=0.5))
    without = explanation_of(frame, everywhere)
    for _ in range(5):
        assert np.array_equal(outlined.draw(frame, without), bare.draw(frame, without))


def test_a_threshold_of_ones_own_comes_before_that_of_the_explanation():
    frame = frame_of((320, 320))
    explained = explanation_of(frame, spot(), cut=0.2)
    drawn = Overlay(**PLAIN, threshold=0.8, contour=False).draw(frame, explained)
    values = to_image(explained.original_map, explained.placement)
    assert not changed(frame, drawn)[values < 0.75].any()
    assert changed(frame, drawn)[values > 0.85].mean() > 0.99


sides = st.integers(24, 400)
specs = st.sampled_from(
    [
        Preprocess(size=(SIZE, SIZE), resize=(SIZE,)),  # a centre crop
        Preprocess(size=(SIZE, SIZE), resize=(40,)),
        Preprocess(size=(SIZE, SIZE), resize=(SIZE, SIZE)),  # squeezed
        Preprocess(size=(SIZE, 48), resize=(24,)),  # a border: letterbox
        Preprocess(size=(SIZE, SIZE), resize=()),  # as it comes
    ]
)


@given(sides, sides, specs, st.integers(2, 29), st.integers(2, 29))
def test_heat_lands_where_the_network_looked(height, width, spec, row, column):
    """Portrait, landscape, cropped, squeezed or bordered: within a pixel of the exact placement."""
    frame = frame_of((height, width))
    values = np.zeros(spec.size, np.float32)
    values[row : row + 3, column : column + 3] = 1
    explained = explanation_of(frame, values, spec=spec)
    drawn = changed(frame, Overlay(**PLAIN).draw(frame, explained))
    exact = to_image(values, explained.placement)
    padded = np.pad(exact, 1)
    around = np.max(
        [padded[1 + i : 1 + i + height, 1 + j : 1 + j + width] for i, j in _NEIGHBOURS], 0
    )
    inside = np.min(
        [padded[1 + i : 1 + i + height, 1 + j : 1 + j + width] for i, j in _NEIGHBOURS], 0
    )
    assert not drawn[around == 0].any()
    assert drawn[inside > 0.9].mean() > 0.95 if (inside > 0.9).any() else True


_NEIGHBOURS = list(itertools.product((-1, 0, 1), repeat=2))


def test_without_smoothing_a_frame_does_not_know_of_those_before():
    frames = [frame_of((80, 100), seed) for seed in range(3)]
    overlay = Overlay(**PLAIN)
    for number, frame in enumerate(frames):
        explained = explanation_of(frame, spot(column=8 + 6 * number), cut=0.3)
        fresh = Overlay(**PLAIN).draw(frame, explained)
        assert np.array_equal(overlay.draw(frame, explained), fresh)


def test_smoothing_moves_the_heat_a_part_of_the_way():
    frame = frame_of((SIZE, SIZE))
    overlay = Overlay(caption=False, smoothing=0.75, contour=False)
    overlay.draw(frame, explanation_of(frame, spot(column=8)))
    drawn = overlay.draw(frame, explanation_of(frame, spot(column=24)))
    mixed = 0.75 * spot(column=8) + 0.25 * spot(column=24)
    expected = Overlay(**PLAIN, contour=False).draw(frame, explanation_of(frame, mixed))
    assert np.abs(drawn.astype(int) - expected).max() <= 3


@pytest.mark.parametrize("what", ["class", "method", "size", "scene", "reset"])
def test_smoothing_begins_anew_with(what):
    frame, other = frame_of((64, 64)), frame_of((64, 64))
    overlay = Overlay(caption=False, smoothing=0.9)
    overlay.draw(frame, explanation_of(frame, spot(column=8)))
    fields = {"class": {"index": 4}, "method": {"method": "layercam"}}.get(what, {})
    if what == "size":
        other = frame_of((64, 90))
    elif what == "scene":
        other = 255 - frame
    elif what == "reset":
        overlay.reset()
    explained = explanation_of(other, spot(column=24), **fields)
    assert np.array_equal(
        overlay.draw(other, explained), Overlay(caption=False).draw(other, explained)
    )


def test_the_caption_shades_the_lower_left_only_and_keeps_the_size():
    frame = np.full((300, 500, 3), 200, np.uint8)
    explained = explanation_of(frame, np.zeros((SIZE, SIZE), np.float32), cut=0.3)
    drawn = Overlay(smoothing=0).draw(frame, explained, "30 fps")
    assert drawn.shape == frame.shape
    touched = changed(frame, drawn)
    assert touched[270:, :40].all()
    assert not touched[:240].any()
    assert (drawn[265:, :200] > 230).any()  # letters


@pytest.mark.parametrize("label", ["Sturmvogel äöüß", "猫と犬", "", "x" * 500, "tab\tnew\nline"])
@pytest.mark.parametrize("size", [(40, 400), (400, 60), (12, 12), (240, 320)])
@pytest.mark.parametrize("face", ["opencv", "pillow"])
def test_any_label_can_be_written_on_any_frame(monkeypatch, label, size, face):
    if face == "pillow":
        monkeypatch.setattr(fonts, "opencv_face", lambda: None)
        forget()
    frame = frame_of(size)
    explained = explanation_of(frame, spot(), label=label)
    assert Overlay().draw(frame, explained, "30 fps").shape == frame.shape


def test_labels_beyond_ascii_are_not_question_marks(monkeypatch):
    for face in (fonts.opencv_face, lambda: None):
        monkeypatch.setattr(fonts, "opencv_face", face)
        forget()
        images = []
        for word in ("Häher", "H?her", "H??her"):
            images.append(np.zeros((40, 200, 3), np.uint8))
            text.write(images[-1], word, 4, 4, 24)
        assert images[0].any()
        assert not any(np.array_equal(images[0], other) for other in images[1:])


def test_map_alone_has_the_published_colours_and_is_black_where_the_network_did_not_look():
    frame = frame_of((SIZE, 2 * SIZE))  # the network sees the square in its middle
    explained = explanation_of(frame, spot(width=12.0))
    drawn = Overlay(**PLAIN, view="map", colormap="viridis", opacity=0.1).draw(frame, explained)
    left = SIZE // 2
    assert not drawn[:, :left].any()
    assert not drawn[:, left + SIZE :].any()
    seen = drawn[:, left : left + SIZE].astype(int)
    table = matplotlib.colormaps["viridis"](np.arange(256))[:, :3]
    levels = np.rint(255 * explained.original_map).astype(int)
    assert np.abs(seen - np.rint(255 * table[levels])).max() <= 3  # OpenCV's own has 8 bits
    assert len(np.unique(levels)) > 20


def test_threshold_cuts_the_map_alone_and_its_outline_is_drawn():
    frame = frame_of((SIZE, SIZE))
    explained = explanation_of(frame, spot(width=12.0), cut=0.5)
    plain = Overlay(**PLAIN, view="map", contour=False).draw(frame, explained)
    lowest = plain[0, 0]
    low = explained.original_map < 0.49
    assert (plain[low] == lowest).all()
    assert changed(plain, Overlay(**PLAIN, view="map").draw(frame, explained)).any()


def test_side_by_side_is_the_frame_and_its_overlay():
    frame = frame_of((60, 80))
    explained = explanation_of(frame, spot())
    both = Overlay(view="side-by-side", smoothing=0).draw(frame, explained)
    assert np.array_equal(both[:, :80], frame)
    assert np.array_equal(both[:, 80:], Overlay(smoothing=0).draw(frame, explained))


def test_colour_map_changes_the_overlays_colours_alone():
    frame = np.zeros((SIZE, SIZE, 3), np.uint8)
    explained = explanation_of(frame, spot())
    drawn = Overlay(**PLAIN, opacity=1.0, colormap="jet").draw(frame, explained)
    red, green, blue = drawn[16, 16].astype(int)  # the map is 1: jet ends in dark red
    assert red > 100
    assert (green, blue) == (0, 0)
    assert not drawn[explained.original_map == 0].any()


def test_an_explanation_of_another_image_is_refused():
    explained = explanation_of(frame_of((50, 60)), spot())
    with pytest.raises(RequestError, match="of 50 x 60 pixels"):
        Overlay().draw(frame_of((60, 50)), explained)


@pytest.mark.parametrize(
    "settings",
    [
        {"opacity": 1.5},
        {"smoothing": 1.0},
        {"threshold": -0.1},
        {"opacity": float("nan")},
        {"colormap": "rainbow"},
        {"view": "sideways"},
    ],
)
def test_unusable_settings_are_refused(settings):
    with pytest.raises(RequestError):
        Overlay(**settings)
