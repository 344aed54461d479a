"""Read 8-bit images: files, arrays and Pillow images become RGB arrays, or a clear error."""

from __future__ import annotations

import glob
import io
import os
import re
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from .errors import ImageError, RequestError, reason_of
from .npy import read_npy
from .tiff import is_tiff

if TYPE_CHECKING:
    from PIL.Image import Image

RGBImage = NDArray[np.uint8]
# Anything `read_image` takes: a file, its bytes, an array of uint8, a Pillow image; `read_pixels`
# takes more.
ImageSource = Any
ChannelOrder = Literal["RGB", "BGR"]

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".npy"}
MAX_PIXELS = 178_956_970  # Pillow's own bound against decompression bombs
# The formats whose own rules say that the largest number of 16 bits is white.
_FULL_SCALE = {"PNG", "PPM", "JPEG2000"}
_BYTES = "the image of these bytes"
_Read = TypeVar("_Read")


def list_images(folder: Path) -> list[Path]:
    """List the image files, by their suffixes, in a folder and those below it, sorted.

    Hidden ones are not: what other programs keep there, and what a killed process left behind.
    """
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")
    )


def find_images(source: str | os.PathLike[str]) -> list[Path] | None:
    """List the images of a folder or of a pattern as ``a/*.jpg``; None: it names one image.

    Raises:
        ImageError: there are none, or it is the address of a web page.
    """
    text = os.fspath(source)
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", text):
        raise ImageError(
            f"{text} is an address, and whycam downloads nothing: save the image and pass its "
            "path, or pass its bytes"
        )
    if os.path.isdir(text):  # False, where pathlib raises: names too long
        found, what = list_images(Path(text)), "the folder"
    elif glob.has_magic(text) and not os.path.lexists(text):
        paths = (Path(path) for path in sorted(glob.glob(text, recursive=True)))
        found, what = (
            [path for path in paths if path.suffix.lower() in IMAGE_SUFFIXES],
            "the pattern",
        )
    else:
        return None
    if not found:
        raise ImageError(f"no images in {what} {text}")
    return found


def to_rgb(source: ImageSource, color: ChannelOrder) -> ImageSource:
    """Turn an array in OpenCV's order of channels into RGB.

    Args:
        source: with ``BGR`` an array [..., 3] or [..., 4].
        color: the order of its channels.

    Raises:
        RequestError: another order, or ``BGR`` for what is no such array.
    """
    if color not in ("RGB", "BGR"):
        raise RequestError(f"color must be 'RGB' or 'BGR', not {color!r}")
    if color == "RGB":
        return source
    if not isinstance(source, np.ndarray) or source.ndim < 3 or source.shape[-1] not in (3, 4):
        what = f"an array {list(source.shape)}" if isinstance(source, np.ndarray) else "this image"
        raise RequestError(
            f"color='BGR' is for arrays [h, w, 3] as OpenCV reads them, not for {what}; files, "
            "bytes and Pillow images say their order themselves"
        )
    return np.ascontiguousarray(source[..., [2, 1, 0, 3][: source.shape[-1]]])


def read_image(source: ImageSource, name: str = _BYTES) -> RGBImage:
    """Read an image as RGB.

    Grey becomes three equal channels and alpha is dropped, as torchvision's and timm's loaders
    do; a file's EXIF orientation is applied. Arrays are RGB, not OpenCV's BGR.

    Args:
        source: a path, of a ``.npy`` file as well; the bytes of an image file; a uint8 array
            [H, W], [H, W, C], or [C, H, W] where it can be no other, with 1, 3 or 4 channels; or a
            Pillow image.
        name: what errors call the bytes of a file.

    Returns:
        uint8 [H, W, 3]; an array of that shape is returned as it is, not copied.

    Raises:
        ImageError: unreadable, truncated, too large, empty, or of another type or shape.
    """
    if isinstance(source, str | os.PathLike):
        path = Path(source)
        if path.suffix.lower() == ".npy":
            return _from_array(read_npy(path, 4 * MAX_PIXELS), str(path))
        with without_warnings():
            return open_image(path, lambda image: _from_pillow(image, str(path)))
    if isinstance(source, bytes | bytearray | memoryview):
        with without_warnings():
            return open_image(bytes(source), lambda image: _from_pillow(image, name), name)
    if isinstance(source, np.ndarray):
        return _from_array(source, "an image array")
    from PIL import Image

    if isinstance(source, Image.Image):
        with without_warnings():
            return _from_pillow(source, "the Pillow image")
    raise ImageError(
        f"cannot read an image from {type(source).__name__}: pass a path, the bytes of an image "
        "file, a uint8 array [H, W, 3] in RGB order, or a Pillow image"
    )


_lock = threading.Lock()
_reading = 0
_filters = warnings.catch_warnings()


@contextmanager
def without_warnings() -> Iterator[None]:
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


