"""Read the pixels that a network takes: RGB images, bands, 16-bit and float images."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .errors import ImageError, reason_of
from .images import (
    MAX_PIXELS,
    ImageSource,
    RGBImage,
    open_image,
    read_image,
    to_grey,
    upright,
    without_warnings,
)
from .input_format import BYTE_RANGE, Preprocess, describe_images
from .npy import read_npy
from .tiff import is_tiff, read_tiff

if TYPE_CHECKING:
    from PIL.Image import Image

# [h, w, C]: uint8; float32 for images of more than 8 bits.
Pixels = NDArray[Any]

# What Pillow's modes hold that are bands as they are; others are converted to RGB.
_MODES = {"L", "LA", "RGB", "RGBA", "I", "F", "I;16", "I;16L", "I;16B", "I;16N"}
_LUMA = (0.299, 0.587, 0.114)  # ITU-R 601-2
_CUT = (2.0, 98.0)  # percent of an image's values that are shown as black, and as less than white
_SAMPLED = 200_000  # pixels that are enough to find these


def read_pixels(source: ImageSource, spec: Preprocess) -> Pixels:
    """Read an image as a network takes it, in the image's own size.

    Where the network takes 8-bit images in RGB or grey this is ``read_image``. Else the bands and
    the depth of the image are kept: of ``.npy`` files and arrays [H, W], [H, W, C] or [C, H, W],
    TIFF files, and what Pillow reads.

    Args:
        source: a path, an array or a Pillow image.
        spec: of the network.

    Returns:
        [h, w, C]: uint8; float32 for images of more than 8 bits. C is 3, RGB, for networks of
        colours and, without a value range, of grey; else the network's.

    Raises:
        ImageError: unreadable, of another number of bands than the network takes, NaN, or of a
            depth whose scale nobody stated.
        MissingExtraError: a TIFF file of bands without tifffile.
    """
    if spec.value_range is None and spec.color != "bands":
        return read_image(source)
    name, values = _read(source, spec)
    return _converted(_checked(values, name, spec), spec)


def pixel_format(spec: Preprocess) -> tuple[int, str]:
    """Return C, and a type that holds whatever ``read_pixels`` returns for a network."""
    if spec.value_range is not None:
        return spec.channels, "float32"
    return spec.channels if spec.color == "bands" else 3, "uint8"


def _read(source: ImageSource, spec: Preprocess) -> tuple[str, NDArray[Any]]:
    """Read [h, w, bands] in the source's own element type."""
    if isinstance(source, np.ndarray):
        return "the array", _bands_last(source, "the array", spec)
    if isinstance(source, str | os.PathLike):
        path = Path(source)
        if path.suffix.lower() == ".npy":
            return str(path), _bands_last(read_npy(path, 16 * MAX_PIXELS), str(path), spec)
        if is_tiff(path):
            return str(path), read_tiff(path, MAX_PIXELS)
        with without_warnings():
            return str(path), open_image(path, lambda image: _from_pillow(image, path))
    from PIL import Image

    if isinstance(source, Image.Image):
        with without_warnings():
            return "the Pillow image", _from_pillow(source, None)
    if isinstance(source, bytes | bytearray | memoryview):
        raise ImageError(
            f"bytes are read as 8-bit RGB or grey images, and the network takes "
            f"{describe_images(spec)}: pass a path or an array"
        )
    raise ImageError(
        f"cannot read an image from {type(source).__name__}: pass a path, an array "
        f"[H, W, {spec.channels}], or a Pillow image"
    )


def _from_pillow(image: Image, path: Path | None) -> NDArray[Any]:
    tiles = getattr(image, "tile", None)  # of an image that is not decoded yet
    raw = tiles[0][3] if tiles else None
    if path is not None and image.format == "PNG" and raw in ("RGB;16B", "RGBA;16B"):
        return _deep_png(path)
    name = str(path or "the Pillow image")
    image = upright(image, name)
    try:
        values = np.asarray(image if image.mode in _MODES else image.convert("RGB"))
    except Exception as error:  # Pillow's decoders raise whatever their format makes them
        raise ImageError(f"{name} cannot be decoded: {reason_of(error)}") from error
    return values[..., None] if values.ndim == 2 else values


def _deep_png(path: Path) -> NDArray[Any]:
    """Read 16-bit colours, of which Pillow drops the lower 8 bits."""
    import cv2

    values = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_UNCHANGED)
    if values is None:
        raise ImageError(f"{path} cannot be decoded")
    order = [2, 1, 0, 3][: values.shape[2]]
    return np.ascontiguousarray(values[..., order])


def _band_counts(spec: Preprocess) -> tuple[int, ...]:
    """List how many bands an image may have."""
    return (spec.channels,) if spec.color == "bands" else (1, 3)


