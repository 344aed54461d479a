"""Whether every weight of an ONNX file lies in it, as large as its shape says."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Sequence
from typing import BinaryIO

from .errors import ModelFileError
from .onnxwire import (
    DATA_TYPE,
    DIMS,
    EXTERNAL_DATA,
    GRAPH,
    INITIALIZER,
    LENGTH_DELIMITED,
    NODE,
    RAW_DATA,
    WITH_SUBGRAPHS,
    varint,
    walk,
)

# Bytes of a number, by data type.
_WIDTHS = {
    **dict.fromkeys((2, 3, 9, 17, 18, 19, 20, 24), 1.0),
    **dict.fromkeys((4, 5, 10, 16), 2.0),
    **dict.fromkeys((1, 6, 12), 4.0),
    **dict.fromkeys((7, 11, 13, 14), 8.0),
    **dict.fromkeys((21, 22, 23), 0.5),
    15: 16.0,
}
# Which messages lie in which, as far as tensors can lie in them.
_INSIDE = {
    ("model", GRAPH): "graph",
    ("model", 20): "training",
    ("model", 25): "function",
    ("training", 1): "graph",
    ("training", 2): "graph",
    ("function", 7): "node",
    ("function", 11): "attribute",
    ("graph", NODE): "node",
    ("graph", INITIALIZER): "tensor",
    ("graph", 15): "sparse",
    ("node", 5): "attribute",
    ("attribute", 5): "tensor",
    ("attribute", 6): "graph",
    ("attribute", 10): "tensor",
    ("attribute", 11): "graph",
    ("attribute", 22): "sparse",
    ("attribute", 23): "sparse",
    ("sparse", 1): "tensor",
    ("sparse", 2): "tensor",
}
# What stands in every node that holds a tensor, or a file's place for one.
_WITH_TENSORS = (b"Constant", b"location", *WITH_SUBGRAPHS)


def check_weights(
    file: BinaryIO, fields: Sequence[tuple[int, int, int]], name: str, broken: ModelFileError
) -> None:
    """Every weight is in the file, where the digest covers it, and as large as its shape says.

    Engines look for weights in other files wherever a file says they lie, and OpenVINO reads past
    the end of short ones, which ends the process.

    Args:
        file: an ONNX file.
        fields: (number, start, end) of the payload of each of its top-level fields.
        name: of the file.
        broken: to be raised where it is damaged.

    Raises:
        ModelFileError: it is damaged, or keeps weights in other files.
    """
    for field, start, end in fields:
        if field == GRAPH:
            for inner, _, first, last in walk(file, start, end, broken):
                if inner == INITIALIZER:  # large: looked at, not read
                    _check_tensor(walk(file, first, last, broken), file, name, broken)
                elif kind := _INSIDE.get(("graph", inner)):
                    _check_inside(_read(file, first, last), kind, name, broken)
        elif kind := _INSIDE.get(("model", field)):
            _check_inside(_read(file, start, end), kind, name, broken)


def _read(file: BinaryIO, start: int, end: int) -> bytes:
    file.seek(start)
    return file.read(end - start)


def _check_inside(data: bytes, kind: str, name: str, broken: ModelFileError) -> None:
    """Tensors among the operations."""
    if kind == "node" and not any(word in data for word in _WITH_TENSORS):
        return
    file = io.BytesIO(data)
    left = [(0, len(data), kind)]
    while left:
        start, end, kind = left.pop()
        if kind == "tensor":
            _check_tensor(walk(file, start, end, broken), file, name, broken)
            continue
        for field, wire, first, last in walk(file, start, end, broken):
            inner = _INSIDE.get((kind, field))
            if inner is not None and wire == LENGTH_DELIMITED:
                left.append((first, last, inner))


def _check_tensor(
    fields: Iterator[tuple[int, int, int, int]], file: BinaryIO, name: str, broken: ModelFileError
) -> None:
    count, width, raw = 1, 0.0, None
    for field, wire, start, end in fields:
        if field == EXTERNAL_DATA:
            raise ModelFileError(
                f"{name} keeps weights in other files, which whycam never does: the file is not as "
                "whycam wrote it. Export it again"
            )
        if field == RAW_DATA:
            raw = end - start
        elif field == DIMS and wire == 0:
            count *= varint(_read(file, start, end), 0, broken)[0]
        elif field == DIMS:
            packed, at = _read(file, start, end), 0
            while at < len(packed):
                side, at = varint(packed, at, broken)
                count *= side
        elif field == DATA_TYPE:
            width = _WIDTHS.get(varint(_read(file, start, end), 0, broken)[0], 0.0)
    if raw is not None and raw != math.ceil(count * width):
        raise broken
