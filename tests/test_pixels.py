"""Images of any bands and any depth: what the network is fed, what is shown, what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import msgspec
import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

import whycam
from whycam.runtime.errors import ImageError, MissingExtraError, ModelFileError, RequestError
from whycam.runtime.images import read_image
from whycam.runtime.input_format import Preprocess
from whycam.runtime.manifest import parse
from whycam.runtime.pixels import read_pixels, show_pixels
from whycam.runtime.preprocess import crop_resized, normalise

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (20, 30, 3), np.uint8)
FOUR = RNG.integers(0, 256, (20, 30, 4), np.uint8)
DEEP = RNG.integers(0, 10000, (20, 30, 13)).astype(np.uint16)


def spec_of(channels: int, color: str = "bands", **fields: Any) -> Preprocess:
    numbers = {"mean": (0.0,) * channels, "std": (1.0,) * channels}
    return Preprocess(**{"size": (8, 12), "resize": (8, 12), "color": color, **numbers, **fields})


DEEP_SPEC = spec_of(13, value_range=(0, 10000))


# --- what is read ---


@pytest.mark.parametrize("how", ["contig", "separate", "pages"])
def test_tiff_gives_its_bands_however_they_are_stored(tmp_path, how):
    path = tmp_path / "scene.tif"
    if how == "contig":
        tifffile.imwrite(path, DEEP, photometric="minisblack", planarconfig="contig")
    elif how == "separate":
        planes = np.moveaxis(DEEP, -1, 0)
        tifffile.imwrite(path, planes, photometric="minisblack", planarconfig="separate")
    else:
        tifffile.imwrite(path, np.moveaxis(DEEP, -1, 0), photometric="minisblack")
    found = read_pixels(path, DEEP_SPEC)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, DEEP)


def test_four_bands_of_8_bits_stay_as_they_are(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", FOUR, photometric="minisblack", planarconfig="contig")
    Image.fromarray(FOUR, "RGBA").save(tmp_path / "a.png")
    for source in (tmp_path / "a.tif", tmp_path / "a.png", FOUR, np.moveaxis(FOUR, -1, 0)):
        found = read_pixels(source, spec_of(4))
        assert found.dtype == np.uint8
        np.testing.assert_array_equal(found, FOUR)


@pytest.mark.parametrize("kind", [np.uint16, np.int32, np.float32, np.float64])
@pytest.mark.parametrize("order", ["HWC", "CHW"])
def test_array_files_are_read_in_either_order(tmp_path, kind, order):
    array = DEEP.astype(kind) if order == "HWC" else np.moveaxis(DEEP, -1, 0).astype(kind)
    np.save(tmp_path / "scene.npy", array)
    for source in (tmp_path / "scene.npy", array):
        np.testing.assert_array_equal(read_pixels(source, DEEP_SPEC), DEEP)


def test_8_bit_array_file_is_read_where_rgb_is_taken(tmp_path):
    np.save(tmp_path / "hwc.npy", RGB)
    np.save(tmp_path / "chw.npy", np.moveaxis(RGB, -1, 0))
    for name in ("hwc.npy", "chw.npy"):
        np.testing.assert_array_equal(read_image(tmp_path / name), RGB)


def test_16_bit_colours_of_a_png_keep_their_lower_bits(tmp_path):
    deep = RNG.integers(0, 65536, (20, 30, 3)).astype(np.uint16)
    cv2.imwrite(str(tmp_path / "deep.png"), deep[..., ::-1])
    spec = spec_of(3, "RGB", value_range=(0, 65535))
    np.testing.assert_array_equal(read_pixels(tmp_path / "deep.png", spec), deep)


def test_deep_grey_feeds_grey_and_colour_networks_alike(tmp_path):
    deep = RNG.integers(0, 4096, (20, 30)).astype(np.uint16)
    Image.fromarray(deep).save(tmp_path / "grey.png")
    tifffile.imwrite(tmp_path / "grey.tif", deep)
    for name in ("grey.png", "grey.tif"):
        grey = read_pixels(tmp_path / name, spec_of(1, "L", value_range=(0, 4095)))
        np.testing.assert_array_equal(grey, deep[..., None])
        colour = read_pixels(tmp_path / name, spec_of(3, "RGB", value_range=(0, 4095)))
        np.testing.assert_array_equal(colour, np.dstack([deep] * 3))


def test_deep_colours_become_grey_by_the_usual_weights():
    deep = RNG.uniform(0, 1, (5, 6, 3)).astype(np.float32)
    found = read_pixels(deep, spec_of(1, "L", value_range=(0, 1)))
    np.testing.assert_allclose(found[..., 0], deep @ [0.299, 0.587, 0.114], rtol=1e-6)


# --- what the network is fed ---


def test_values_are_scaled_by_the_stated_range_and_not_cut_off():
    spec = spec_of(2, size=(1, 2), resize=(), value_range=(-50, 150), mean=(0.5, 0), std=(0.5, 1))
    image = np.array([[[-50, 150], [350, -250]]], np.float32)
    found = normalise(crop_resized(image, spec)[0], spec)
    np.testing.assert_allclose(found, [[[-1, 3]], [[1, -1]]])
    last = normalise(crop_resized(image, spec)[0], spec, "NHWC")
    np.testing.assert_allclose(last, np.moveaxis(found, 0, -1))


@pytest.mark.parametrize("kind", ["bilinear", "bicubic"])
def test_deep_bands_are_resized_as_torch_does(kind):
    spec = msgspec.structs.replace(DEEP_SPEC, interpolation=kind)
    view, _ = crop_resized(DEEP.astype(np.float32), spec)
    planes = torch.from_numpy(DEEP.astype(np.float64)).permute(2, 0, 1)[None]
    expected = torch.nn.functional.interpolate(planes, (8, 12), mode=kind, antialias=True)
    if kind == "bilinear":  # torch's bicubic has a = -3/4 without antialias, -1/2 with it
        np.testing.assert_allclose(view, expected[0].permute(1, 2, 0), rtol=1e-5)
    else:
        np.testing.assert_allclose(view, expected[0].permute(1, 2, 0), atol=0.1)


def test_8_bit_bands_are_resized_as_colours_are():
    spec = spec_of(4)
    colours, _ = crop_resized(np.ascontiguousarray(FOUR[..., :3]), spec)
    bands, _ = crop_resized(FOUR, spec)
    np.testing.assert_array_equal(bands[..., :3], colours)


def test_border_of_a_small_image_is_the_ranges_lower_end():
    spec = spec_of(2, size=(4, 4), resize=(), value_range=(-7, 1))
    view, _ = crop_resized(np.zeros((2, 2, 2), np.float32), spec)
    assert (view[0] == -7).all()
    assert (view[1:3, 1:3] == 0).all()


# --- what is shown ---


def test_chosen_bands_are_shown_as_red_green_and_blue():
    np.testing.assert_array_equal(show_pixels(FOUR, spec_of(4), (3, 2, 1)), FOUR[..., 2::-1])
    one = show_pixels(FOUR, spec_of(4), (4,))
    np.testing.assert_array_equal(one, np.dstack([FOUR[..., 3]] * 3))


def test_deep_bands_are_stretched_between_percentiles():
    ramp = np.arange(1001, dtype=np.float32).reshape(7, 143)[..., None]
    shown = show_pixels(np.dstack([ramp, ramp]), spec_of(2, value_range=(0, 1)), (1,))
    assert shown.dtype == np.uint8
    flat = shown[..., 0].ravel()
    assert (flat[:20] == 0).all()
    assert (flat[981:] == 255).all()
    assert flat[500] == 128  # round(255 * (500 - 20) / 960), half to even
    constant = show_pixels(np.full((3, 3, 2), 7, np.float32), spec_of(2, value_range=(0, 1)))
    assert (constant == 0).all()


def test_mean_of_all_bands_is_shown_by_default():
    found = show_pixels(FOUR, spec_of(4))
    np.testing.assert_array_equal(found[..., 1], np.rint(FOUR.astype(float).mean(2)))


def test_explainer_shows_the_bands_that_were_asked_for(manifest_of, tiny_engine):
    engine = tiny_engine()
    engine.mix = RNG.normal(size=(engine.CHANNELS, 4))
    spec = spec_of(4, size=(8, 8), resize=(8, 8))
    manifest = manifest_of(preprocess=spec, show_bands=(4, 1, 2))
    found = whycam.Explainer(engine, manifest).explain(FOUR)
    np.testing.assert_array_equal(found.image, FOUR[..., [3, 0, 1]])
    assert found.overlay().shape == RGB.shape


def test_batch_of_depths_gives_what_each_image_gives_alone(manifest_of, tiny_engine):
    engine = tiny_engine()
    engine.mix = RNG.normal(size=(engine.CHANNELS, 13))
    spec = spec_of(13, size=(8, 8), resize=(8, 8), value_range=(0, 10000))
    explainer = whycam.Explainer(engine, manifest_of(preprocess=spec))
    images = [DEEP, DEEP[:10].astype(np.float64), np.moveaxis(DEEP[5:], -1, 0)]
    together = explainer.explain(images)
    for image, one in zip(images, together, strict=True):
        alone = explainer.explain(image)
        assert one.probability == alone.probability
        np.testing.assert_array_equal(one.map, alone.map)


# --- what is refused ---


def test_image_with_other_bands_is_refused_with_what_is_needed(tmp_path):
    Image.fromarray(RGB).save(tmp_path / "photo.jpg")
    with pytest.raises(
        ImageError, match=r"photo\.jpg has 3 bands.*13 bands with values of 0 to 10"
    ):
        read_pixels(tmp_path / "photo.jpg", DEEP_SPEC)
    with pytest.raises(ImageError, match=r"\[20, 30, 3\].*\[H, W, 13\] or \[13, H, W\]"):
        read_pixels(RGB, DEEP_SPEC)


def test_array_that_can_be_read_in_two_orders_is_refused():
    with pytest.raises(ImageError, match="either the first or the last axis"):
        read_pixels(np.zeros((13, 20, 13), np.uint16), DEEP_SPEC)


def test_scale_of_deep_images_is_never_guessed(tmp_path):
    tifffile.imwrite(tmp_path / "deep.tif", DEEP[..., :1].squeeze())
    for source, spec in (
        (tmp_path / "deep.tif", spec_of(3, "RGB")),
        (DEEP, spec_of(13)),
        (DEEP[..., :3].astype(np.float32), spec_of(3, "RGB")),
    ):
        with pytest.raises(ImageError, match=r"--value-range LOW:HIGH"):
            read_pixels(source, spec)


def test_8_bits_are_refused_where_more_are_taken():
    with pytest.raises(ImageError, match=r"8 bits.*0 to 10000.*full depth"):
        read_pixels(DEEP.astype(np.uint8), DEEP_SPEC)
    stated = read_pixels(FOUR, spec_of(4, value_range=(0, 255)))
    np.testing.assert_array_equal(stated, FOUR)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e39])
def test_values_that_are_no_numbers_are_refused(value):
    damaged = DEEP.astype(np.float64)
    damaged[3, 4, 5] = value
    with pytest.raises(ImageError, match=r"1 values that are NaN, infinite or too large, of 7,800"):
        read_pixels(damaged, DEEP_SPEC)


@pytest.mark.parametrize("dtype", [bool, complex, "datetime64[s]", "U3"])
def test_elements_that_are_no_numbers_are_refused(tmp_path, dtype):
    array = np.zeros((20, 30, 13), dtype)
    np.save(tmp_path / "odd.npy", array)
    for source in (array, tmp_path / "odd.npy"):
        with pytest.raises(ImageError, match="not numbers"):
            read_pixels(source, DEEP_SPEC)


def test_pickled_objects_are_not_loaded(tmp_path):
    np.save(tmp_path / "trap.npy", np.array([[{}]], object), allow_pickle=True)
    with pytest.raises(ImageError, match=r"trap\.npy holds Python objects"):
        read_pixels(tmp_path / "trap.npy", DEEP_SPEC)


def _header(path: Path, shape: str, pad: int = 0) -> None:
    text = f"{{'descr': '<u2', 'fortran_order': False, 'shape': {shape}, }}".encode()
    text += b" " * pad + b"\n"
    path.write_bytes(b"\x93NUMPY\x02\x00" + len(text).to_bytes(4, "little") + text + bytes(64))


@pytest.mark.parametrize(
    ("shape", "pad"),
    [("(100000, 100000, 13)", 0), ("(2, 2, 13)", 50_000), ("(-2, 2, 13)", 0), ("(2, 0, 13)", 0)],
    ids=["promises too much", "huge header", "negative", "empty"],
)
def test_headers_that_lie_are_refused(tmp_path, shape, pad):
    _header(tmp_path / "liar.npy", shape, pad)
    with pytest.raises(ImageError, match=r"liar\.npy"):
        read_pixels(tmp_path / "liar.npy", DEEP_SPEC)


@pytest.mark.parametrize("share", [0.0, 0.05, 0.5, 0.98])
@pytest.mark.parametrize("kind", ["npy", "tif", "compressed.tif"])
def test_truncated_files_are_refused(tmp_path, kind, share):
    path = tmp_path / f"cut.{kind}"
    if kind == "npy":
        np.save(path, DEEP)
    else:
        compression = "zlib" if kind == "compressed.tif" else None
        tifffile.imwrite(path, DEEP, photometric="minisblack", planarconfig="contig",
                         compression=compression)  # fmt: skip
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(ImageError, match="cut"):
        read_pixels(path, DEEP_SPEC)


def test_missing_files_are_refused(tmp_path):
    for name in ("no.npy", "no.tif"):
        with pytest.raises(ImageError, match="there is no file"):
            read_pixels(tmp_path / name, DEEP_SPEC)


def test_tiff_of_bands_where_rgb_is_taken_is_refused(tmp_path):
    tifffile.imwrite(tmp_path / "scene.tif", DEEP, photometric="minisblack")
    with pytest.raises(ImageError, match=r"scene\.tif"):
        read_image(tmp_path / "scene.tif")


def test_palette_and_inverted_tiff_are_refused(tmp_path):
    tifffile.imwrite(tmp_path / "film.tif", FOUR[..., 0], photometric="miniswhite")
    with pytest.raises(ImageError, match="stores 0 as white"):
        read_pixels(tmp_path / "film.tif", spec_of(1))


def test_missing_tifffile_names_what_to_install(tmp_path, monkeypatch):
    tifffile.imwrite(tmp_path / "scene.tif", DEEP, photometric="minisblack")
    monkeypatch.setitem(__import__("sys").modules, "tifffile", None)
    with pytest.raises(MissingExtraError, match=r'pip install (.*)"whycam\[tiff\]"'):
        read_pixels(tmp_path / "scene.tif", DEEP_SPEC)


def test_stream_of_bands_is_refused_before_the_source_is_opened(manifest_of, tiny_engine):
    explainer = whycam.Explainer(tiny_engine(), manifest_of(preprocess=DEEP_SPEC))
    with pytest.raises(RequestError, match=r"8-bit RGB frames.*13 bands"):
        whycam.stream(explainer, "no-such-file.mp4")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"show_bands": (14,)}, "of 1 to 13"),
        ({"show_bands": (1, 2)}, "one or three bands"),
        ({"embedded_preprocess": True}, "8-bit RGB images.*13 bands"),
        ({"image_dtype": "uint8"}, "without a value range"),
    ],
)
def test_manifest_refuses_what_bands_cannot_do(manifest_of, fields, message):
    document = msgspec.json.decode(manifest_of(preprocess=DEEP_SPEC).to_json()) | fields
    with pytest.raises(ModelFileError, match=message):
        parse(msgspec.json.encode(document), "file.onnx")
