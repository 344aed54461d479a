"""Read TIFF files of any number of bands and any depth. Needs tifffile."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import ImageError, MissingExtraError, reason_of

_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_WHITE_IS_ZERO, _PALETTE = 0, 3


def is_tiff(path: Path) -> bool:
    """Tell whether a file begins as TIFF and BigTIFF files do; False where it cannot be read."""
    try:
        with open(path, "rb") as file:
            return file.read(4) in _MAGIC
    except (OSError, ValueError):
        return False


def read_tiff(path: Path, largest: int) -> NDArray[Any]:
    """Read the first image of a TIFF file in full depth, with all its bands.

    Bands may be stored pixel by pixel, plane by plane or page by page. Overviews of smaller size
    are left out; the sizes and axes are what the file's tags say.

    Args:
        path: of the file.
        largest: most pixels, counting those of one band.

    Returns:
        [h, w, bands] in the file's own element type.

    Raises:
        ImageError: damaged, truncated, too large, compressed in an unknown way, or not an image
            of bands.
        MissingExtraError: tifffile is not installed.
    """
    try:
        import tifffile
    except ImportError as error:
        raise MissingExtraError("tifffile", "tiff", f"reading {path}") from error
    logger = logging.getLogger("tifffile")  # it logs what is then raised, or of no interest here
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with tifffile.TiffFile(path) as file:
            series = file.series[0]
            _check(path, file.pages.first, series.axes, series.shape, largest)
            values = np.asarray(series.asarray())
    except ImageError:
        raise
    except Exception as error:  # damaged files raise whatever their damage makes of them
        if "imagecodecs" in str(error):
            raise MissingExtraError("imagecodecs", "tiff", f"reading {path}") from error
        raise ImageError(f"{path} cannot be decoded: {reason_of(error)}") from error
    finally:
        logger.setLevel(level)
    if values.shape != series.shape:
        raise ImageError(f"{path} is damaged: it holds {values.shape}, not {series.shape}")
    return _bands_last(values, series.axes)


def _check(path: Path, page: Any, axes: str, shape: tuple[int, ...], largest: int) -> None:
    sides = dict(zip(axes, shape, strict=True))
    more = [axis for axis, side in sides.items() if axis not in "YX" and side > 1]
    if not {"Y", "X"}.issubset(sides) or len(more) > 1 or len(sides) != len(axes):
        raise ImageError(
            f"{path} has the axes {axes} of {' x '.join(map(str, shape))}, not those of one image "
            "with bands"
        )
    if sides["Y"] * sides["X"] > largest or np.prod(shape, dtype=float) > 16 * largest:
        raise ImageError(f"{path} has {' x '.join(map(str, shape))} values, which are too many")
    if page.photometric in (_WHITE_IS_ZERO, _PALETTE):
        what = "0 as white" if page.photometric == _WHITE_IS_ZERO else "indices into a palette"
        raise ImageError(f"{path} stores {what}: convert it to values that rise with brightness")
    end = page.parent.filehandle.size
    for start, length in zip(page.dataoffsets, page.databytecounts, strict=False):
        if start + length > end:
            raise ImageError(f"{path} is truncated: its pixels end at {start + length}, not {end}")


def _bands_last(values: NDArray[Any], axes: str) -> NDArray[Any]:
    for place in reversed(range(len(axes))):
        if axes[place] not in "YX" and values.shape[place] == 1:
            values, axes = values.squeeze(place), axes[:place] + axes[place + 1 :]
    order = [axes.index("Y"), axes.index("X"), *(i for i, a in enumerate(axes) if a not in "YX")]
    values = values.transpose(order)
    return values[..., None] if values.ndim == 2 else values
