"""Read a CSV file of images with their labels, one or several an image."""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..runtime.errors import DataError
from ..runtime.images import IMAGE_SUFFIXES

_SEPARATORS = ";|"
_PRESENCE = {"0": False, "0.0": False, "1": True, "1.0": True}
_FORMATS = (
    "a CSV file has either two columns, image and label (several separated by ; or |, or a row for "
    "each), or a header and a column for each label, 1 where the image has it and 0 where not"
)


@dataclass(frozen=True)
class CsvLabels:
    """Labels of the images of a CSV file.

    Attributes:
        images: the labels of each image, by its path as written; None where the file states none;
            empty where it states that the image has none.
        columns: the label of each column of 0 and 1; empty where one column holds the labels.
    """

    images: dict[str, tuple[str, ...] | None] = field(default_factory=dict)
    columns: tuple[str, ...] = ()


def read_csv_labels(file: Path) -> CsvLabels:
    """Read the images of a CSV file and their labels, see ``open_dataset``.

    Raises:
        DataError: it cannot be read, or what it states is not clear.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
        rows = [row for row in csv.reader(text.splitlines()) if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"cannot read {file}: {error}") from error
    header: list[str] = []
    if rows and not _is_image(rows[0][0]):
        header, rows = rows[0], rows[1:]
    for number, row in enumerate(rows, 1):
        if not _is_image(row[0]):
            raise DataError(f"{file}, image {number}: '{row[0]}' is not an image file")
    width = max((_count_cells(row) for row in (header, *rows)), default=0)
    if width > 2:
        return _read_columns(file, header, rows, width)
    return _read_lists(file, rows)


def _is_image(name: str) -> bool:
    return Path(name).suffix.lower() in IMAGE_SUFFIXES


def _count_cells(row: Sequence[str]) -> int:
    """Count the cells up to the last one that is not blank."""
    return max((number for number, cell in enumerate(row, 1) if cell.strip()), default=0)


def _read_lists(file: Path, rows: Sequence[Sequence[str]]) -> CsvLabels:
    """Read rows of an image and its labels; several rows of one image add up."""
    cells = [row[1] if len(row) > 1 else "" for row in rows]
    if all(any(separator in cell for cell in cells) for separator in _SEPARATORS):
        raise DataError(f"{file} separates labels by both ; and |: use one of them")
    result = CsvLabels()
    for row, cell in zip(rows, cells, strict=True):
        parts = [part.strip() for part in re.split(f"[{_SEPARATORS}]", cell)]
        before = result.images.get(row[0]) or ()
        labels = tuple(dict.fromkeys([*before, *filter(None, parts)]))
        result.images[row[0]] = labels or None
    return result


def _read_columns(
    file: Path, header: Sequence[str], rows: Sequence[Sequence[str]], width: int
) -> CsvLabels:
    """Read rows of an image and 0 or 1 for each label that the header names."""
    if not header:
        raise DataError(f"{file} has {width} columns and no header: {_FORMATS}")
    names = tuple(name.strip() for name in header[1:width])
    if len(names) != width - 1 or not all(names) or len(set(names)) != len(names):
        raise DataError(
            f"{file} has {width} columns, whose labels in the header must be given, each once: "
            f"{_FORMATS}"
        )
    result = CsvLabels(columns=names)
    for number, row in enumerate(rows, 1):
        cells = [*row[1:width], *[""] * (width - len(row))]
        present = []
        for name, cell in zip(names, cells, strict=True):
            if cell.strip() not in _PRESENCE:
                raise DataError(
                    f"{file}, image {number}: column '{name}' holds '{cell}' instead of 0 or 1; "
                    f"{_FORMATS}. Leave out images whose labels are not known"
                )
            if _PRESENCE[cell.strip()]:
                present.append(name)
        labels = tuple(present)
        if result.images.setdefault(row[0], labels) != labels:
            raise DataError(f"{file} has two rows of '{row[0]}' with different labels: keep one")
    return result