def _bands_last(values: NDArray[Any], name: str, spec: Preprocess) -> NDArray[Any]:
    """Tell [H, W, C] from [C, H, W] by the number of bands that the network takes."""
    if values.ndim == 2:
        return values[..., None]
    counts = _band_counts(spec)
    if values.ndim == 3:
        first, last = values.shape[0] in counts, values.shape[2] in counts
        if first and last:
            raise ImageError(
                f"{name} has the shape {list(values.shape)}, in which either the first or the last "
                "axis may be the bands: pad or crop its height or width"
            )
        if first or last:
            return values if last else np.moveaxis(values, 0, -1)
    allowed = " or ".join(f"[H, W, {count}] or [{count}, H, W]" for count in counts)
    raise ImageError(
        f"{name} has the shape {list(values.shape)}; the network takes {describe_images(spec)}: "
        f"{allowed}"
    )


def _checked(values: NDArray[Any], name: str, spec: Preprocess) -> Pixels:
    """Check bands, depth and numbers; uint8 stays, all else becomes float32."""
    wanted, bands = describe_images(spec), values.shape[2]
    if bands not in _band_counts(spec):
        raise ImageError(
            f"{name} has {bands} band{'s' * (bands != 1)}, and the network takes {wanted}: pass a "
            f"TIFF or .npy file with {' or '.join(map(str, _band_counts(spec)))} of them"
        )
    if 0 in values.shape:
        raise ImageError(f"{name} is empty ({values.shape[1]} x {values.shape[0]} pixels)")
    if values.shape[0] * values.shape[1] > MAX_PIXELS:
        raise ImageError(
            f"{name} has {values.shape[1]} x {values.shape[0]} pixels, more than {MAX_PIXELS:,}: "
            "cut it into tiles"
        )
    if values.dtype.kind not in "uif":
        raise ImageError(f"{name} has values of type {values.dtype}, not numbers")
    if values.dtype == np.uint8:
        if spec.value_range not in (None, BYTE_RANGE):
            raise ImageError(
                f"{name} has 8 bits, values up to 255, and the network takes {wanted}: pass the "
                "image in its full depth"
            )
        return values
    if spec.value_range is None:
        raise ImageError(
            f"{name} has values of type {values.dtype}, whose scale is not known, and the network "
            "takes 8-bit images: export it again with --value-range LOW:HIGH, the values that its "
            "training mapped to 0 and 1"
        )
    with np.errstate(over="ignore"):
        single = values.astype(np.float32)
    if not np.isfinite(single).all():
        count = int(np.count_nonzero(~np.isfinite(single)))
        raise ImageError(
            f"{name} has {count:,} values that are NaN, infinite or too large, of {single.size:,}: "
            "fill pixels without data as it was done for training"
        )
    return single


def _converted(values: Pixels, spec: Preprocess) -> Pixels:
    """Convert grey to three equal channels, or colours to grey, for the networks that need it."""
    if spec.color == "L" and values.shape[2] == 3:
        if values.dtype == np.uint8:
            return to_grey(values)
        return (values @ np.asarray(_LUMA, np.float32))[..., None]
    if spec.color in ("RGB", "BGR") and values.shape[2] == 1:
        return np.repeat(values, 3, axis=2)
    return values


def show_pixels(pixels: Pixels, spec: Preprocess, bands: tuple[int, ...] = ()) -> RGBImage:
    """Make an image that people can look at.

    8-bit values are shown as they are. Deeper ones are stretched, band by band, from the 2nd to
    the 98th percentile of the image.

    Args:
        pixels: from ``read_pixels``, [h, w, C].
        spec: of the network.
        bands: counted from 1: three as red, green and blue, or one in grey; empty: the mean of all
            for bands, else the colours.

    Returns:
        uint8 [h, w, 3], RGB; ``pixels`` themselves where they are that.
    """
    if bands:
        chosen = pixels[..., [band - 1 for band in bands]]
    elif spec.color == "bands":
        chosen = pixels.mean(2, keepdims=True, dtype=np.float32)
        if pixels.dtype == np.uint8:
            chosen = np.rint(chosen).astype(np.uint8)
    else:
        chosen = pixels
    if chosen.dtype != np.uint8:
        chosen = _stretched(chosen)
    return chosen if chosen.shape[2] == 3 else np.repeat(chosen, 3, axis=2)


def _stretched(values: Pixels) -> NDArray[np.uint8]:
    step = max(1, round((values.shape[0] * values.shape[1] / _SAMPLED) ** 0.5))
    low, high = np.percentile(values[::step, ::step], _CUT, axis=(0, 1)).astype(np.float32)
    levels: NDArray[np.float32] = (values - low) * (255 / np.where(high > low, high - low, np.inf))
    return np.asarray(np.rint(np.clip(levels, 0, 255)), np.uint8)
