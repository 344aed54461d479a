"""Metadata and digest of an ONNX file, read and replaced without any ONNX library.

A machine that only explains has no package onnx. An ONNX file is one protobuf message, of which
this needs its outermost fields: the manifest among its metadata, and the digest of all else.
Weights are skipped over: that they are all there and whole is for the digest, and for the engine,
to say.
"""

from __future__ import annotations

import hashlib
import os
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from .engines.plan import is_plan, read_plan
from .errors import ModelFileError
from .files import replacing
from .manifest import METADATA_KEY, Manifest, parse
from .onnxwire import GRAPH, METADATA, OPSETS, fields, fields_of, message

__all__ = ["digest", "read_manifest", "with_manifest"]

_BLOCK = 1 << 20


def read_manifest(path: str | os.PathLike[str]) -> Manifest:
    """Read the manifest of an explaining graph, or of a TensorRT plan from its sidecar.

    Raises:
        ModelFileError: the file is missing, no ONNX, truncated, or not made by whycam.
    """
    name = os.fspath(path)
    if is_plan(name):
        return read_plan(name).manifest
    with open_file(name) as file:
        for field, start, end in list(top_fields(file, name)):
            if field == METADATA:
                file.seek(start)
                key, value = _entry(file.read(end - start), name)
                if key == METADATA_KEY:
                    return parse(value, name)
    raise ModelFileError(
        f"{name} is an ONNX file without a whycam manifest: it classifies but cannot explain. Make "
        f"one that does with: {_export_command(name)} (--preprocess must be what the network was "
        "trained with; the choices: whycam export --help)"
    )


def _export_command(name: str) -> str:
    """Write a complete command that makes an explaining file beside an ONNX file."""
    target = f"{name.removesuffix('.onnx')}.explained.onnx"
    return f"whycam export {shlex.quote(name)} -o {shlex.quote(target)} --preprocess imagenet"


def digest(path: str | os.PathLike[str]) -> str:
    """Compute ``sha256:...`` over everything in an ONNX file but its metadata."""
    name = os.fspath(path)
    hasher = hashlib.sha256()
    with open_file(name) as file:
        for field, start, end in list(top_fields(file, name)):
            if field == METADATA:
                continue
            hasher.update(bytes([field]))
            file.seek(start)
            for block in _blocks(file, end - start):
                hasher.update(block)
    return f"sha256:{hasher.hexdigest()}"


def check_digest(path: str | os.PathLike[str], manifest: Manifest) -> None:
    """Check that an ONNX file is, bit for bit, what whycam wrote.

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
    with open_file(name) as file, replacing(place) as temporary:
        parts = list(top_fields(file, name))
        with temporary.open("wb") as copy:
            first = 0
            for field, start, end in parts:
                if not (field == METADATA and _is_manifest(file, start, end, name)):
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


def damaged(name: str, size: int) -> ModelFileError:
    return ModelFileError(
        f"{name} is not a readable ONNX file ({size} bytes): it is damaged, truncated or of "
        "another format. Export it again"
    )


def open_file(name: str) -> BinaryIO:
    try:
        return Path(name).open("rb")
    except IsADirectoryError as error:
        raise ModelFileError(f"{name} is a folder, not an ONNX file") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL character in the name
        why = getattr(error, "strerror", None) or error
        raise ModelFileError(f"cannot read model file {name!r}: {why}") from error


def top_fields(file: BinaryIO, name: str) -> Iterator[tuple[int, int, int]]:
    """Yield (number, start, end) of the payload of each top-level field."""
    size = os.fstat(file.fileno()).st_size
    broken = damaged(name, size)
    if size == 0:
        raise broken
    seen = set()
    for field, _, start, end in fields(file, 0, size, broken):
        seen.add(field)
        yield field, start, end
    if GRAPH not in seen or OPSETS not in seen:
        raise broken


def append_manifest(path: str | os.PathLike[str], manifest: Manifest) -> None:
    """Add a manifest to an ONNX file that has none: protobuf messages merge when concatenated."""
    entry = message(1, METADATA_KEY.encode()) + message(2, manifest.to_json().encode())
    with Path(path).open("ab") as file:
        file.write(message(METADATA, entry))


def _entry(data: bytes, name: str) -> tuple[str, bytes]:
    """Key and value of one StringStringEntryProto."""
    broken = ModelFileError(f"{name}: its metadata is damaged. Export it again")
    parts = {1: b"", 2: b""}
    for field, _, start, end in fields_of(data, broken):
        parts[field] = data[start:end]
    return parts[1].decode(errors="replace"), parts[2]
