"""Write text of any script on an image.

OpenCV 5 brings a face with most of Unicode. Under OpenCV 4, which draws ASCII alone, Pillow draws
with the first font found on this machine that has every letter of the text.
"""

from __future__ import annotations

import threading
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
    face = _face()
    if face is None:
        return int(np.ceil(_pillow_font(text, size).getlength(text)))
    import cv2

    # The advance width, for the bounding box leaves out trailing spaces.
    _, _, width, _ = cv2.getTextSize((1, 1), text, (0, 0), face, size)
    return int(width)


def write(image: RGBImage, text: str, left: int, top: int, size: int) -> None:
    """Write one white line into an image.

    Args:
        image: uint8 [h, w, 3], contiguous, changed in place.
        text: one line.
        left, top: of the line; what lies outside the image is cut off.
        size: of the letters, in pixels.
    """
    face = _face()
    if face is not None:
        import cv2

        cv2.putText(image, text, (left, top + size), (255, 255, 255), face, size)
        return
    letters = _pillow_line(text, size)
    height = max(0, min(letters.shape[0], image.shape[0] - top))
    width = max(0, min(letters.shape[1], image.shape[1] - left))
    region = image[top : top + height, left : left + width]
    np.maximum(region, letters[:height, :width, None], out=region)


def _face() -> Any:
    """Load OpenCV 5's font face; None if there is none."""
    if not hasattr(_faces, "face"):
        import cv2

        _faces.face = cv2.FontFace("uni") if hasattr(cv2, "FontFace") else None
    return _faces.face


@lru_cache(maxsize=64)
def _pillow_font(text: str, size: int) -> Any:
    """Find the first font with every letter of the text, else return Pillow's own and warn."""
    own = _load_font(None, size)
    for name in (None, *_bundled(), *_FONTS):
        font = _load_font(name, size)
        if font is not None and _covers(font, text):
            return font
    missing = "".join(sorted({letter for letter in text if not _covers(own, letter)}))
    warnings.warn(
        f"no font on this machine draws '{missing}': these letters are boxes in images; install "
        "OpenCV 5 (pip install -U opencv-python-headless) or a font of that script",
        stacklevel=2,
    )
    return own


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
