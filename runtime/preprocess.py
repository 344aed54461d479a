"""From an image to the network's input, and a map's way back to the image.

The pixels are those of torchvision's and timm's transforms on Pillow images: resize with
antialias, centre crop, normalise. Detectors often have whole images fitted in by OpenCV instead:
``Preprocess.letterbox`` and ``antialias`` say so.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from .images import to_grey
from .input_format import BYTE_RANGE, Color, Interpolation, Layout, Preprocess
from .manifest import Manifest
from .pixels import Pixels

# Very long images: past this many times the input's pixels, only the window itself is
# resized. Pillow holds a window's edges in single precision, which can move a pixel's value by
# a few of 255; below, the pixels are exactly those of a resize followed by a crop.
_MAX_EXCESS = 64


@dataclass(frozen=True)
class Placement:
    """Where the network's input lies in the image.

    Attributes:
        image: (height, width) of the image in pixels.
        top, left, bottom, right: the input's edges in image pixels, fractional; outside the
            image where it was padded.
    """

    image: tuple[int, int]
    top: float
    left: float
    bottom: float
    right: float

    def enlarged(self, scale: int) -> Placement:
        """Locate the input in the image with each pixel repeated ``scale`` times."""
        height, width = self.image
        edges = (scale * edge for edge in (self.top, self.left, self.bottom, self.right))
        return Placement((scale * height, scale * width), *edges)


def place(image: tuple[int, int], spec: Preprocess) -> tuple[Placement, tuple[int, int]]:
    """Locate the network's input in an image of (height, width), and its resized size."""
    height, width = image
    if spec.letterbox is not None:
        resized = spec.letterbox.fit(image, spec.size)
    elif len(spec.resize) == 2:
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
        resized = image
    sides = []
    for full, new, wanted in zip(image, resized, spec.size, strict=True):
        start = _start(new, wanted, spec)
        sides.append((start * full / new, (start + wanted) * full / new))
    (top, bottom), (left, right) = sides
    return Placement(image, top, left, bottom, right), resized


def spec_for(image: Pixels, manifest: Manifest) -> Preprocess:
    """Say how an image becomes the input: in its own resolution where the graph takes any.

    Args:
        image: [h, w, C].
        manifest: of the graph.
    """
    if manifest.dynamic_size is None:
        return manifest.preprocess
    size = manifest.dynamic_size.choose((image.shape[0], image.shape[1]))
    return msgspec.structs.replace(manifest.preprocess, size=size, resize=size)


def crop_resized(image: Pixels, spec: Preprocess) -> tuple[Pixels, Placement]:
    """Resize and crop an image to the network's view, before normalisation.

    Args:
        image: from ``read_pixels``, uint8 or float32 [h, w, C].
        spec: how the model wants it.

    Returns:
        [H, W, C] of the same type, and where it lies in the image.
    """
    placement, resized = place((image.shape[0], image.shape[1]), spec)
    # The window of the resized image that is shown, and where in the view it lies.
    starts = [_start(new, wanted, spec) for new, wanted in zip(resized, spec.size, strict=True)]
    top, left = (max(start, 0) for start in starts)
    bottom, right = (
        min(start + wanted, new)
        for start, wanted, new in zip(starts, spec.size, resized, strict=True)
    )
    if resized == placement.image:
        part = image[top:bottom, left:right]
    elif not spec.antialias:  # whole images alone
        part = _resize_plainly(image, resized, spec.interpolation)
    elif resized[0] * resized[1] <= _MAX_EXCESS * spec.size[0] * spec.size[1]:
        columns, skipped, width = _columns(placement.image, resized, left, right, spec)
        around = resize(image[:, columns], (resized[0], width), spec.interpolation)
        part = around[top:bottom, left - skipped : right - skipped]
    else:
        scale = [full / new for full, new in zip(placement.image, resized, strict=True)]
        box = left * scale[1], top * scale[0], right * scale[1], bottom * scale[0]
        part = resize(image, (bottom - top, right - left), spec.interpolation, box)
    if part.shape[:2] == spec.size:
        return part, placement
    view = np.full((*spec.size, image.shape[2]), _padding(spec), image.dtype)
    row, column = top - starts[0], left - starts[1]
    view[row : row + part.shape[0], column : column + part.shape[1]] = part
    return view, placement


