"""Images as callers have them: folders, patterns, bytes, frames of OpenCV; and one line."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

import whycam
from whycam.runtime.errors import ImageError, RequestError


def test_a_folder_or_a_pattern_is_many_images(tiny, tmp_path):
    rng = np.random.default_rng(0)
    for name in ("b.png", "a.png", "sub/c.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    whole = tiny.explain(tmp_path)
    assert len(whole) == 3
    some = tiny.explain(str(tmp_path / "*"))
    assert [one.image.tolist() for one in some] == [one.image.tolist() for one in whole[:2]]
    yielded = [path for path, _ in tiny.iter_explanations(f"{tmp_path}/**/*.png")]
    assert [path.name for path in yielded] == ["a.png", "b.png", "c.png"]
    np.testing.assert_array_equal(tiny.classify(tmp_path), tiny.classify([*yielded]))
    for nothing in (tmp_path / "*.jpg", str(tmp_path / "none*")):
        with pytest.raises(ImageError, match="no images in the pattern"):
            tiny.explain(nothing)


def test_a_file_whose_name_looks_like_a_pattern_is_one_image(tiny, tmp_path):
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "a[1].png")
    assert tiny.explain(tmp_path / "a[1].png").image.shape == (8, 8, 3)


def test_the_bytes_of_a_file_are_the_file(tiny, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    for given in (data, bytearray(data), memoryview(data)):
        np.testing.assert_array_equal(tiny.explain(given).image, pixels)
    for broken, reason in ((b"", "is empty"), (b"abc", "no image"), (data[:60], "decoded")):
        with pytest.raises(ImageError, match=f"these bytes .*{reason}"):
            tiny.explain(broken)


def test_frames_of_opencv_are_named_so(tiny):
    pixels = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), np.uint8)
    frames = pixels[..., ::-1]
    for given in (frames, list(frames), tuple(frames)):
        found = tiny.explain(given, color="BGR")
        np.testing.assert_array_equal([one.image for one in found], pixels)
    np.testing.assert_array_equal(tiny.explain(frames[0], color="BGR").image, pixels[0])
    ((_, one),) = tiny.iter_explanations([frames[0]], color="BGR")
    np.testing.assert_array_equal(next(iter(one.values())).image, pixels[0])
    with_alpha = np.concatenate([frames[0], frames[0][..., :1]], -1)
    np.testing.assert_array_equal(tiny.explain(with_alpha, color="BGR").image, pixels[0])
    np.testing.assert_array_equal(tiny.classify(pixels), tiny.classify(frames, color="BGR"))


@pytest.mark.parametrize("image", ["cat.jpg", b"abc", np.zeros((8, 8), np.uint8)])
def test_an_order_of_channels_is_for_arrays_that_have_one(tiny, image):
    with pytest.raises(RequestError, match="color='BGR' is for arrays"):
        tiny.explain(image, color="BGR")
    with pytest.raises(RequestError, match="'RGB' or 'BGR', not 'GBR'"):
        tiny.explain(np.zeros((8, 8, 3), np.uint8), color="GBR")


@pytest.mark.parametrize("address", ["https://a.org/cat.jpg", "s3://bucket/cat.jpg", "file:///c"])
def test_addresses_are_refused_in_words(tiny, address):
    with pytest.raises(ImageError, match="whycam downloads nothing"):
        tiny.explain(address)


def test_one_line_explains(curved_onnx):
    image = np.zeros((32, 32, 3), np.uint8)
    one = whycam.explain(curved_onnx, image, method="gradcam", tft=True)
    other = whycam.explain(whycam.load(curved_onnx), image, method="gradcam", tft=True)
    assert (one.index, one.probability) == (other.index, other.probability)
