"""Read threshold priors from a calibration report or a model file."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from .errors import DataError
from .onnxfile import read_manifest
from .search import Prior


class _Report(msgspec.Struct):
    priors: tuple[Prior, ...]


def read_priors(path: str | os.PathLike[str]) -> tuple[Prior, ...]:
    """Read the priors that a file holds.

    Args:
        path: ``thresholds.json`` written by ``whycam calibrate thresholds``, or an ONNX file in
            which that stored them.

    Raises:
        DataError: it cannot be read, or holds none.
        ModelFileError: an ONNX file that was not made by whycam.
    """
    place = Path(path)
    is_model = place.suffix.lower() == ".onnx"
    found = read_manifest(place).priors if is_model else _read_report(place)
    if not found:
        raise DataError(f"nothing was learnt in {place}: run whycam calibrate thresholds")
    return found


def _read_report(place: Path) -> tuple[Prior, ...]:
    try:
        return msgspec.json.decode(place.read_bytes(), type=_Report).priors
    except OSError as error:
        raise DataError(f"cannot read {place}: {error.strerror or error}") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise DataError(
            f"{place} is no thresholds.json of whycam calibrate thresholds: {error}"
        ) from error
