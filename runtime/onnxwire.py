"""ONNX files on the wire: protobuf's encoding, as far as they use it, and their field numbers."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import BinaryIO

from .errors import ModelFileError

IR_VERSION, GRAPH, OPSETS, METADATA = 1, 7, 8, 14  # field numbers of ModelProto
NODE, INITIALIZER, GRAPH_OUTPUT, SPARSE_INITIALIZER = 1, 5, 12, 15  # of GraphProto
NODE_INPUT, NODE_OUTPUT, NODE_OPERATOR = 1, 2, 4  # of NodeProto
VALUE_NAME = 1  # of ValueInfoProto
TENSOR_NAME, RAW_DATA, EXTERNAL_DATA, DATA_LOCATION = 8, 9, 13, 14  # of TensorProto
KEY, VALUE = 1, 2  # of StringStringEntryProto
WITH_SUBGRAPHS = {b"If", b"Loop", b"Scan", b"SequenceMap"}
LENGTH_DELIMITED = 2
FIXED = {1: 8, 5: 4}  # bytes of numbers that are not packed


def fields(
    file: BinaryIO, begin: int, end: int, broken: ModelFileError
) -> Iterator[tuple[int, int, int, int]]:
    """(number, first byte, start and end of the payload) of each field of a message in a file."""
    position = begin
    while position < end:
        first = position
        file.seek(first)
        head = file.read(20)
        tag, used = _varint(head, 0, broken)
        wire = tag & 7
        if wire == LENGTH_DELIMITED:
            length, used = _varint(head, used, broken)
        elif wire == 0:
            length = _varint(head, used, broken)[1] - used
        elif wire in FIXED:
            length = FIXED[wire]
        else:
            raise broken
        start = first + used
        position = start + length
        if tag >> 3 == 0 or position > end:
            raise broken
        yield tag >> 3, first, start, position


def fields_of(data: bytes, broken: ModelFileError) -> Iterator[tuple[int, int, int, int]]:
    """As ``fields``, of a message in memory."""
    return fields(io.BytesIO(data), 0, len(data), broken)


def _varint(data: bytes, at: int, broken: ModelFileError) -> tuple[int, int]:
    """A number that begins at ``at``, and where it ends."""
    value = 0
    for index, byte in enumerate(data[at : at + 10]):
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            return value, at + index + 1
    raise broken


def message(field: int, payload: bytes) -> bytes:
    """A length-delimited field on the wire."""
    return header(field, len(payload)) + payload


def number(field: int, value: int) -> bytes:
    """A field on the wire that is a number, not negative."""
    return _as_varint(field << 3) + _as_varint(value)


def header(field: int, length: int) -> bytes:
    """What stands on the wire before the payload of a length-delimited field."""
    return _as_varint(field << 3 | LENGTH_DELIMITED) + _as_varint(length)


def _as_varint(value: int) -> bytes:
    data = bytearray()
    while value >= 0x80:
        data.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*data, value])
