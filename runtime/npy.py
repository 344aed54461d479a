"""Read NumPy's ``.npy`` files, which may come from anywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import ImageError, reason_of


def read_npy(path: Path, largest: int) -> NDArray[Any]:
    """Read an array without running anything that the file holds (no pickle).

    Args:
        path: of the file.
        largest: most elements.

    Returns:
        The array as it is stored, of any shape and number type.

    Raises:
        ImageError: missing, truncated, too large, or no array of numbers.
    """
    try:
        # Mapped: a header that promises more than the file holds is refused before any of it is
        # read, and no memory is taken for what is then found too large.
        mapped = np.lib.format.open_memmap(path, mode="r")
    except FileNotFoundError as error:
        raise ImageError(f"there is no file {path}") from error
    except IsADirectoryError as error:
        raise ImageError(f"{path} is a folder, not an image") from error
    except Exception as error:  # a damaged header raises whatever Python's parser does
        if "object" in str(error):
            raise ImageError(
                f"{path} holds Python objects, which are not loaded as they may run code: save an "
                "array of numbers"
            ) from error
        raise ImageError(f"{path} is damaged, or no NumPy array: {reason_of(error)}") from error
    if mapped.dtype.kind not in "uif":
        raise ImageError(f"{path} holds elements of type {mapped.dtype}, not numbers")
    if mapped.size > largest:
        raise ImageError(f"{path} holds {mapped.size:,} numbers, more than {largest:,}")
    return np.array(mapped)
