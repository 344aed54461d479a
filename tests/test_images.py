"""Images in: every kind of file, array and Pillow image, and the errors of bad ones."""

from __future__ import annotations

import struct
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from whycam.runtime.errors import ImageError
from whycam.runtime.images import list_images, read_image

IMAGE = np.random.default_rng(0).integers(0, 256, (13, 17, 3), np.uint8)
GREY = IMAGE[..., 0]


def test_path_array_and_pillow_give_the_same_image(sample_images):
    for path in sample_images:
        array = np.asarray(Image.open(path).convert("RGB"))
        for source in (path, str(path), array, Image.open(path), Image.fromarray(array)):
            found = read_image(source)
            assert found.dtype == np.uint8
            np.testing.assert_array_equal(found, array)


def test_image_array_is_not_copied():
    assert np.shares_memory(read_image(IMAGE), IMAGE)


@pytest.mark.parametrize("array", [GREY, GREY[..., None]], ids=["HW", "HW1"])
def test_grey_array_becomes_three_equal_channels(array):
    np.testing.assert_array_equal(read_image(array), np.stack([GREY] * 3, axis=-1))


def test_alpha_is_dropped():
    transparent = np.dstack([IMAGE, np.zeros_like(GREY)])
    for source in (transparent, Image.fromarray(transparent, "RGBA")):
        np.testing.assert_array_equal(read_image(source), IMAGE)


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "1", "P", "PA", "CMYK", "YCbCr", "HSV"])
def test_pillow_modes_become_rgb(mode):
    image = Image.fromarray(GREY if mode in ("L", "LA", "PA") else IMAGE).convert(mode)
    expected = np.asarray(image.convert("RGB"))
    np.testing.assert_array_equal(read_image(image), expected)


def test_grey_file_becomes_three_equal_channels(tmp_path):
    Image.fromarray(GREY).save(tmp_path / "grey.png")
    found = read_image(tmp_path / "grey.png")
    np.testing.assert_array_equal(found, np.stack([GREY] * 3, axis=-1))


