"""Read images: files, arrays and Pillow images become RGB arrays, or a clear error."""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .errors import ImageError, reason_of

if TYPE_CHECKING:
    from PIL.Image import Image

RGBImage = NDArray[np.uint8]
# Anything `read_image` takes: a file, an array H x W [x 1, 3, 4] of uint8, a Pillow image.
ImageSource = Any

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif"}
MAX_PIXELS = 178_956_970  # Pillow's own bound against decompression bombs


def list_images(folder: Path) -> list[Path]:
    """List the image files, by their suffixes, in a folder and those below it, sorted.

    Hidden ones are not: what other programs keep there, and what a killed process left behind.
    """
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")
    )


def read_image(source: ImageSource) -> RGBImage:
    """Read an image as RGB.

    Grey becomes three equal channels and alpha is dropped, as torchvision's and timm's loaders
    do; a file's EXIF orientation is applied. Arrays are RGB, not OpenCV's BGR.

    Args:
        source: a path, a uint8 array [H, W], [H, W, 1], [H, W, 3] or [H, W, 4], or a Pillow image.

    Returns:
        uint8 [H, W, 3]; an array of that shape is returned as it is, not copied.

    Raises:
        ImageError: unreadable, truncated, too large, empty, or of another type or shape.
    """
    if isinstance(source, str | os.PathLike):
        with _without_warnings():
            return _read_file(Path(source))
    if isinstance(source, np.ndarray):
        return _from_array(source)
    from PIL import Image

    if isinstance(source, Image.Image):
        with _without_warnings():
            return _from_pillow(source, "the Pillow image")
    raise ImageError(
        f"cannot read an image from {type(source).__name__}: pass a path, a uint8 array "
        "[H, W, 3] in RGB order, or a Pillow image"
    )


_lock = threading.Lock()
_reading = 0
_filters = warnings.catch_warnings()


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Silence Pillow's warnings (odd metadata, large images) while images are read.

    Python's filters are one list for all threads: the first reader changes them, and the last one
    puts them back. Each for itself, as two come and go, would leave them changed for good.
    """
    global _reading, _filters
    with _lock:
        if _reading == 0:
            _filters = warnings.catch_warnings()
            _filters.__enter__()
            warnings.filterwarnings("ignore", module=r"PIL\.")
        _reading += 1
    try:
        yield
    finally:
        with _lock:
            _reading -= 1
            if _reading == 0:
                _filters.__exit__(None, None, None)


def _read_file(path: Path) -> RGBImage:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            if image.format == "EPS":
                raise ImageError(
                    f"{path} is a PostScript program, which would have to be run to see it; "
                    "convert it to PNG"
                )
            return _from_pillow(image, str(path))
    except ImageError:
        raise
    except FileNotFoundError as error:
        raise ImageError(f"there is no file {path}") from error
    except IsADirectoryError as error:
        raise ImageError(f"{path} is a folder, not an image") from error
    except UnidentifiedImageError as error:
        what = "is empty" if path.stat().st_size == 0 else "is no image that Pillow can read"
        raise ImageError(f"{path} {what}") from error
    except Image.DecompressionBombError as error:
        raise ImageError(
            f"{path} is too large ({error}); scale it down, or decode it yourself and pass the "
            "array"
        ) from error
    except Exception as error:  # Pillow's decoders raise whatever their format makes them
        raise ImageError(f"{path} cannot be decoded: {reason_of(error)}") from error


def _from_pillow(image: Image, name: str) -> RGBImage:
    from PIL import ImageOps

    width, height = image.size
    if width * height > MAX_PIXELS:
        raise ImageError(
            f"{name} has {width} x {height} pixels, more than {MAX_PIXELS:,}; scale it down, or "
            "decode it yourself and pass the array"
        )
    if width == 0 or height == 0:
        raise ImageError(f"{name} is empty ({width} x {height} pixels)")
    try:
        image = ImageOps.exif_transpose(image)
        if image.mode.startswith("I;16") or image.mode in ("I", "F"):
            return _from_deep_grey(np.asarray(image), name)
        return np.asarray(image.convert("RGB"))
    except ImageError:
        raise
    except Exception as error:  # see _read_file
        raise ImageError(f"{name} cannot be decoded: {reason_of(error)}") from error


def _from_deep_grey(values: NDArray[Any], name: str) -> RGBImage:
    """Convert 16-bit grey, which Pillow's own conversion would clip at 255."""
    if values.dtype.kind == "f" or values.min() < 0 or values.max() > 65535:
        raise ImageError(f"{name} has pixel values that are neither 8 nor 16 bits deep")
    return _from_array((values.astype(np.uint32) // 257).astype(np.uint8))


def _from_array(array: NDArray[Any]) -> RGBImage:
    if array.dtype != np.uint8:
        raise ImageError(
            f"an image array must be uint8 with values 0 to 255, not {array.dtype}: do not "
            "normalise it yourself, the model file says how"
        )
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or array.shape[2] not in (1, 3, 4) or 0 in array.shape:
        raise ImageError(
            f"an image array must have the shape [H, W], [H, W, 1], [H, W, 3] or [H, W, 4], "
            f"not {list(array.shape)}"
        )
    if array.shape[2] == 1:
        return np.repeat(array, 3, axis=2)
    return array[..., :3]