def _padding(spec: Preprocess) -> float:
    """Return the pixel value around images that do not fill the input."""
    if spec.letterbox is not None:
        return spec.letterbox.value
    return 0.0 if spec.value_range is None else spec.value_range[0]


def _resize_plainly(image: Pixels, size: tuple[int, int], interpolation: Interpolation) -> Pixels:
    """Resize as OpenCV does, from the nearest pixels alone: [h, w, C] to [H, W, C]."""
    import cv2

    kind = {"nearest": cv2.INTER_NEAREST, "bilinear": cv2.INTER_LINEAR}[interpolation]
    resized = cv2.resize(np.ascontiguousarray(image), size[::-1], interpolation=kind)
    return np.asarray(resized).reshape(*size, image.shape[2])  # one channel has lost its axis


def resize(
    image: Pixels,
    size: tuple[int, int],
    interpolation: Interpolation,
    box: tuple[float, float, float, float] | None = None,
) -> Pixels:
    """Resize with Pillow: RGB images whole, all others band by band.

    Args:
        image: uint8 or float32 [h, w, C].
        size: (H, W).
        interpolation: named as Pillow names it.
        box: (left, top, right, bottom), the part of the image to resize; None: all of it.

    Returns:
        [H, W, C] of the same type.
    """
    from PIL import Image

    filtering = Image.Resampling[interpolation.upper()]
    if image.dtype == np.uint8 and image.shape[2] == 3:
        return np.asarray(Image.fromarray(image).resize(size[::-1], filtering, box))
    resized = np.empty((*size, image.shape[2]), image.dtype)
    for band in range(image.shape[2]):
        plane = Image.fromarray(np.ascontiguousarray(image[..., band]))
        resized[..., band] = plane.resize(size[::-1], filtering, box)
    return resized


# How far a filter reaches, in pixels of the smaller of the two images. Nearest is not among them:
# Pillow adds its steps up from the image's edge.
_REACH = {"bilinear": 1, "bicubic": 2, "lanczos": 3}


