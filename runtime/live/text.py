"""Words on a picture in whatever script a class name has.

OpenCV 5 brings a face with most of Unicode; under OpenCV 4, which draws ASCII alone, Pillow's does
it, with the scripts of Europe.
"""

from __future__ import annotations

import threading
from functools import lru_cache
from typing import Any

import numpy as np

from ..images import Picture

_faces = threading.local()  # a face keeps state while it draws


def width_of(text: str, size: int) -> int:
    """How many pixels a line takes.

    Args:
        text: one line.
        size: of the letters, in pixels.
    """
    face = _face()
    if face is None:
        return int(np.ceil(_pillow_font(size).getlength(text)))
    import cv2

    # Where the pen ends: the rectangle of the ink would leave out spaces.
    _, _, width, _ = cv2.getTextSize((1, 1), text, (0, 0), face, size)
    return int(width)


def write(picture: Picture, text: str, left: int, top: int, size: int) -> None:
    """Write one white line into a picture.

    Args:
        picture: uint8 [h, w, 3], contiguous, changed in place.
        text: one line.
        left, top: of the line; what lies outside the picture is cut off.
        size: of the letters, in pixels.
    """
    face = _face()
    if face is not None:
        import cv2

        cv2.putText(picture, text, (left, top + size), (255, 255, 255), face, size)
        return
    letters = _pillow_line(text, size)
    height = max(0, min(letters.shape[0], picture.shape[0] - top))
    width = max(0, min(letters.shape[1], picture.shape[1] - left))
    place = picture[top : top + height, left : left + width]
    np.maximum(place, letters[:height, :width, None], out=place)


def _face() -> Any:
    """OpenCV 5's face, or None."""
    if not hasattr(_faces, "face"):
        import cv2

        _faces.face = cv2.FontFace("uni") if hasattr(cv2, "FontFace") else None
    return _faces.face


@lru_cache(maxsize=16)
def _pillow_font(size: int) -> Any:
    from PIL import ImageFont

    return ImageFont.load_default(size)


@lru_cache(maxsize=64)
def _pillow_line(text: str, size: int) -> Picture:
    """uint8 [h, w], white on black."""
    from PIL import Image, ImageDraw

    font = _pillow_font(size)
    line = Image.new("L", (max(1, width_of(text, size)), round(1.4 * size)))
    ImageDraw.Draw(line).text((0, 0), text, 255, font=font)
    return np.asarray(line)
