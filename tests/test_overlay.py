"""Heat, outlines, the network's view and captions: what is drawn, and what stays as it was."""

from __future__ import annotations

import numpy as np
import pytest
from test_annotate import explanation_of, frame_of, spot

from whycam import Style
from whycam.runtime import overlay
from whycam.runtime.preprocess import Preprocess, place, seen_window, to_image

BARE = Style(crop="none", contour=False)
WIDE = Preprocess(size=(32, 32), resize=(32,))  # a centre crop


def test_heat_fades_to_nothing_where_the_map_is_low():
    grey = np.full((1, 256, 3), 128, np.uint8)
    ramp = np.linspace(0, 1, 256, dtype=np.float32)[None]
    drawn = overlay.blend(grey, ramp).astype(int)
    change = np.abs(drawn - grey).max(-1)[0]
    assert change[0] == 0
    assert change[:13].max() <= 3  # up to 0.05
    assert change[26] <= 10  # 0.1: today's overlays were darkened by 26 there
    assert change[200:].min() > 60
    steps = np.abs(np.diff(drawn, axis=1)).max()
    assert steps <= 4, "no edge where heat begins"


@pytest.mark.parametrize("colormap", overlay.COLORMAPS)
def test_full_heat_has_the_colours_of_the_map(colormap):
    matplotlib = pytest.importorskip("matplotlib")
    white = overlay.blend(np.zeros((1, 1, 3), np.uint8), np.ones((1, 1), np.float32), 1, colormap)
    expected = np.array(matplotlib.colormaps[colormap](1.0)[:3]) * 255
    np.testing.assert_allclose(white[0, 0], expected, atol=3)


@pytest.mark.parametrize("crop", ["frame", "dim", "none"])
@pytest.mark.parametrize("size", [(100, 240), (240, 100), (120, 120)])
def test_inside_the_networks_view_no_pixel_is_changed_by_how_it_is_shown(crop, size):
    frame = frame_of(size)
    explained = explanation_of(frame, np.zeros((32, 32), np.float32), spec=WIDE)
    drawn = explained.overlay(Style(crop=crop))
    top, left, bottom, right = seen_window(explained.placement)
    assert np.array_equal(drawn[top:bottom, left:right], frame[top:bottom, left:right])
    changed = (drawn != frame).any(-1)
    if crop == "none" or size == (120, 120):
        assert not changed.any()
    elif crop == "frame":
        rows, columns = np.nonzero(changed)
        assert rows.size
        assert ((top - 2 <= rows) & (rows < bottom + 2)).all()
        assert ((left - 2 <= columns) & (columns < right + 2)).all()
    else:
        assert changed.sum() > 0.98 * (changed.size - 120 * 100)


@pytest.mark.parametrize("level", [0, 255])
def test_the_frame_is_seen_on_black_and_on_white(level):
    frame = np.full((100, 240, 3), level, np.uint8)
    drawn = explanation_of(frame, np.zeros((32, 32), np.float32), spec=WIDE).overlay()
    assert np.abs(drawn.astype(int) - frame).max() > 100


def test_the_window_is_where_maps_are_spread():
    for size in ((97, 241), (241, 97), (31, 33), (20, 400)):
        placement, _ = place(size, WIDE)
        spread = to_image(np.ones((32, 32), np.float32), placement)
        top, left, bottom, right = seen_window(placement)
        assert spread[top:bottom, left:right].all()
        assert spread.sum() == (bottom - top) * (right - left)


def lines_of(explained, **style):
    """Where an outline changes an overlay."""
    with_lines = explained.overlay(Style(crop="none", **style))
    return (with_lines != explained.overlay(BARE)).any(-1)


def test_a_hole_has_an_outline_too():
    ring = spot(width=16.0) - 2 * spot(width=6.0)
    explained = explanation_of(frame_of((320, 320)), np.clip(ring, 0, 1), cut=0.3)
    lines = lines_of(explained)
    row = lines[165]
    runs = np.flatnonzero(np.diff(row.astype(int)) == 1)
    assert len(runs) == 4  # outside, hole, hole, outside


def test_no_outline_runs_along_the_edge_of_the_networks_view():
    values = np.zeros((32, 32), np.float32)
    values[:, :16] = 1.0  # reaches three edges
    explained = explanation_of(frame_of((100, 240)), values, cut=0.5, spec=WIDE)
    top, left, bottom, right = seen_window(explained.placement)
    lines = lines_of(explained)
    assert not lines[:, : left + 40].any()
    assert not lines[:, right:].any()
    assert lines[top:bottom, left + 40 : left + 60].any(1).all()  # up to the edge, where it ends


def test_outlines_are_of_even_width():
    explained = explanation_of(frame_of((640, 640)), spot(width=14.0), cut=0.4)
    lines = lines_of(explained)
    rows, columns = np.mgrid[:640, :640] + 0.5
    angle = np.arctan2(rows - 330, columns - 330)
    widths = [
        lines[(angle >= low) & (angle < low + np.pi / 8)].sum() for low in np.arange(-3.1, 2.7, 0.4)
    ]
    assert max(widths) < 1.25 * min(widths)


def test_no_contour_is_none():
    explained = explanation_of(frame_of((320, 320)), spot(), cut=0.4)
    assert not lines_of(explained, contour=False).any()


@pytest.mark.parametrize(
    ("size", "scale"), [((28, 28), 11), ((60, 90), 5), ((199, 400), 2), ((200, 300), 1)]
)
def test_small_images_are_enlarged_by_a_whole_number(size, scale):
    assert overlay.enlargement(*size) == scale


def test_a_long_thin_image_is_not_enlarged_without_bound():
    assert overlay.enlargement(10, 1500) == 1


def test_every_pixel_of_a_saved_overlay_is_one_of_the_image(tmp_path):
    """Without heat; below the caption, which stands in a margin of its own."""
    from PIL import Image

    frame = frame_of((40, 60))
    explained = explanation_of(frame, np.zeros((32, 32), np.float32), spec=WIDE)
    saved = np.asarray(Image.open(explained.save(tmp_path / "a.png", style=BARE)))
    assert saved.shape[1] == 60 * 8
    assert np.array_equal(saved[-320:][4::8, 4::8], frame)
    bare = Style(crop="none", caption=False)
    without = np.asarray(Image.open(explained.save(tmp_path / "a.png", style=bare)))
    assert np.array_equal(without, saved[-320:])


def test_a_caption_that_is_too_long_ends_in_an_ellipsis():
    image = np.zeros((50, 200, 3), np.uint8)
    long, longer = (overlay.caption(image, ["x" * count]) for count in (300, 400))
    assert long.shape[1] == 200
    assert np.array_equal(long, longer)


def test_both_geometries_are_drawn_alike():
    frame = frame_of((100, 240))
    explained = explanation_of(frame, spot(), cut=0.4, spec=WIDE)
    np.testing.assert_array_equal(explained.over_image().overlay(), explained.overlay())
