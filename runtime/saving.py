"""Encode an explanation's overlay, figure, map or mask as a file."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from .attribution import Attribution
from .class_comparison import draw_comparison
from .drawing import draw_figure, saved_overlay
from .errors import RequestError
from .file_names import Kind
from .images import RGBImage
from .overlay import Style

KINDS: tuple[Kind, ...] = get_args(Kind)
IMAGE_TYPES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")


def check_type(path: Path, kind: Kind) -> None:
    """Check that a file's ending says a type that holds what is written.

    Raises:
        RequestError: another ending.
    """
    if kind not in KINDS:
        raise RequestError(f"there is no '{kind}' to save; choose from: {', '.join(KINDS)}")
    suffix = path.suffix.lower()
    if kind in ("map", "mask"):
        if suffix not in (".npy", ".png"):
            raise RequestError(
                f"a {kind} is written as a NumPy array or as grey levels: end {path} with .npy or "
                ".png"
            )
    elif suffix not in IMAGE_TYPES:
        raise RequestError(f"cannot tell the image type of {path}: end it with .png")


def encode(explanation: Attribution, suffix: str, kind: Kind, style: Style) -> bytes:
    """Encode one of ``KINDS`` as a file of a type that ``check_type`` allows.

    Maps and masks lie over the image's own pixels: float32 [h, w] in ``.npy``, 8-bit grey in
    ``.png``.

    Raises:
        RequestError: a mask without thresholding, or an image too large for its type.
        MissingExtraError: a figure without matplotlib.
    """
    if kind == "figure":
        figure = draw_figure(explanation, style)
        from .figure import rasterise

        return encode_image(rasterise(figure), suffix)
    if kind == "overlay":
        return encode_image(saved_overlay(explanation, style), suffix)
    values = explanation.map if kind == "map" else explanation.mask
    if values is None:
        raise RequestError("there is no mask without thresholding: explain with tft")
    values = explanation.on_image(values)
    if kind == "mask" and (explanation.tft is None or explanation.tft.mask == "binary"):
        values = np.asarray(explanation.region.mask, np.float32)
    if suffix.lower() == ".npy":
        buffer = io.BytesIO()
        np.save(buffer, values)
        return buffer.getvalue()
    return encode_image(np.rint(255 * values).astype(np.uint8), suffix)


def encode_image(image: RGBImage | NDArray[np.uint8], suffix: str) -> bytes:
    """Encode an image, RGB or grey, as a file of one of ``IMAGE_TYPES``.

    Raises:
        RequestError: it is too large for its type.
    """
    import cv2

    pixels = image if image.ndim == 2 else image[..., ::-1]
    done, data = cv2.imencode(suffix, pixels)
    if not done:
        raise RequestError(f"OpenCV cannot write an image of {image.shape} as {suffix}")
    return bytes(data)


def encode_comparison(explanations: Sequence[Attribution], suffix: str, style: Style) -> bytes:
    """Encode the comparison of several classes as an image file, see ``draw_comparison``."""
    return encode_image(draw_comparison(explanations, style), suffix)