def _columns(
    full: tuple[int, int], resized: tuple[int, int], left: int, right: int, spec: Preprocess
) -> tuple[slice, int, int]:
    """Choose the columns that are enough to resize if only left .. right are used.

    Their edges fall on a pixel's edge in both images, so that every weight stays as it is, and
    lie so far outside that the filter does not feel them. The pixels are those of the whole
    image's resize, exactly, for a good third less work on a video of 16 : 9.

    Returns:
        The columns; how many of the resized image's come before them; how many they become.
    """
    height, width = full
    everything = slice(0, width), 0, resized[1]
    if spec.interpolation not in _REACH or len(spec.resize) != 1:
        return everything
    common = math.gcd(width, resized[1])
    step, stride = resized[1] // common, width // common
    margin = math.ceil(_REACH[spec.interpolation] * max(1.0, resized[1] / width)) + 1
    begin = max(0, (left - margin) // step)
    end = min(common, -(-(right + margin) // step))
    # Pillow resizes tall images in another order, which rounds in another way: from 13 on, and
    # from about twice their width on.
    if (end - begin) * stride < height:
        return everything
    return slice(begin * stride, end * stride), begin * step, (end - begin) * step


def _start(resized: int, wanted: int, spec: Preprocess) -> int:
    """Find the first row or column of the window; negative where a border is added before."""
    if spec.letterbox is not None and spec.letterbox.anchor == "top-left":
        return 0
    if resized >= wanted:
        return round((resized - wanted) / 2)
    return -((wanted - resized) // 2)


def in_color(view: Pixels, color: Color) -> Pixels:
    """Convert pixels [..., H, W, C] to the network's channels and their order."""
    if color in ("RGB", "bands") or view.shape[-1] == 1:
        return view
    if color == "BGR":
        return view[..., ::-1]
    return to_grey(view)


def normalise(view: Pixels, spec: Preprocess, layout: Layout = "NCHW") -> NDArray[np.float32]:
    """Normalise pixels [..., H, W, C] to the network's channels, as ``Preprocess`` says.

    Returns:
        float32 [..., C, H, W], or [..., H, W, C] for the layout NHWC.
    """
    pixels = in_color(view, spec.color)
    # Looked up: a pixel has 256 values only, and planes come out in the network's order at once.
    levels = scale(np.arange(256, dtype=np.uint8), spec)
    planes = (*pixels.shape[:-3], spec.channels, *pixels.shape[-3:-1])
    normalised = np.empty(pixels.shape if layout == "NHWC" else planes, np.float32)
    by_channel = normalised if layout == "NHWC" else np.moveaxis(normalised, -3, -1)
    for channel, (mean, std) in enumerate(zip(spec.mean, spec.std, strict=True)):
        if pixels.dtype == np.uint8:
            table = (levels - np.float32(mean)) / np.float32(std)
            np.take(table, pixels[..., channel], out=by_channel[..., channel], mode="clip")
        else:
            values = scale(pixels[..., channel], spec)
            by_channel[..., channel] = (values - np.float32(mean)) / np.float32(std)
    return normalised


def scale(pixels: Pixels, spec: Preprocess) -> NDArray[np.float32]:
    """Map pixel values to [0, 1] by the network's value range; float32 of the same shape."""
    low, high = (np.float32(value) for value in spec.value_range or BYTE_RANGE)
    return np.asarray((pixels.astype(np.float32) - low) / (high - low))


def arrange(view: Pixels, manifest: Manifest) -> NDArray[Any]:
    """Arrange views as the input of a graph without preprocessing of its own.

    Args:
        view: from ``crop_resized``, [..., H, W, C].
        manifest: of the graph.

    Returns:
        [..., *manifest.image_shape]: float32 and normalised; uint8 pixels where the input is.
    """
    if manifest.image_type != "uint8":
        return normalise(view, manifest.preprocess, manifest.layout)
    pixels = in_color(view, manifest.preprocess.color)
    return np.ascontiguousarray(
        np.moveaxis(pixels, -1, -3) if manifest.layout == "NCHW" else pixels
    )


def to_image(values: NDArray[np.float32], placement: Placement) -> NDArray[np.float32]:
    """Carry a map [H, W] over the network's input to the image's own pixels.

    Returns:
        float32 [h, w]; zero where the network did not look.
    """
    rows, columns = _neighbours(placement, (values.shape[0], values.shape[1]))
    across = values[:, columns.first]
    across += (values[:, columns.second] - across) * columns.fraction
    inside = across[rows.first]
    step = across[rows.second]
    step -= inside
    step *= rows.fraction[:, None]
    inside += step
    found = np.zeros(placement.image, np.float32)
    found[rows.inside, columns.inside] = inside
    return found


def seen_window(placement: Placement) -> tuple[int, int, int, int]:
    """Return top, left, bottom, right of the image pixels that the network saw, the last two not.

    A pixel is seen where its centre is, as in ``to_image``.
    """
    edges = (placement.top, placement.bottom), (placement.left, placement.right)
    (top, bottom), (left, right) = (
        (max(0, math.ceil(low - 0.5)), min(full, math.floor(high - 0.5) + 1))
        for full, (low, high) in zip(placement.image, edges, strict=True)
    )
    return top, left, bottom, right


class _Axis(NamedTuple):
    """For one axis: the image pixels where the network looked, and for each of these the two map
    pixels between which it lies and how far it is from the first to the second."""

    inside: slice
    first: NDArray[np.intp]
    second: NDArray[np.intp]
    fraction: NDArray[np.float32]


@lru_cache(maxsize=64)
def _neighbours(placement: Placement, size: tuple[int, int]) -> tuple[_Axis, _Axis]:
    edges = (placement.top, placement.bottom), (placement.left, placement.right)
    axes = []
    for count, full, (low, high) in zip(size, placement.image, edges, strict=True):
        centres = np.arange(full) + 0.5
        start, end = np.searchsorted(centres, [low, np.nextafter(high, np.inf)])
        place = (centres[start:end] - low) * (count / (high - low)) - 0.5
        place = np.clip(place, 0, count - 1)
        first = np.minimum(place.astype(np.intp), max(count - 2, 0))
        second = np.minimum(first + 1, count - 1)
        fraction = (place - first).astype(np.float32)
        axes.append(_Axis(slice(int(start), int(end)), first, second, fraction))
    rows, columns = axes
    return rows, columns
