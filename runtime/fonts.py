"""Find what writes a text: OpenCV's own face, or a font of this machine, and whether one does.

OpenCV 5 brings a face with the letters of Latin, Greek, Cyrillic, Hebrew, Arabic and East Asian
scripts, and writes from left to right, letter by letter. Everything else - other scripts, scripts
that run from right to left, join their letters or place marks around them, OpenCV 4, which draws
ASCII alone - is left to Pillow, with the first font that has every letter of the text, and with the
library Raqm where letters are joined or marks placed. What neither can write is never drawn as
boxes, question marks or loose letters.
"""

from __future__ import annotations

import threading
import unicodedata
import warnings
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

# File names that Pillow looks for where the operating system keeps its fonts.
_FONTS = (
    "DejaVuSans.ttf", "NotoSans-Regular.ttf", "Arial Unicode.ttf", "arial.ttf",
    "NotoSansCJK-Regular.ttc", "wqy-microhei.ttc", "wqy-zenhei.ttc", "DroidSansFallbackFull.ttf",
    "Hiragino Sans GB.ttc", "AppleGothic.ttf", "msyh.ttc", "msgothic.ttc", "malgun.ttf",
    "FreeSans.ttf", "Nirmala.ttc", "Nirmala.ttf", "LeelawUI.ttf", "ebrima.ttf", "mmrtext.ttf",
    "Kohinoor.ttc", "Thonburi.ttc", "NotoSansSymbols2-Regular.ttf", "unifont.ttf",
)  # fmt: skip
_SIZE = 20  # at which a font is asked for its letters
_faces = threading.local()  # a face keeps state while it draws


class FontWarning(UserWarning):
    """A name is left out of images, for nothing on this machine writes it."""


class Unwritable:
    """In place of a font: nothing writes the text."""


UNWRITABLE = Unwritable()


def opencv_face() -> Any:
    """Load OpenCV 5's font face; None if there is none."""
    if not hasattr(_faces, "face"):
        import cv2

        _faces.face = cv2.FontFace("uni") if hasattr(cv2, "FontFace") else None
    return _faces.face


@lru_cache(maxsize=1024)
def is_written_by_letters(text: str) -> bool:
    """Tell whether a text is written from left to right, letter by letter.

    Not where letters run from right to left, are joined (Arabic, Mongolian), or have marks that
    are placed around them (Devanagari, Thai and their kin).
    """
    return not any(
        unicodedata.bidirectional(letter) in ("R", "AL", "AN")
        or unicodedata.category(letter) in ("Mn", "Mc", "Me", "Cf")
        or 0x1800 <= ord(letter) < 0x18B0
        for letter in text
    )


@lru_cache(maxsize=4096)
def find_font(text: str) -> str | Unwritable | None:
    """Find what writes a text of one line.

    Args:
        text: in composed form (NFC).

    Returns:
        A font's file name for Pillow, empty for its own; None: OpenCV's face; ``UNWRITABLE``.
    """
    by_letters = is_written_by_letters(text)
    if opencv_face() is not None and by_letters and all(map(_is_in_face, text)):
        return None
    if not by_letters and not can_join_letters():
        return UNWRITABLE
    for name in _candidates(text):
        if all(letter.isspace() or _is_in_font(letter, name) for letter in text):
            return name
    return UNWRITABLE


def warn_unwritable(text: str) -> None:
    """Warn once for each script of which nothing on this machine writes a text."""
    letters = [letter for letter in text if find_font(letter) is UNWRITABLE]
    for script in dict.fromkeys(map(script_of, letters or text)):
        _warn_of(script or "punctuation", text)


_warned: set[str] = set()


def _warn_of(script: str, text: str) -> None:
    if script in _warned:
        return
    _warned.add(script)
    if not is_written_by_letters(text) and not can_join_letters():
        why = "Pillow was built without Raqm and FriBiDi, which join letters and place marks"
        remedy = "install them, or a Pillow that has them"
    else:
        why = f"no font on this machine writes {script}"
        remedy = "install a font of that script, as Noto Sans"
        if opencv_face() is None:
            remedy += ", or OpenCV 5 (pip install -U opencv-python-headless)"
    warnings.warn(
        f"{why}: names as '{text}' are left out of images, numbers stand for classes; {remedy}",
        FontWarning,
        stacklevel=2,
    )


def load_font(name: str, size: int) -> Any:
    """Load a font for Pillow by file name, its own for an empty one; None if there is none."""
    return _load_font(name, size, can_join_letters())


@lru_cache(maxsize=64)
def _load_font(name: str, size: int, joined: bool) -> Any:
    from PIL import ImageFont

    engine = ImageFont.Layout.RAQM if joined else ImageFont.Layout.BASIC
    if not name:
        return ImageFont.load_default(size)
    try:
        return ImageFont.truetype(name, size, layout_engine=engine)
    except OSError:
        return None


def can_join_letters() -> bool:
    """Tell whether Pillow joins letters, places marks and writes from right to left."""
    from PIL import features

    return bool(features.check("raqm") and features.check("fribidi"))


def _candidates(text: str) -> Iterator[str]:
    """List fonts by file name, those of the text's scripts first after the general ones."""
    yield ""
    yield from _bundled()
    for script in filter(None, dict.fromkeys(map(script_of, text))):
        yield f"NotoSans{script}-Regular.ttf"
    yield from _FONTS


def script_of(letter: str) -> str:
    """Name a letter's script as fonts do: ``Devanagari``; empty for those of every script."""
    kind = unicodedata.category(letter)[0]
    if letter.isascii() or kind in "PZC":
        return ""
    if kind == "S":
        return "Symbols"
    name = unicodedata.name(letter, "unnamed").split()[0].title()
    return "Han" if name == "Cjk" else name


@lru_cache(maxsize=1)
def _bundled() -> tuple[str, ...]:
    """List the fonts that matplotlib brings, where it is installed."""
    from importlib.util import find_spec

    spec = find_spec("matplotlib")
    if spec is None or spec.origin is None:
        return ()
    return (str(Path(spec.origin).parent / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf"),)


@lru_cache(maxsize=4096)
def _is_in_face(letter: str) -> bool:
    if letter.isascii():
        return True
    import cv2

    # A missing letter is drawn as a question mark.
    drawn = []
    for each in (letter, "?"):
        image = np.zeros((24, 40, 3), np.uint8)
        cv2.putText(image, each, (4, 18), (255, 255, 255), opencv_face(), 16)
        drawn.append(image)
    return bool((drawn[0] != drawn[1]).any())


@lru_cache(maxsize=4096)
def _is_in_font(letter: str, name: str) -> bool:
    """Tell whether a font has a letter: a missing one is drawn as a noncharacter is."""
    font = load_font(name, _SIZE)
    if font is None:
        return False
    if unicodedata.category(letter) == "Cf":  # joiners and directions are never seen
        return True
    return bytes(font.getmask(letter)) != bytes(font.getmask("\uffff"))