def test_palette_file_is_looked_up(tmp_path):
    few = (IMAGE // 128) * 255  # eight colours fit any palette
    Image.fromarray(few).quantize(8).save(tmp_path / "palette.gif")
    assert Image.open(tmp_path / "palette.gif").mode == "P"
    np.testing.assert_array_equal(read_image(tmp_path / "palette.gif"), few)


def test_16_bit_grey_keeps_its_range(tmp_path):
    # Pillow's own conversion clips everything above 255 to white.
    deep = GREY.astype(np.uint16) * 257
    Image.fromarray(deep).save(tmp_path / "deep.png")
    found = read_image(tmp_path / "deep.png")
    np.testing.assert_array_equal(found, np.stack([GREY] * 3, axis=-1))


@pytest.mark.parametrize("values", [np.full((3, 3), 0.5, np.float32), np.full((3, 3), -1, np.int32),
                                    np.full((3, 3), 70000, np.int32)])  # fmt: skip
def test_other_depths_are_refused(tmp_path, values):
    Image.fromarray(values).save(tmp_path / "deep.tiff")
    with pytest.raises(ImageError, match=r"deep\.tiff"):
        read_image(tmp_path / "deep.tiff")


def test_cmyk_jpeg_becomes_rgb(tmp_path):
    red = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    red.save(tmp_path / "press.jpg", quality=95)
    found = read_image(tmp_path / "press.jpg")
    assert np.abs(found.astype(int) - (255, 0, 0)).max() < 12


@pytest.mark.parametrize(
    ("orientation", "upright"),
    [
        (1, lambda a: a),
        (2, lambda a: a[:, ::-1]),
        (3, lambda a: a[::-1, ::-1]),
        (4, lambda a: a[::-1]),
        (5, lambda a: a.transpose(1, 0, 2)),
        (6, lambda a: np.rot90(a, -1)),
        (7, lambda a: a[::-1, ::-1].transpose(1, 0, 2)),
        (8, lambda a: np.rot90(a)),
    ],
)
def test_exif_orientation_is_applied(tmp_path, orientation, upright):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(IMAGE).save(tmp_path / "phone.png", exif=exif)
    np.testing.assert_array_equal(read_image(tmp_path / "phone.png"), upright(IMAGE))


def png(width: int, height: int) -> bytes:
    """A PNG of any stated size with next to no data in it."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = zlib.compress(b"\0" * 100)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    )


# Over twice Pillow's bound Pillow refuses by itself; between the two it only warns.
@pytest.mark.parametrize("side", [30000, 15000])
def test_decompression_bomb_is_refused(tmp_path, side):
    (tmp_path / "bomb.png").write_bytes(png(side, side))
    with pytest.raises(ImageError, match=r"bomb\.png.*scale it down"):
        read_image(tmp_path / "bomb.png")


def jpeg_bytes(tmp_path: Path) -> bytes:
    Image.fromarray(IMAGE).resize((200, 200)).save(tmp_path / "whole.jpg")
    return (tmp_path / "whole.jpg").read_bytes()


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.99])
def test_truncated_jpeg_is_refused(tmp_path, share):
    data = jpeg_bytes(tmp_path)
    (tmp_path / "cut.jpg").write_bytes(data[: int(share * len(data))])
    with pytest.raises(ImageError, match=r"cut\.jpg"):
        read_image(tmp_path / "cut.jpg")


def test_empty_file_is_refused(tmp_path):
    (tmp_path / "nothing.png").touch()
    with pytest.raises(ImageError, match=r"nothing\.png is empty"):
        read_image(tmp_path / "nothing.png")


def test_text_file_is_refused(tmp_path):
    (tmp_path / "notes.jpg").write_text("not an image")
    with pytest.raises(ImageError, match=r"notes\.jpg is no image"):
        read_image(tmp_path / "notes.jpg")


def test_folder_is_refused(tmp_path):
    with pytest.raises(ImageError, match="is a folder"):
        read_image(tmp_path)


@pytest.mark.parametrize(
    "name",
    ["missing.png", "no/such/folder.png", "nul\0.png", "x" * 300],
    ids=["missing", "folder", "nul", "long"],
)
def test_missing_file_is_refused(tmp_path, name):
    with pytest.raises(ImageError, match=name[:3]):
        read_image(tmp_path / name)


def test_image_type_that_pillow_does_not_know_in_full_is_refused(tmp_path):
    # Pillow raises NotImplementedError for a DDS file with an unknown pixel format.
    header = struct.pack("<7I44x", 124, 0x1007, 8, 8, 0, 0, 0)
    header += struct.pack("<2I4s5I", 32, 0, b"\0" * 4, 0, 0, 0, 0, 0) + bytes(20)
    (tmp_path / "game.dds").write_bytes(b"DDS " + header + bytes(64))
    with pytest.raises(ImageError, match=r"game\.dds"):
        read_image(tmp_path / "game.dds")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP", "WEBP", "PPM", "TGA", "JPEG2000"])
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_file_is_read_or_an_image_error(tmp_path, kind, data):
    path = tmp_path / "damaged"
    Image.fromarray(IMAGE).save(path, kind)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, min(200, len(content) - 1)))
        content[at] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    with suppress(ImageError):  # and no other error
        found = read_image(path)
        assert found.dtype == np.uint8
        assert found.shape[2] == 3


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64, np.uint16, bool, object])
def test_array_of_another_type_is_refused(dtype):
    with pytest.raises(ImageError, match="uint8"):
        read_image(IMAGE.astype(dtype))


@pytest.mark.parametrize(
    "shape", [(), (5,), (5, 5, 2), (5, 5, 5), (2, 5, 9), (1, 5, 5, 3), (0, 5, 3), (5, 0, 3), (0, 0)]
)
def test_array_of_another_shape_is_refused(shape):
    with pytest.raises(ImageError, match="shape"):
        read_image(np.zeros(shape, np.uint8))


def test_empty_pillow_image_is_refused():
    with pytest.raises(ImageError, match="empty"):
        read_image(Image.new("RGB", (0, 5)))


@pytest.mark.parametrize(
    "source",
    [None, 7, b"bytes", [[1, 2], [3, 4]], object(), SimpleNamespace(convert=None, mode="RGB")],
)
def test_other_things_are_refused(source):
    with pytest.raises(ImageError, match=type(source).__name__):
        read_image(source)


def test_hidden_files_are_no_images_of_a_folder(tmp_path):
    """Of other programs, and what a killed process left half-written."""
    for name in ("b.png", "a.JPG", "sub/c.webp", ".a.x7.png", "._a.jpg", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = [str(path.relative_to(tmp_path)) for path in list_images(tmp_path)]
    assert found == ["a.JPG", "b.png", "sub/c.webp"]


def palette_with_transparency(path: Path) -> Path:
    """Pillow warns when it is converted."""
    Image.fromarray(GREY).convert("P").save(path, transparency=bytes(range(200)))
    return path


@pytest.mark.parametrize("opened", [False, True], ids=["file", "Pillow image"])
def test_what_pillow_only_warns_of_is_read_without_a_warning(tmp_path, opened):
    path = palette_with_transparency(tmp_path / "palette.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning):
            Image.open(path).convert("RGB")
        found = read_image(Image.open(path) if opened else path)
    np.testing.assert_array_equal(found, np.stack([GREY] * 3, axis=-1))


def test_threads_that_read_leave_the_filters_of_warnings_as_they_were(tmp_path):
    paths = [palette_with_transparency(tmp_path / f"{number}.png") for number in range(8)]
    before = list(warnings.filters)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(read_image, paths * 50))
    assert warnings.filters == before


def test_a_program_is_not_run_to_see_an_image(tmp_path):
    """Pillow would hand PostScript to Ghostscript, by any name the file has."""
    path = tmp_path / "cat.jpg"
    Image.fromarray(IMAGE).save(path, "EPS")
    with pytest.raises(ImageError, match=r"cat\.jpg is a PostScript program"):
        read_image(path)
