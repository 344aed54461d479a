"""Metadata and digest of an ONNX file, read without any ONNX library.

An ONNX file is one protobuf message; its weights are skipped over, not loaded. That makes a
truncated or foreign file a clear error before an engine sees it, and gives every engine the
manifest.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from .errors import ModelFileError
from .manifest import METADATA_KEY, Manifest, parse

_GRAPH, _OPSETS, _METADATA = 7, 8, 14  # field numbers of ModelProto
_LENGTH_DELIMITED = 2
_BLOCK = 1 << 20


def read_manifest(path: str | os.PathLike[str]) -> Manifest:
    """The manifest of an explaining graph.

    Raises:
        ModelFileError: the file is missing, no ONNX, truncated, or not made by whycam.
    """
    name = os.fspath(path)
    with _open(name) as file:
        for field, start, end in _fields(file, name):
            if field == _METADATA:
                file.seek(start)
                key, value = _entry(file.read(end - start), name)
                if key == METADATA_KEY:
                    return parse(value, name)
    raise ModelFileError(
        f"{name} is an ONNX file without a whycam manifest: it classifies but cannot explain. "
        "Make one from the PyTorch model with: whycam export MODEL -o FILE.onnx"
    )


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
            left = end - start
            while left > 0:
                block = file.read(min(left, _BLOCK))
                hasher.update(block)
                left -= len(block)
    return f"sha256:{hasher.hexdigest()}"


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
    broken = ModelFileError(
        f"{name} is not a readable ONNX file ({size} bytes): it is damaged, truncated or of "
        "another format. Export it again"
    )
    if size == 0:
        raise broken
    seen = set()
    position = 0
    while position < size:
        file.seek(position)
        head = file.read(20)
        tag, used = _varint(head, 0, broken)
        field, wire = tag >> 3, tag & 7
        if wire == _LENGTH_DELIMITED:
            length, used = _varint(head, used, broken)
            start = position + used
        elif wire == 0:
            start = position + used
            length = _varint(head, used, broken)[1] - used
        else:
            raise broken  # ModelProto has no other wire types
        if field == 0 or start + length > size:
            raise broken
        seen.add(field)
        yield field, start, start + length
        position = start + length
    if _GRAPH not in seen or _OPSETS not in seen:
        raise broken


def _varint(data: bytes, at: int, broken: ModelFileError) -> tuple[int, int]:
    value = 0
    for index, byte in enumerate(data[at : at + 10]):
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            return value, at + index + 1
    raise broken


def _entry(data: bytes, name: str) -> tuple[str, bytes]:
    """Key and value of one StringStringEntryProto."""
    broken = ModelFileError(f"{name}: its metadata is damaged. Export it again")
    parts = {1: b"", 2: b""}
    at = 0
    while at < len(data):
        tag, at = _varint(data, at, broken)
        length, at = _varint(data, at, broken)
        if tag & 7 != _LENGTH_DELIMITED or at + length > len(data):
            raise broken
        parts[tag >> 3] = data[at : at + length]
        at += length
    return parts[1].decode(errors="replace"), parts[2]
