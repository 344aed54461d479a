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
        path: ``thresholds.json`` of ``whycam calibrate thresholds``, or an ONNX file that this
            command stored priors in.

    Raises:
        DataError: it cannot be read, or holds none.
        ModelFileError: an ONNX file that was not made by whycam.
    """
    file = Path(path)
    is_model = file.suffix.lower() == ".onnx"
    priors = read_manifest(file).priors if is_model else _read_report(file)
    if not priors:
        raise DataError(f"{file} holds no priors: run whycam calibrate thresholds")
    return priors


def _read_report(file: Path) -> tuple[Prior, ...]:
    try:
        return msgspec.json.decode(file.read_bytes(), type=_Report).priors
    except OSError as error:
        raise DataError(f"cannot read {file}: {error.strerror or error}") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise DataError(
            f"{file} is no thresholds.json of whycam calibrate thresholds: {error}"
        ) from error
