"""Write a file whole or not at all."""

from __future__ import annotations

import os
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .errors import OutputError


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """Give a temporary name beside ``target`` that replaces it when the block succeeds.

    On any error, Ctrl-C included, nothing is left behind and an older file stays as it was.

    Raises:
        OutputError: the place cannot be written.
    """
    # Named before it exists, so that no signal comes between its making and its removal. The
    # ending stays: some writers choose a format by it.
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


def write_whole(target: Path, data: bytes) -> Path:
    """Write ``data`` to ``target``, making its folder; returns ``target``.

    Raises:
        OutputError: the place cannot be written.
    """
    with replacing(target) as temporary:
        temporary.write_bytes(data)
    return target


def writable_folder(folder: str | os.PathLike[str]) -> Path:
    """Make a folder and check that files can be written there.

    Raises:
        OutputError: they cannot.
    """
    place = Path(folder)
    try:
        place.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=place):
            return place
    except OSError as error:
        raise OutputError(f"cannot write to {place}: {error.strerror or error}") from error
