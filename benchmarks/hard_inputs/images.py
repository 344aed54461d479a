"""Images: encoded in every format and way, damaged; arrays and objects that are none."""

from __future__ import annotations

import io
import random
import struct
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import whycam
from whycam.runtime.cam import Method

from . import damage
from .rules import Case, answer, quiet, refusal, whole

MODES = ("RGB",) * 4 + ("L", "LA", "RGBA", "1", "P", "PA", "CMYK", "YCbCr", "HSV", "LAB", "I;16")
MODES += ("I", "F", "RGBX", "RGBa", "La")
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP") * 3
FORMATS += ("PPM", "TGA", "JPEG2000", "ICO", "PCX", "SGI", "DDS", "AVIF", "ICNS", "EPS", "MPO")
ENDINGS = (".png", ".jpg", ".JPEG", ".webp", ".gif", ".tif", ".bmp", "", ".txt")


def run(case: Case) -> str:
    """Explain one image, or a list of them, in some way."""
    explainer, chance = case.material.explainer, case.chance
    images = source(case)
    if case.odds(0.1):
        images = [images, *(source(case) for _ in range(chance.randint(0, 2)))]
    try:
        with quiet():
            found = explainer.explain(
                images,
                chance.choice(_NO_TARGETS if case.odds(0.05) else [None, None, -1, -2, 0]),
                "smoothgrad" if case.odds(0.02) else chance.choice([None, *_methods(explainer)]),
                tft=chance.choice([None, None, None, None, True, whycam.Tft(mask="soft")]),
                geometry=chance.choice(["input", "input", "image"]),
            )
            first = found[0] if isinstance(found, list) and found else found
            if case.odds(0.1) and isinstance(first, whycam.Explanation):
                first.save(case.out / f"overlay{chance.choice(['.png', '.jpg', '.webp', '.xyz'])}")
                first.save(case.out / "map.npy", "map")
    except whycam.WhyCamError as error:
        return refusal(str(error))
    finally:
        whole(case.out)
    return answer(found, explainer.manifest.preprocess.size)


_NO_TARGETS = (10**6, -6, "no such class", 1.5, True, [], (), {}, [[0]], np.zeros((2, 2)), b"0")


def _methods(explainer: whycam.Explainer) -> list[Method]:
    # Score-CAM takes a forward pass for each channel.
    return [method for method in explainer.manifest.methods if method != "scorecam"]


def source(case: Case) -> Any:
    """Something that is passed for an image."""
    made = case.chance.choices([_file, _array, _pillow, _nonsense], [12, 4, 2, 1])[0]
    return made(case)


def file(case: Case) -> Path:
    """An image in a file, whole or damaged."""
    name = f"image{case.chance.randrange(10**6)}{case.chance.choice(ENDINGS)}"
    path = case.folder / name
    path.write_bytes(content(case))
    return path


def content(case: Case) -> bytes:
    """What such a file holds."""
    if case.odds(0.1):
        return case.chance.choice(_HEADERS)(case.chance)
    data = encoded(case)
    return damage.bytes_of(case.chance, data) if case.odds(0.5) else data


def image(case: Case) -> Image.Image:
    """A Pillow image of any mode and a size that is hard at times."""
    chance = case.chance
    side = chance.choice([1, 2, 3, 31, 32, 33, 100, 257])
    other = chance.choice([side, 1, chance.randint(1, 300), 5000])
    size = (side, other) if case.odds(0.5) else (other, side)
    if case.odds(0.02):
        size = chance.choice([(30_000, 1), (1, 60_000), (2000, 2000), (1, 1)])
    values = case.numbers.integers(0, 256, (size[1], size[0], 3), np.uint8)
    if case.odds(0.3):
        values[:] = chance.choice([0, 255, 128])
    mode = chance.choice(MODES)
    if mode == "I;16":
        return Image.fromarray(values[..., 0].astype(np.uint16) * 257)
    made = Image.fromarray(values)
    for step in {"LA": ["L", "LA"], "PA": ["P", "PA"], "La": ["LA", "La"]}.get(mode, [mode]):
        with suppress(ValueError):  # not every mode can be had from every other
            made = made.convert(step)
    return made


def encoded(case: Case) -> bytes:
    """An image in a file format that takes it, with what such files carry besides."""
    chance = case.chance
    made, kind = image(case), chance.choice(FORMATS)
    given: dict[str, Any] = {}
    if case.odds(0.3):
        exif = Image.Exif()
        exif[0x0112] = chance.choice([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 65535])
        exif[0x010E] = "what is seen \u0000\u00e9" * chance.choice([1, 1000])
        given["exif"] = exif.tobytes()
        if case.odds(0.3):
            given["exif"] = damage.bytes_of(chance, given["exif"])[:60_000]
    if kind == "TIFF":
        given["compression"] = chance.choice(
            [None, "tiff_lzw", "tiff_adobe_deflate", "jpeg", "packbits", "group4", "raw"]
        )
    if kind in ("GIF", "WEBP", "PNG", "TIFF", "MPO") and case.odds(0.2):
        given |= {"save_all": True, "append_images": [image(case) for _ in range(2)]}
    if kind in ("GIF", "PNG") and case.odds(0.2):
        given["transparency"] = chance.choice([0, 300, b"\x00\x80\xff", (1, 2, 3)])
    if case.odds(0.2):
        given |= {"progressive": True, "quality": chance.choice([1, 50, 100]), "dpi": (0.1, 0.1)}
    if case.odds(0.1):
        given["icc_profile"] = bytes(chance.randrange(256) for _ in range(200))
    buffer = io.BytesIO()
    try:
        made.save(buffer, kind, **given)
    except Exception:  # a combination that does not exist
        buffer = io.BytesIO()
        Image.new("RGB", made.size, (200, 30, 60)).save(buffer, "PNG")
    return buffer.getvalue()


