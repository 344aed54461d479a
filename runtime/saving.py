"""Encode an explanation's overlay, figure, map or mask as a file, and name that file."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from .attribution import Attribution
from .class_comparison import draw_comparison
from .drawing import draw_figure, saved_overlay
from .errors import RequestError
from .images import RGBImage
from .overlay import Style

Kind = Literal["overlay", "figure", "map", "mask"]
KINDS: tuple[Kind, ...] = get_args(Kind)
IMAGE_TYPES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
_LONGEST_LABEL = 40  # letters of a class name in a file's name


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

        return _encode_image(rasterise(figure), suffix)
    if kind == "overlay":
        return _encode_image(saved_overlay(explanation, style), suffix)
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
    return _encode_image(np.rint(255 * values).astype(np.uint8), suffix)


def _encode_image(image: RGBImage | NDArray[np.uint8], suffix: str) -> bytes:
    import cv2

    pixels = image if image.ndim == 2 else image[..., ::-1]
    done, data = cv2.imencode(suffix, pixels)
    if not done:
        raise RequestError(f"OpenCV cannot write an image of {image.shape} as {suffix}")
    return bytes(data)


def encode_comparison(explanations: Sequence[Attribution], suffix: str, style: Style) -> bytes:
    """Encode the comparison of several classes as an image file, see ``draw_comparison``."""
    return _encode_image(draw_comparison(explanations, style), suffix)


def comparison_name(stem: str, explanations: Sequence[Attribution], image_type: str) -> str:
    """Name the comparison of several classes, as ``file_name``.

    ``cat.281-tabby-vs-282-tiger-cat.gradcam.tft.comparison.png``.
    """
    names = "-vs-".join(class_name(one) for one in explanations[:2])
    if len(explanations) > 2:
        names += f"-and-{len(explanations) - 2}-more"
    parts = [stem, names, explanations[0].method, *_threshold_name(explanations[0]), "comparison"]
    return ".".join(parts) + image_type


def file_name(stem: str, explanation: Attribution, kind: Kind, image_type: str = ".png") -> str:
    """Name a file by image, class, method and threshold.

    ``cat.282-tiger-cat.gradcam.tft.png``; with ``.figure``, ``.map`` or ``.mask`` before the
    ending. Another reading of TFT than the default names itself: ``tft-soft-rank``.

    Args:
        stem: the image's name without its ending.
        explanation: what is written.
        kind: of ``KINDS``.
        image_type: ending of images; maps end in ``.npy``, masks in ``.png``.
    """
    parts = [stem, class_name(explanation), explanation.method, *_threshold_name(explanation)]
    if kind != "overlay":
        parts.append(kind)
    return ".".join(parts) + {"map": ".npy", "mask": ".png"}.get(kind, image_type)


def _threshold_name(explanation: Attribution) -> list[str]:
    tft = explanation.tft
    if tft is not None:
        default = (tft.mask, tft.thresholds) == ("binary", "value")
        return ["tft" if default else f"tft-{tft.mask}-{tft.thresholds}"]
    return [] if explanation.threshold is None else ["naive"]


def class_name(explanation: Attribution) -> str:
    """Write a class's index and label so that any file system takes it: ``282-tiger-cat``."""
    letters = (letter if letter.isalnum() else "-" for letter in explanation.label.lower())
    words = "-".join(part for part in "".join(letters).split("-") if part)
    name = str(explanation.index)
    return name if words in ("", name) else f"{name}-{words[:_LONGEST_LABEL].rstrip('-')}"
