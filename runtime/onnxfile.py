"""Metadata and digest of an ONNX file, read and replaced without any ONNX library.

An ONNX file is one protobuf message; its weights are skipped over, not loaded. That makes a
truncated or foreign file a clear error before an engine sees it, and gives every engine the
manifest.
"""

from __future__ import annotations

import hashlib
import io
import math
import os
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import BinaryIO

from .engines.plan import is_plan, read_plan
from .errors import ModelFileError
from .files import replacing
from .manifest import METADATA_KEY, Manifest, parse

__all__ = ["digest", "read_manifest", "with_manifest"]

_IR_VERSION, _GRAPH, _OPSETS, _METADATA = 1, 7, 8, 14  # field numbers of ModelProto
_NODE, _INITIALIZER, _GRAPH_OUTPUT = 1, 5, 12  # of GraphProto
_NODE_INPUT, _NODE_OUTPUT, _NODE_OPERATOR = 1, 2, 4  # of NodeProto
_VALUE_NAME = 1  # of ValueInfoProto
_DIMS, _DATA_TYPE, _RAW_DATA, _EXTERNAL_DATA = 1, 2, 9, 13  # of TensorProto
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
    ("model", _GRAPH): "graph",
    ("model", 20): "training",
    ("model", 25): "function",
    ("training", 1): "graph",
    ("training", 2): "graph",
    ("function", 7): "node",
    ("function", 11): "attribute",
    ("graph", _NODE): "node",
    ("graph", _INITIALIZER): "tensor",
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
_WITH_SUBGRAPHS = {b"If", b"Loop", b"Scan", b"SequenceMap"}
# What stands in every node that holds a tensor, or a file's place for one.
_WITH_TENSORS = (b"Constant", b"location", *_WITH_SUBGRAPHS)
_LENGTH_DELIMITED = 2
_FIXED = {1: 8, 5: 4}  # bytes of numbers that are not packed
_BLOCK = 1 << 20


def read_manifest(path: str | os.PathLike[str]) -> Manifest:
    """The manifest of an explaining graph; of a TensorRT plan, what its sidecar holds.

    Raises:
        ModelFileError: the file is missing, no ONNX, truncated, not made by whycam, or wants
            weights from other files.
    """
    name = os.fspath(path)
    if is_plan(name):
        return read_plan(name).manifest
    with _open(name) as file:
        fields = list(_fields(file, name))
        for field, start, end in fields:
            if field == _METADATA:
                file.seek(start)
                key, value = _entry(file.read(end - start), name)
                if key == METADATA_KEY:
                    manifest = parse(value, name)
                    _check_weights(file, fields, name)
                    return manifest
    raise ModelFileError(
        f"{name} is an ONNX file without a whycam manifest: it classifies but cannot explain. "
        "Make one from the PyTorch model with: whycam export MODEL -o FILE.onnx"
    )


def _check_weights(file: BinaryIO, fields: list[tuple[int, int, int]], name: str) -> None:
    """Every weight is in the file, where the digest covers it, and as large as its shape says.

    Engines look for weights in other files wherever a file says they lie, and OpenVINO reads past
    the end of short ones, which ends the process.
    """
    broken = _broken(name, fields[-1][2])
    for field, start, end in fields:
        if field == _GRAPH:
            for inner, _, first, last in _walk(file, start, end, broken):
                if inner == _INITIALIZER:  # large: looked at, not read
                    _check_tensor(_walk(file, first, last, broken), file, name, broken)
                elif kind := _INSIDE.get(("graph", inner)):
                    _check_inside(_read(file, first, last), kind, name, broken)
        elif kind := _INSIDE.get(("model", field)):
            _check_inside(_read(file, start, end), kind, name, broken)


def _read(file: BinaryIO, start: int, end: int) -> bytes:
    file.seek(start)
    return file.read(end - start)


def _check_inside(message: bytes, kind: str, name: str, broken: ModelFileError) -> None:
    """Tensors among the operations."""
    if kind == "node" and not any(word in message for word in _WITH_TENSORS):
        return
    file = io.BytesIO(message)
    left = [(0, len(message), kind)]
    while left:
        start, end, kind = left.pop()
        if kind == "tensor":
            _check_tensor(_walk(file, start, end, broken), file, name, broken)
            continue
        for field, wire, first, last in _walk(file, start, end, broken):
            inner = _INSIDE.get((kind, field))
            if inner is not None and wire == _LENGTH_DELIMITED:
                left.append((first, last, inner))