def _file(case: Case) -> Any:
    path = file(case)
    return case.chance.choice([path, str(path)])


def _pillow(case: Case) -> Any:
    if case.odds(0.5):
        return image(case)
    with suppress(Exception):  # what Pillow itself cannot open is no image object
        return Image.open(io.BytesIO(content(case)))
    return image(case)


def _array(case: Case) -> Any:
    chance, numbers = case.chance, case.numbers
    sides = [chance.choice([0, 1, 2, 3, 4, 7, 32, 50]) for _ in range(chance.randint(0, 5))]
    if case.odds(0.6):
        sides = [chance.randint(1, 80), chance.randint(1, 80), chance.choice([1, 2, 3, 3, 3, 4, 5])]
    values = numbers.integers(0, 256, sides)
    kind = chance.choice(["uint8"] * 8 + ["int8", "bool", "uint16", "int64", "float32", "float64",
                          "float16", "complex64", "object", "U3", "datetime64[s]"])  # fmt: skip
    made: Any = np.asarray(values, np.uint8).astype(kind)
    if made.dtype.kind == "f" and made.size:
        made.flat[0] = chance.choice([np.nan, np.inf, -np.inf, 0.5])
    look: Callable[[Any], Any] = chance.choice(
        [
            lambda a: a,
            lambda a: a,
            np.asfortranarray,
            lambda a: a[::-1, ::-2] if a.ndim > 1 else a,
            lambda a: a.T,
            lambda a: np.ma.masked_array(a, mask=a.astype(bool) if a.dtype.kind in "ui" else False),
            lambda a: np.broadcast_to(a, (2, *a.shape)) if a.ndim < 5 else a,
            lambda a: list(a) if a.ndim else a,
            lambda a: a.tolist(),
        ]
    )
    return look(made)


def _nonsense(case: Case) -> Any:
    return case.chance.choice(
        [None, 7, float("nan"), b"image.png", "", ".", "\0", "a" * 5000, {}, {"a": 1}, object(),
         case.folder, Path("nowhere/no.png"), [None], [[]], (), np.array(None), Image, "\ud800.png",
         type("Image", (), {"convert": None, "mode": "RGB"})(), range(3), Path("/proc/self/mem"),
         "/dev/null", "/dev/zero/x"]
    )  # fmt: skip


def _png(width: int, height: int, data: bytes, depth: int = 8, colour: int = 2) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    ends = chunk(b"IDAT", zlib.compress(data, 9)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + ends


def _huge_png(chance: random.Random) -> bytes:
    side = [1, 300, 20_000, 2**20, 2**31 - 1]
    return _png(chance.choice(side), chance.choice(side), bytes(100))


def _black_png(chance: random.Random) -> bytes:
    """Whole, and a thousand times as large when decoded."""
    side = chance.choice([1500, 3000])
    return _png(side, side, bytes((side // 8 + 1) * side), 1, 0)


def _huge_bmp(chance: random.Random) -> bytes:
    width, height = (chance.choice([1, -1, 40_000, 2**31 - 1, -(2**31)]) for _ in range(2))
    depth = chance.choice([1, 8, 24, 32, 99])
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, depth, 0, 0, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54 + 30, 0, 0, 54) + header + bytes(30)


def _huge_gif(chance: random.Random) -> bytes:
    width, height = (chance.choice([0, 1, 9000, 65535]) for _ in range(2))
    screen = b"GIF89a" + struct.pack("<HHBBB", width, height, 0x80, 0, 0) + bytes(6)
    frame = b"," + struct.pack("<HHHHB", 0, 0, 1, 1, 0) + b"\x02\x02\x44\x01\x00;"
    return screen + frame


def _huge_tiff(chance: random.Random) -> bytes:
    tags = [(256, chance.choice([1, 10**5, 2**31])), (257, chance.choice([1, 10**5, 2**32 - 1])),
            (258, 8), (259, 1), (262, 1), (273, chance.choice([0, 8, 10**9])), (277, 1),
            (278, 2**31), (279, chance.choice([0, 10, 2**32 - 1]))]  # fmt: skip
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    directory = struct.pack("<H", len(tags)) + entries
    loop = chance.choice([0, 8])  # a directory that follows itself
    return b"II*\0" + struct.pack("<I", 8) + directory + struct.pack("<I", loop)


def _other(chance: random.Random) -> bytes:
    return chance.choice(
        [b"", b"\0", b"not an image", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EOF\n",
         b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"%PDF-1.4\n", b"PK\x03\x04" + bytes(60),
         b"P6 999999 999999 255\n", b"P1\n3 3\n1 0 1", b"P6 2 2 65535\n" + bytes(24), bytes(4000),
         b"Pf\n2 2\n-1.0\n" + b"\x00\x00\xc0\x7f" * 4, b"RIFF\xff\xff\xff\xffWEBPVP8 " + bytes(40)]
    )  # fmt: skip


_HEADERS = (_huge_png, _black_png, _huge_bmp, _huge_gif, _huge_tiff, _other, _other)
