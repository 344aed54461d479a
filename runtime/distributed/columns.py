"""The columns that explanations have in data pipelines, see ``explain.Explain``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..explanation import Explanation

Columns = dict[str, NDArray[Any]]

TOP = 5

# The columns of a result: type, shape of one row, and what a row without an explanation holds.
_COLUMNS: dict[str, tuple[Any, tuple[int, ...], Any]] = {
    "path": (object, (), ""),
    "error": (object, (), ""),
    "height": (np.int32, (), 0),
    "width": (np.int32, (), 0),
    "method": (object, (), ""),
    "index": (np.int32, (), -1),
    "label": (object, (), ""),
    "probability": (np.float32, (), np.nan),
    "top_index": (np.int32, (TOP,), -1),
    "top_probability": (np.float32, (TOP,), np.nan),
    "threshold": (np.float32, (), np.nan),
    "rpi": (np.float32, (), np.nan),
    "masked_probability": (np.float32, (), np.nan),
    "box": (np.int32, (4,), 0),
    "share": (np.float32, (), 0.0),
    "map_box": (np.float32, (4,), np.nan),
}


def to_row(name: str, explanation: Explanation, size: int) -> dict[str, Any]:
    """Collect what the columns hold of an explanation.

    Args:
        name: of the image.
        explanation: of it.
        size: side of the stored map; 0: none is stored.
    """
    region, place = explanation.region, explanation.placement
    top = explanation.top[:TOP]
    missing = TOP - len(top)
    row = {
        "path": name,
        "height": place.image[0],
        "width": place.image[1],
        "method": explanation.method,
        "index": explanation.index,
        "label": explanation.label,
        "probability": explanation.probability,
        "top_index": [one.index for one in top] + [-1] * missing,
        "top_probability": [one.probability for one in top] + [np.nan] * missing,
        "box": region.box or (0, 0, 0, 0),
        "share": region.share,
        "map_box": (place.left, place.top, place.right, place.bottom),
    }
    if explanation.threshold is not None:
        row["threshold"] = explanation.threshold
    if explanation.rpi is not None:
        row["rpi"] = np.nanmax(explanation.rpi)
    if explanation.masked_probability is not None:
        row["masked_probability"] = explanation.masked_probability
    if size:
        row["map"] = _shrink(explanation.map, size)
    return row


def _shrink(values: NDArray[np.float32], size: int) -> NDArray[np.uint8]:
    """Return a map's mean in each of size x size cells, 255 for 1."""
    import cv2

    small = cv2.resize(values, (size, size), interpolation=cv2.INTER_AREA)
    return np.asarray(np.rint(small * 255), np.uint8)


def to_columns(rows: Sequence[Mapping[str, Any]], map_size: int) -> Columns:
    """Gather rows in columns, as ``Explain`` describes them; what a row has not is filled in."""
    kinds = dict(_COLUMNS)
    if map_size:
        kinds["map"] = (np.uint8, (map_size, map_size), 0)
    columns = {}
    for name, (dtype, shape, default) in kinds.items():
        column = np.full((len(rows), *shape), default, dtype)
        for place, row in enumerate(rows):
            if name in row:
                column[place] = row[name]
        columns[name] = column
    return columns


def to_series(name: str, values: NDArray[Any]) -> Any:
    """Return a column as data frames hold it: one value, list or bytes a row."""
    if values.ndim == 1:
        return values
    return [row.tobytes() if name == "map" else row.tolist() for row in values]


def to_schema(map_size: int) -> str:
    """Return the columns of data frames as Spark's ``mapInPandas`` takes them."""
    names = {object: "string", np.int32: "int", np.float32: "float"}
    columns = [
        f"{name} {f'array<{names[dtype]}>' if shape else names[dtype]}"
        for name, (dtype, shape, _) in _COLUMNS.items()
    ]
    return ", ".join([*columns, *(["map binary"] if map_size else [])])
