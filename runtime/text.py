"""Write text of any script on an image.

A line is written in one font where one has all of it, else script by script; what nothing on this
machine writes is left out, with one warning for each script, see ``fonts``.
"""

from __future__ import annotations

import unicodedata
from functools import lru_cache
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from . import fonts
from .fonts import UNWRITABLE, Unwritable
from .images import RGBImage

_LINE = 1.4  # height of a line, in sizes of its letters
_JOINERS = "\u200c\u200d"  # hold letters apart or together


def width_of(text: str, size: int) -> int:
    """Measure a line of text in pixels.

    Args:
        text: one line.
        size: of the letters, in pixels.
    """
    return sum(_part_width(part, font, size) for part, font in _parts(text))


def write(image: RGBImage, text: str, left: int, top: int, size: int) -> None:
    """Write one white line into an image.

    Args:
        image: uint8 [h, w, 3], contiguous, changed in place.
        text: one line.
        left, top: of the line; what lies outside the image is cut off.
        size: of the letters, in pixels.
    """
    for part, font in _parts(text):
        if font is None:
            import cv2

            cv2.putText(image, part, (left, top + size), (255, 255, 255), fonts.opencv_face(), size)
        else:
            letters = _draw_part(part, font, size)
            height = max(0, min(letters.shape[0], image.shape[0] - top))
            width = max(0, min(letters.shape[1], image.shape[1] - left))
            region = image[top : top + height, left : left + width]
            np.maximum(region, letters[:height, :width, None], out=region)
        left += _part_width(part, font, size)


def shorten(line: str, width: int, size: int) -> str:
    """Shorten a line that is wider than ``width`` pixels, with an ellipsis at its end."""
    if width_of(line, size) <= width:
        return line
    line = unicodedata.normalize("NFC", line)
    while line and width_of(line + "…", size) > width:
        line = line[: _last_cluster(line)]
    return line + "…"


def name_class(label: str, index: int) -> str:
    """Return a class's label where this machine can write it, else its number: ``class 281``.

    Args:
        label: of the class.
        index: of the class.
    """
    if all(font is not UNWRITABLE for _, font in _split(label)):
        return label
    fonts.warn_unwritable(label)
    return f"class {index}"


def _last_cluster(line: str) -> int:
    """Find where the last letter begins, with the marks that belong to it."""
    place = len(line) - 1
    while place > 0 and (
        unicodedata.category(line[place]) in ("Mn", "Mc", "Me", "Cf")
        or unicodedata.combining(line[place - 1]) == 9  # a virama joins what stands around it
        or line[place - 1] in _JOINERS
    ):
        place -= 1
    return place


@lru_cache(maxsize=1024)
def _parts(text: str) -> tuple[tuple[str, str | None], ...]:
    """Split a line into parts of one font each, without what nothing writes."""
    parts = _split(text)
    for part, font in parts:
        if font is UNWRITABLE:
            fonts.warn_unwritable(part.strip())
    return tuple((part, font) for part, font in parts if not isinstance(font, Unwritable))


@lru_cache(maxsize=1024)
def _split(text: str) -> tuple[tuple[str, str | Unwritable | None], ...]:
    """Split a line into parts of one font each."""
    text = "".join(map(_plain, unicodedata.normalize("NFC", text)))
    font = fonts.find_font(text)
    if font is not UNWRITABLE:
        return ((text, font),)
    runs: list[str] = []
    script = ""
    for letter in text:
        belongs = unicodedata.category(letter)[0] in "MZ" or letter in _JOINERS
        found = script if belongs else fonts.script_of(letter)
        if not runs or found != script:
            runs.append("")
        runs[-1] += letter
        script = found
    return tuple(
        ("".join(group), font) for font, group in groupby(runs, lambda run: fonts.find_font(run))
    )


def _plain(letter: str) -> str:
    """Write a line break as a space, and leave out what chooses between text and emoji."""
    if unicodedata.category(letter) == "Cc":
        return " "
    return "" if 0xFE00 <= ord(letter) <= 0xFE0F else letter


def _part_width(part: str, font: str | None, size: int) -> int:
    if font is not None:
        return int(np.ceil(fonts.load_font(font, size).getlength(part)))
    import cv2

    # The advance width, for the bounding box leaves out trailing spaces.
    _, _, width, _ = cv2.getTextSize((1, 1), part, (0, 0), fonts.opencv_face(), size)
    return int(width)


@lru_cache(maxsize=64)
def _draw_part(part: str, font: str, size: int) -> NDArray[np.uint8]:
    """Draw a part of a line, uint8 [h, w], white on black."""
    from PIL import Image, ImageDraw

    loaded = fonts.load_font(font, size)
    ascent, descent = loaded.getmetrics()
    height = round(_LINE * size)
    # On OpenCV's baseline, unless the font reaches higher or lower than its letters do.
    baseline = min(max(size, ascent), max(size, height - descent))
    line = Image.new("L", (max(1, _part_width(part, font, size)), max(height, baseline + descent)))
    ImageDraw.Draw(line).text((0, baseline), part, 255, font=loaded, anchor="ls")
    return np.asarray(line)
