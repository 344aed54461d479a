"""Write a file whole or not at all."""

from __future__ import annotations

import os
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec

from .errors import OutputError


@contextmanager
def replacing(target: Path, overwrite: bool = True) -> Iterator[Path]:
    """Yield a temporary file in the folder of ``target``, which replaces it if the block succeeds.

    On any error, Ctrl-C included, the temporary file is removed and an older ``target`` is kept.

    Raises:
        OutputError: the folder cannot be written to, or ``target`` exists and ``overwrite`` is
            false.
    """
    if not overwrite and target.exists():
        raise OutputError(
            f"{target} exists already: choose another place, or allow it to be overwritten"
        )
    # Named before it is created, so that a signal in between leaves no file. The suffix stays:
    # some writers choose a format by it.
    temporary = target.parent / f".{target.stem}.{secrets.token_hex(4)}{target.suffix}"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.is_dir():
            raise OutputError(f"cannot write {target}: it is a folder")
        temporary.touch(exist_ok=False)
        yield temporary
        temporary.replace(target)
    except OSError as error:
        raise OutputError(f"cannot write {target}: {error.strerror or error}") from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def write_whole(target: Path, data: bytes, overwrite: bool = True) -> Path:
    """Write ``data`` to ``target``, making its folder, and return ``target``.

    Raises:
        OutputError: it cannot be written, or exists and ``overwrite`` is false.
    """
    with replacing(target, overwrite) as temporary:
        temporary.write_bytes(data)
    return target


def write_json(target: Path, value: Any) -> Path:
    """Write ``value`` to ``target`` as indented JSON, as ``write_whole`` does."""
    return write_whole(target, msgspec.json.format(msgspec.json.encode(value)))


def writable_folder(folder: str | os.PathLike[str]) -> Path:
    """Make a folder, check that files can be written to it, and return it.

    Raises:
        OutputError: they cannot.
    """
    path = Path(folder)
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            return path
    except OSError as error:
        raise OutputError(f"cannot write to {path}: {error.strerror or error}") from error