def _check_tensor(
    fields: Iterator[tuple[int, int, int, int]], file: BinaryIO, name: str, broken: ModelFileError
) -> None:
    count, width, raw = 1, 0.0, None
    for field, wire, start, end in fields:
        if field == _EXTERNAL_DATA:
            raise ModelFileError(
                f"{name} keeps weights in other files, which whycam never does: the file is not as "
                "whycam wrote it. Export it again"
            )
        if field == _RAW_DATA:
            raw = end - start
        elif field == _DIMS and wire == 0:
            count *= _varint(_read(file, start, end), 0, broken)[0]
        elif field == _DIMS:
            packed, at = _read(file, start, end), 0
            while at < len(packed):
                side, at = _varint(packed, at, broken)
                count *= side
        elif field == _DATA_TYPE:
            width = _WIDTHS.get(_varint(_read(file, start, end), 0, broken)[0], 0.0)
    if raw is not None and raw != math.ceil(count * width):
        raise broken


def digest(path: str | os.PathLike[str]) -> str:
    """``sha256:...`` over everything in an ONNX file but its metadata."""
    name = os.fspath(path)
    hasher = hashlib.sha256()
    with _open(name) as file:
        for field, start, end in list(_fields(file, name)):
            if field == _METADATA:
                continue
            hasher.update(bytes([field]))
            file.seek(start)
            for block in _blocks(file, end - start):
                hasher.update(block)
    return f"sha256:{hasher.hexdigest()}"


def check_digest(path: str | os.PathLike[str], manifest: Manifest) -> None:
    """See that an ONNX file is, bit for bit, what whycam wrote.

    One flipped bit changes answers without a sign, or ends the process in the middle of an engine.

    Raises:
        ModelFileError: it is not.
    """
    if manifest.digest and digest(path) != manifest.digest:
        raise ModelFileError(
            f"{os.fspath(path)} is not as whycam wrote it: its digest differs. It was damaged, or "
            "changed by another tool: export it again"
        )


def with_manifest(
    source: str | os.PathLike[str], target: str | os.PathLike[str], manifest: Manifest
) -> Path:
    """Write a copy of an ONNX file with another manifest; ``target`` may be ``source``.

    Graph, digest and other people's metadata stay as they are. The copy takes its place whole or
    not at all, and is never in memory as a whole.

    Args:
        source: the ONNX file.
        target: where the copy goes.
        manifest: what it shall say of itself.

    Returns:
        Where the copy is.

    Raises:
        ModelFileError: the source is missing, no ONNX, or truncated.
        OutputError: the place cannot be written.
    """
    name = os.fspath(source)
    place = Path(target)
    with _open(name) as file, replacing(place) as temporary:
        fields = list(_fields(file, name))
        with temporary.open("wb") as copy:
            first = 0
            for field, start, end in fields:
                if not (field == _METADATA and _is_manifest(file, start, end, name)):
                    file.seek(first)
                    copy.writelines(_blocks(file, end - first))
                first = end
        append_manifest(temporary, manifest)
    return place


def _is_manifest(file: BinaryIO, start: int, end: int, name: str) -> bool:
    file.seek(start)
    return _entry(file.read(end - start), name)[0] == METADATA_KEY


def _blocks(file: BinaryIO, size: int) -> Iterator[bytes]:
    while size > 0 and (block := file.read(min(size, _BLOCK))):
        size -= len(block)
        yield block


def without_outputs(path: str | os.PathLike[str], names: Collection[str]) -> bytes:
    """An ONNX file without some of its outputs and the operations that only those needed.

    Engines such as ONNX Runtime execute every operation of a file, wanted or not. Metadata is
    left out.

    Raises:
        ModelFileError: the file is missing, no ONNX, or truncated.
    """
    name = os.fspath(path)
    parts = []
    with _open(name) as file:
        for field, start, end in list(_fields(file, name)):
            file.seek(start)
            payload = file.read(end - start)
            if field == _GRAPH:
                parts.append(_message(field, _pruned(payload, names, name)))
            elif field == _OPSETS:
                parts.append(_message(field, payload))
            elif field == _IR_VERSION:
                parts.append(bytes([_IR_VERSION << 3]) + payload)
    return b"".join(parts)


def _pruned(graph: bytes, names: Collection[str], file_name: str) -> bytes:
    broken = _broken(file_name, len(graph))
    view = memoryview(graph)
    fields = list(_messages(view, broken))
    declared = {
        first: _texts(view[start:end], _VALUE_NAME, broken)[0]
        for field, first, start, end in fields
        if field == _GRAPH_OUTPUT
    }
    dropped = {first for first, value in declared.items() if value.decode() in names}
    needed = {value for first, value in declared.items() if first not in dropped}
    # Operations stand in an order in which they can run: the last one first.
    for field, first, start, end in reversed(fields):
        if field != _NODE:
            continue
        node = view[start:end]
        if not set(_texts(node, _NODE_OPERATOR, broken)).isdisjoint(_WITH_SUBGRAPHS):
            # What a subgraph reads from outside is not written here: keep everything.
            dropped = {f for f in dropped if f in declared}
            break
        if needed.isdisjoint(_texts(node, _NODE_OUTPUT, broken)):
            dropped.add(first)
        else:
            needed.update(_texts(node, _NODE_INPUT, broken))
    return b"".join(view[first:end] for _, first, _, end in fields if first not in dropped)


