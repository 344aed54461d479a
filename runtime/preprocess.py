"""From an RGB picture to the network's input, and a map's way back to the picture.

The pixels are those of torchvision's and timm's transforms on Pillow images: resize with
antialias, centre crop, normalise.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .cam import interpolation_matrix
from .images import Picture
from .manifest import Preprocess
from .threads import one_blas_thread

# Very long pictures: past this many times the input's pixels, only the window itself is
# resized. Pillow holds a window's edges in single precision, which can move a pixel's value by
# a few of 255; below, the pixels are exactly those of a resize followed by a crop.
_MAX_EXCESS = 64


@dataclass(frozen=True)
class Placement:
    """Where the network's input lies in the picture.

    Attributes:
        picture: (height, width) of the picture in pixels.
        top, left, bottom, right: the input's edges in picture pixels, fractional; outside the
            picture where it was padded.
    """

    picture: tuple[int, int]
    top: float
    left: float
    bottom: float
    right: float


def place(picture: tuple[int, int], spec: Preprocess) -> tuple[Placement, tuple[int, int]]:
    """Where the input lies in a picture of (height, width), and the size it is resized to."""
    height, width = picture
    if len(spec.resize) == 2:
        resized = spec.resize[0], spec.resize[1]
    elif len(spec.resize) == 1:
        short = spec.resize[0]
        # torchvision's rounding: the longer side is truncated.
        resized = (
            (short, int(short * width / height))
            if height <= width
            else (int(short * height / width), short)
        )
    else:
        resized = picture
    sides = []
    for full, new, wanted in zip(picture, resized, spec.size, strict=True):
        start = _start(new, wanted)
        sides.append((start * full / new, (start + wanted) * full / new))
    (top, bottom), (left, right) = sides
    return Placement(picture, top, left, bottom, right), resized


def crop_resized(picture: Picture, spec: Preprocess) -> tuple[Picture, Placement]:
    """The network's view of a picture, before normalisation.

    Args:
        picture: uint8 [h, w, 3], RGB.
        spec: how the model wants it.

    Returns:
        uint8 [H, W, 3], and where it lies in the picture.
    """
    from PIL import Image

    placement, resized = place((picture.shape[0], picture.shape[1]), spec)
    # The window of the resized picture that is shown, and where in the view it lies.
    starts = [_start(new, wanted) for new, wanted in zip(resized, spec.size, strict=True)]
    top, left = (max(start, 0) for start in starts)
    bottom, right = (
        min(start + wanted, new)
        for start, wanted, new in zip(starts, spec.size, resized, strict=True)
    )
    filtering = Image.Resampling[spec.interpolation.upper()]
    if resized == placement.picture:
        part = picture[top:bottom, left:right]
    elif resized[0] * resized[1] <= _MAX_EXCESS * spec.size[0] * spec.size[1]:
        whole = Image.fromarray(picture).resize((resized[1], resized[0]), filtering)
        part = np.asarray(whole)[top:bottom, left:right]
    else:
        scale = [full / new for full, new in zip(placement.picture, resized, strict=True)]
        box = left * scale[1], top * scale[0], right * scale[1], bottom * scale[0]
        window = Image.fromarray(picture).resize((right - left, bottom - top), filtering, box)
        part = np.asarray(window)
    if part.shape[:2] == spec.size:
        return part, placement
    view = np.zeros((*spec.size, 3), np.uint8)
    row, column = top - starts[0], left - starts[1]
    view[row : row + part.shape[0], column : column + part.shape[1]] = part
    return view, placement


def _start(resized: int, wanted: int) -> int:
    """First row or column of a centred window; negative where a border must be added."""
    if resized >= wanted:
        return round((resized - wanted) / 2)
    return -((wanted - resized) // 2)


def normalise(view: Picture, spec: Preprocess) -> NDArray[np.float32]:
    """uint8 [..., H, W, 3] to float32 [..., 3, H, W]: (x / 255 - mean) / std."""
    mean = np.asarray(spec.mean, np.float32)
    std = np.asarray(spec.std, np.float32)
    pixels = view.astype(np.float32)
    pixels /= np.float32(255)
    pixels -= mean
    pixels /= std
    return np.ascontiguousarray(np.moveaxis(pixels, -1, -3))


def to_picture(values: NDArray[np.float32], placement: Placement) -> NDArray[np.float32]:
    """Carry a map [H, W] over the network's input to the picture's own pixels.

    Returns:
        float32 [h, w]; zero where the network did not look.
    """
    edges = (placement.top, placement.bottom), (placement.left, placement.right)
    matrices = []
    for size, full, (low, high) in zip(values.shape, placement.picture, edges, strict=True):
        centres = np.arange(full) + 0.5
        matrix = interpolation_matrix(size, (centres - low) * (size / (high - low)) - 0.5)
        matrix[(centres < low) | (centres > high)] = 0.0
        matrices.append(matrix.astype(np.float32))
    rows, columns = matrices
    with one_blas_thread():
        return np.asarray(rows @ values @ columns.T, dtype=np.float32)
