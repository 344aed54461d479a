"""Write text of any script on an image.

OpenCV 5 brings a face with the letters of Latin, Greek, Cyrillic, Hebrew, Arabic and East Asian
scripts, and writes from left to right, letter by letter. Everything else - other scripts, scripts
that run from right to left or join their letters, OpenCV 4, which draws ASCII alone - is left to
Pillow, with the first font found on this machine that has every letter of the text.
"""

from __future__ import annotations

import threading
import unicodedata
import warnings
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from .images import RGBImage

# File names that Pillow looks for where the operating system keeps its fonts.
_FONTS = (
    "DejaVuSans.ttf", "NotoSans-Regular.ttf", "Arial Unicode.ttf", "arial.ttf",
    "NotoSansCJK-Regular.ttc", "wqy-microhei.ttc", "wqy-zenhei.ttc", "DroidSansFallbackFull.ttf",
    "Hiragino Sans GB.ttc", "AppleGothic.ttf", "msyh.ttc", "msgothic.ttc", "malgun.ttf",
    "NotoSansArabic-Regular.ttf", "NotoSansHebrew-Regular.ttf", "NotoSansDevanagari-Regular.ttf",
    "NotoSansThai-Regular.ttf", "unifont.ttf",
)  # fmt: skip
_faces = threading.local()  # a face keeps state while it draws


def width_of(text: str, size: int) -> int:
    """Measure a line of text in pixels.

    Args:
        text: one line.
        size: of the letters, in pixels.
    """
    font = _pillow_font(text, size)
    if font is not None:
        return int(np.ceil(font.getlength(text)))
    import cv2

    # The advance width, for the bounding box leaves out trailing spaces.
    _, _, width, _ = cv2.getTextSize((1, 1), text, (0, 0), _face(), size)
    return int(width)


def write(image: RGBImage, text: str, left: int, top: int, size: int) -> None:
    """Write one white line into an image.

    Args:
        image: uint8 [h, w, 3], contiguous, changed in place.
        text: one line.
        left, top: of the line; what lies outside the image is cut off.
        size: of the letters, in pixels.
    """
    font = _pillow_font(text, size)
    if font is None:
        import cv2

        cv2.putText(image, text, (left, top + size), (255, 255, 255), _face(), size)
        return
    letters = _pillow_line(text, size)
    height = max(0, min(letters.shape[0], image.shape[0] - top))
    width = max(0, min(letters.shape[1], image.shape[1] - left))
    region = image[top : top + height, left : left + width]
    np.maximum(region, letters[:height, :width, None], out=region)


def shorten(line: str, width: int, size: int) -> str:
    """Shorten a line that is wider than ``width`` pixels, with an ellipsis at its end."""
    if width_of(line, size) <= width:
        return line
    while line and width_of(line + "…", size) > width:
        line = line[:-1]
    return line + "…"


def _face() -> Any:
    """Load OpenCV 5's font face; None if there is none."""
    if not hasattr(_faces, "face"):
        import cv2

        _faces.face = cv2.FontFace("uni") if hasattr(cv2, "FontFace") else None
    return _faces.face


def is_left_to_right(text: str) -> bool:
    """Tell whether a text is written from left to right, letter by letter."""
    return not any(
        unicodedata.bidirectional(letter) in ("R", "AL", "AN") or unicodedata.combining(letter)
        for letter in text
    )


@lru_cache(maxsize=1024)
def _is_simple(text: str) -> bool:
    """Tell whether OpenCV's face has all letters and its order of writing is right for them."""
    return is_left_to_right(text) and all(map(_has_face_letter, text))


@lru_cache(maxsize=4096)
def _has_face_letter(letter: str) -> bool:
    if letter.isascii():
        return True
    import cv2

    # A missing letter is drawn as a question mark.
    drawn = []
    for each in (letter, "?"):
        image = np.zeros((24, 40, 3), np.uint8)
        cv2.putText(image, each, (4, 18), (255, 255, 255), _face(), 16)
        drawn.append(image)
    return bool((drawn[0] != drawn[1]).any())


@lru_cache(maxsize=1024)
def _pillow_font(text: str, size: int) -> Any:
    """Find the font for Pillow to write a text with; None: OpenCV writes it."""
    has_face = _face() is not None
    if has_face and _is_simple(text):
        return None
    own = _load_font(None, size)
    for name in (None, *_bundled(), *_FONTS):
        font = _load_font(name, size)
        if font is not None and _covers(font, text):
            return font
    if not has_face or any(not _covers(own, letter) for letter in text):
        missing = "".join(sorted({letter for letter in text if not _covers(own, letter)}))
        remedy = "" if has_face else "OpenCV 5 (pip install -U opencv-python-headless) or "
        warnings.warn(
            f"no font on this machine draws '{missing}': these letters are missing in images; "
            f"install {remedy}a font of that script, as Noto Sans",
            stacklevel=2,
        )
    return None if has_face else own


@lru_cache(maxsize=64)
def _load_font(name: str | None, size: int) -> Any:
    """Load a font by file name, or Pillow's own for None; return None if there is no such file."""
    from PIL import ImageFont

    if name is None:
        return ImageFont.load_default(size)
    try:
        return ImageFont.truetype(name, size)
    except OSError:
        return None


@lru_cache(maxsize=1)
def _bundled() -> tuple[str, ...]:
    """List the fonts that matplotlib brings, where it is installed."""
    from importlib.util import find_spec

    spec = find_spec("matplotlib")
    if spec is None or spec.origin is None:
        return ()
    return (str(Path(spec.origin).parent / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf"),)


def _covers(font: Any, text: str) -> bool:
    """Tell whether a font has every letter: a missing one is drawn as a noncharacter is."""
    missing = bytes(font.getmask("\uffff"))
    return all(letter.isspace() or bytes(font.getmask(letter)) != missing for letter in text)


@lru_cache(maxsize=64)
def _pillow_line(text: str, size: int) -> RGBImage:
    """Draw a line, uint8 [h, w], white on black."""
    from PIL import Image, ImageDraw

    font = _pillow_font(text, size)
    line = Image.new("L", (max(1, width_of(text, size)), round(1.4 * size)))
    ImageDraw.Draw(line).text((0, 0), text, 255, font=font)
    return np.asarray(line)