def _texts(message: memoryview, field: int, broken: ModelFileError) -> list[bytes]:
    """The values of a repeated string; an absent one is one empty string."""
    found = [bytes(message[a:b]) for f, _, a, b in _messages(message, broken) if f == field]
    return found or [b""]


def _broken(name: str, size: int) -> ModelFileError:
    return ModelFileError(
        f"{name} is not a readable ONNX file ({size} bytes): it is damaged, truncated or of "
        "another format. Export it again"
    )


def _open(name: str) -> BinaryIO:
    try:
        return Path(name).open("rb")
    except IsADirectoryError as error:
        raise ModelFileError(f"{name} is a folder, not an ONNX file") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL character in the name
        why = getattr(error, "strerror", None) or error
        raise ModelFileError(f"cannot read model file {name!r}: {why}") from error


def _fields(file: BinaryIO, name: str) -> Iterator[tuple[int, int, int]]:
    """(number, start, end) of the payload of each top-level field."""
    size = os.fstat(file.fileno()).st_size
    broken = _broken(name, size)
    if size == 0:
        raise broken
    seen = set()
    for field, wire, start, end in _walk(file, 0, size, broken):
        if wire in _FIXED:
            raise broken  # ModelProto has none
        seen.add(field)
        yield field, start, end
    if _GRAPH not in seen or _OPSETS not in seen:
        raise broken


def _walk(
    file: BinaryIO, begin: int, end: int, broken: ModelFileError
) -> Iterator[tuple[int, int, int, int]]:
    """(number, wire type, start and end of the payload) of each field of a message in a file."""
    position = begin
    while position < end:
        file.seek(position)
        head = file.read(20)
        tag, used = _varint(head, 0, broken)
        field, wire = tag >> 3, tag & 7
        if wire == _LENGTH_DELIMITED:
            length, used = _varint(head, used, broken)
        elif wire == 0:
            length = _varint(head, used, broken)[1] - used
        elif wire in _FIXED:
            length = _FIXED[wire]
        else:
            raise broken
        start = position + used
        position = start + length
        if field == 0 or position > end:
            raise broken
        yield field, wire, start, position


def _varint(data: bytes | memoryview, at: int, broken: ModelFileError) -> tuple[int, int]:
    value = 0
    for index, byte in enumerate(data[at : at + 10]):
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            return value, at + index + 1
    raise broken


def _messages(
    data: bytes | memoryview, broken: ModelFileError
) -> Iterator[tuple[int, int, int, int]]:
    """(number, first byte, start of payload, end) of each field of a message in memory."""
    at = 0
    while at < len(data):
        first = at
        tag, at = _varint(data, at, broken)
        if tag & 7 == _LENGTH_DELIMITED:
            length, at = _varint(data, at, broken)
        elif tag & 7 == 0:
            length = _varint(data, at, broken)[1] - at
        elif tag & 7 in _FIXED:
            length = _FIXED[tag & 7]
        else:
            raise broken
        if at + length > len(data):
            raise broken
        yield tag >> 3, first, at, at + length
        at += length


def append_manifest(path: str | os.PathLike[str], manifest: Manifest) -> None:
    """Add a manifest to an ONNX file that has none: protobuf messages merge when concatenated."""
    entry = _message(1, METADATA_KEY.encode()) + _message(2, manifest.to_json().encode())
    with Path(path).open("ab") as file:
        file.write(_message(_METADATA, entry))


def _entry(data: bytes, name: str) -> tuple[str, bytes]:
    """Key and value of one StringStringEntryProto."""
    broken = ModelFileError(f"{name}: its metadata is damaged. Export it again")
    parts = {1: b"", 2: b""}
    for field, _, start, end in _messages(data, broken):
        parts[field] = data[start:end]
    return parts[1].decode(errors="replace"), parts[2]


def _message(field: int, payload: bytes) -> bytes:
    """A length-delimited field on the wire."""
    return _as_varint(field << 3 | _LENGTH_DELIMITED) + _as_varint(len(payload)) + payload


def _as_varint(value: int) -> bytes:
    data = bytearray()
    while value >= 0x80:
        data.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*data, value])