def open_image(file: Path | bytes, read: Callable[[Image], _Read], name: str = _BYTES) -> _Read:
    """Open a file with Pillow and read it.

    Args:
        file: its path, or what it holds.
        read: from the open image.
        name: what errors call the bytes.

    Raises:
        ImageError: missing, damaged, or not an image that Pillow reads.
    """
    from PIL import Image, UnidentifiedImageError

    path = name if isinstance(file, bytes) else file
    try:
        with Image.open(io.BytesIO(file) if isinstance(file, bytes) else file) as image:
            if image.format == "EPS":
                raise ImageError(
                    f"{path} is a PostScript program, which would have to be run to see it; "
                    "convert it to PNG"
                )
            return read(image)
    except ImageError:
        raise
    except FileNotFoundError as error:
        raise ImageError(f"there is no file {path}") from error
    except IsADirectoryError as error:
        raise ImageError(f"{path} is a folder, not an image") from error
    except UnidentifiedImageError as error:
        if isinstance(file, Path) and is_tiff(file):
            raise ImageError(
                f"{path} is a TIFF file of other bands or another depth than 8-bit RGB or grey, "
                "which is what the network takes"
            ) from error
        size = len(file) if isinstance(file, bytes) else file.stat().st_size
        what = "is empty" if size == 0 else "is no image that Pillow can read"
        raise ImageError(f"{path} {what}") from error
    except Image.DecompressionBombError as error:
        raise ImageError(
            f"{path} is too large ({error}); scale it down, or decode it yourself and pass the "
            "array"
        ) from error
    except Exception as error:  # Pillow's decoders raise whatever their format makes them
        raise ImageError(f"{path} cannot be decoded: {reason_of(error)}") from error


def _from_pillow(image: Image, name: str) -> RGBImage:
    kind = image.format
    image = upright(image, name)
    try:
        if image.mode.startswith("I;16") or image.mode in ("I", "F"):
            return _from_deep_grey(np.asarray(image), kind, name)
        return np.asarray(image.convert("RGB"))
    except ImageError:
        raise
    except Exception as error:  # see open_image
        raise ImageError(f"{name} cannot be decoded: {reason_of(error)}") from error


def upright(image: Image, name: str) -> Image:
    """Check an image's size, and turn it as its EXIF orientation says.

    Raises:
        ImageError: too large, empty, or it cannot be decoded.
    """
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
        return ImageOps.exif_transpose(image)
    except Exception as error:  # see open_image
        raise ImageError(f"{name} cannot be decoded: {reason_of(error)}") from error


def _from_deep_grey(values: NDArray[Any], kind: str | None, name: str) -> RGBImage:
    """Convert 16-bit grey, which Pillow's own conversion would clip at 255."""
    is_deep = values.dtype.kind in "ui" and values.min() >= 0 and values.max() <= 65535
    if kind not in _FULL_SCALE or not is_deep:
        raise ImageError(
            f"{name} has values of more than 8 bits ({values.min():g} to {values.max():g}), whose "
            "scale is not known, and the network takes 8-bit images: convert it, or export the "
            "network with --value-range LOW:HIGH, the values that its training mapped to 0 and 1"
        )
    return _from_array((values.astype(np.uint32) // 257).astype(np.uint8), name)


def _from_array(array: NDArray[Any], name: str) -> RGBImage:
    if array.dtype != np.uint8:
        raise ImageError(
            f"{name} must be uint8 with values 0 to 255, not {array.dtype}: do not normalise it "
            "yourself, the model file says how. For images of more than 8 bits export the network "
            "with --value-range LOW:HIGH"
        )
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim == 3 and array.shape[2] not in (1, 3, 4) and array.shape[0] in (1, 3, 4):
        array = np.moveaxis(array, 0, -1)
    if array.ndim != 3 or array.shape[2] not in (1, 3, 4) or 0 in array.shape:
        raise ImageError(
            f"{name} must have the shape [H, W], [H, W, C] or [C, H, W] with 1, 3 or 4 channels, "
            f"not {list(array.shape)}; the network takes RGB or grey"
        )
    if array.shape[2] == 1:
        return np.repeat(array, 3, axis=2)
    return array[..., :3]


def to_grey(image: RGBImage) -> NDArray[np.uint8]:
    """Convert RGB uint8 [..., 3] to grey [..., 1] by ITU-R 601-2's weights.

    Pillow's ``convert("L")`` to the bit: (19595 R + 38470 G + 7471 B + 32768) >> 16.
    """
    weighted = image.astype(np.uint32) @ np.array([19595, 38470, 7471], np.uint32)
    return ((weighted + 32768) >> 16).astype(np.uint8)[..., None]


def is_coloured(image: RGBImage) -> bool:
    """Tell whether some pixel of an RGB image [h, w, 3] is not grey."""
    return bool((image != image[..., :1]).any())
