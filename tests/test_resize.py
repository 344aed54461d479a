"""A window of a picture's resize, against Pillow, bit for bit."""

import threading

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image

from whycam.runtime.resize import can_resize, resized_window


def picture_of(size, kind, seed=0):
    rng = np.random.default_rng(seed)
    if kind == "noise":
        return rng.integers(0, 256, (*size, 3), dtype=np.uint8)
    if kind == "extremes":  # overshoots, which Pillow clips between its passes
        return np.where(rng.random((*size, 3)) > 0.5, 255, 0).astype(np.uint8)
    return np.full((*size, 3), 255, np.uint8)


def pillow(picture, resized, interpolation):
    filtering = Image.Resampling[interpolation.upper()]
    return np.asarray(Image.fromarray(picture).resize(resized[::-1], filtering))


@settings(deadline=None, max_examples=80)
@given(
    st.integers(1, 500),
    st.integers(1, 500),
    st.integers(1, 300),
    st.sampled_from(["bilinear", "bicubic"]),
    st.sampled_from(["noise", "extremes", "white"]),
    st.data(),
)
def test_every_window_has_pillows_pixels(height, width, short, interpolation, kind, data):
    assume(height <= width)
    resized = short, int(short * width / height)
    assume(can_resize((height, width), resized, interpolation))
    top, left = data.draw(st.integers(0, resized[0] - 1)), data.draw(st.integers(0, resized[1] - 1))
    rows = slice(top, data.draw(st.integers(top + 1, resized[0])))
    columns = slice(left, data.draw(st.integers(left + 1, resized[1])))
    picture = picture_of((height, width), kind)
    found = resized_window(picture, resized, rows, columns, interpolation)
    np.testing.assert_array_equal(found, pillow(picture, resized, interpolation)[rows, columns])


@pytest.mark.parametrize("size", [(720, 1280), (1080, 1920), (480, 640), (600, 600), (2160, 3840)])
def test_frames_of_cameras_have_pillows_pixels(size):
    resized = 256, 256 * size[1] // size[0]
    assert can_resize(size, resized, "bicubic")
    picture = picture_of(size, "extremes")
    found = resized_window(picture, resized, slice(16, 240), slice(10, 234), "bicubic")
    np.testing.assert_array_equal(found, pillow(picture, resized, "bicubic")[16:240, 10:234])


@pytest.mark.parametrize(
    ("picture", "resized", "interpolation"),
    [
        ((300, 200), (150, 100), "bicubic"),  # taller than wide
        ((200, 300), (50, 300), "bicubic"),  # squeezed from above
        ((9000, 9000), (64, 64), "bicubic"),  # sums that float32 does not hold
        ((200, 300), (100, 150), "lanczos"),
        ((200, 300), (100, 150), "nearest"),
    ],
)
def test_what_may_differ_from_pillow_is_left_to_it(picture, resized, interpolation):
    assert not can_resize(picture, resized, interpolation)


def test_threads_do_not_disturb_each_other():
    pictures = [picture_of((120 + 10 * i, 200 + 10 * i), "noise", i) for i in range(4)]
    expected = [pillow(each, (64, 100), "bicubic") for each in pictures]
    wrong = []

    def work(index):
        for _ in range(30):
            whole = slice(0, 64), slice(0, 100)
            found = resized_window(pictures[index], (64, 100), *whole, "bicubic")
            if not np.array_equal(found, expected[index]):
                wrong.append(index)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert wrong == []


def test_the_result_is_not_overwritten_by_the_next():
    picture = picture_of((60, 80), "noise")
    first = resized_window(picture, (30, 40), slice(0, 30), slice(0, 40), "bilinear")
    kept = first.copy()
    resized_window(255 - picture, (30, 40), slice(0, 30), slice(0, 40), "bilinear")
    assert np.array_equal(first, kept)
