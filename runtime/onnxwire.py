"""ONNX files on the wire: protobuf's encoding, as far as they use it, and their field numbers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO

from .errors import ModelFileError

IR_VERSION, GRAPH, OPSETS, METADATA = 1, 7, 8, 14  # field numbers of ModelProto
NODE, INITIALIZER, GRAPH_OUTPUT = 1, 5, 12  # of GraphProto
NODE_INPUT, NODE_OUTPUT, NODE_OPERATOR = 1, 2, 4  # of NodeProto
VALUE_NAME = 1  # of ValueInfoProto
DIMS, DATA_TYPE, RAW_DATA, EXTERNAL_DATA = 1, 2, 9, 13  # of TensorProto
WITH_SUBGRAPHS = {b"If", b"Loop", b"Scan", b"SequenceMap"}
LENGTH_DELIMITED = 2
FIXED = {1: 8, 5: 4}  # bytes of numbers that are not packed


def walk(
    file: BinaryIO, begin: int, end: int, broken: ModelFileError
) -> Iterator[tuple[int, int, int, int]]:
    """(number, wire type, start and end of the payload) of each field of a message in a file."""
    position = begin
    while position < end:
        file.seek(position)
        head = file.read(20)
        tag, used = varint(head, 0, broken)
        field, wire = tag >> 3, tag & 7
        if wire == LENGTH_DELIMITED:
            length, used = varint(head, used, broken)
        elif wire == 0:
            length = varint(head, used, broken)[1] - used
        elif wire in FIXED:
            length = FIXED[wire]
        else:
            raise broken
        start = position + used
        position = start + length
        if field == 0 or position > end:
            raise broken
        yield field, wire, start, position


def varint(data: bytes | memoryview, at: int, broken: ModelFileError) -> tuple[int, int]:
    """A number that begins at ``at``, and where it ends."""
    value = 0
    for index, byte in enumerate(data[at : at + 10]):
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            return value, at + index + 1
    raise broken


def messages(
    data: bytes | memoryview, broken: ModelFileError
) -> Iterator[tuple[int, int, int, int]]:
    """(number, first byte, start of payload, end) of each field of a message in memory."""
    at = 0
    while at < len(data):
        first = at
        tag, at = varint(data, at, broken)
        if tag & 7 == LENGTH_DELIMITED:
            length, at = varint(data, at, broken)
        elif tag & 7 == 0:
            length = varint(data, at, broken)[1] - at
        elif tag & 7 in FIXED:
            length = FIXED[tag & 7]
        else:
            raise broken
        if at + length > len(data):
            raise broken
        yield tag >> 3, first, at, at + length
        at += length


def message(field: int, payload: bytes) -> bytes:
    """A length-delimited field on the wire."""
    return _as_varint(field << 3 | LENGTH_DELIMITED) + _as_varint(len(payload)) + payload


def _as_varint(value: int) -> bytes:
    data = bytearray()
    while value >= 0x80:
        data.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*data, value])
