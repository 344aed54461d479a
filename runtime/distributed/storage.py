"""List, read and write files on disks and in object stores, by Arrow's file systems."""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from ..errors import MissingExtraError, OutputError, RequestError, reason_of
from ..images import IMAGE_SUFFIXES


def is_address(text: str) -> bool:
    """Tell whether text is an address as ``s3://bucket/folder``, and no path."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", text) is not None


@dataclass(frozen=True)
class Storage:
    """A folder or a file on a disk or in an object store.

    Attributes:
        system: a ``pyarrow.fs.FileSystem``; it can be sent to other processes.
        path: within it.
        name: as people write it: a path, or an address.
    """

    system: Any
    path: str
    name: str

    def __truediv__(self, child: str) -> Storage:
        return Storage(self.system, f"{self.path}/{child}", f"{self.name.rstrip('/')}/{child}")

    def read(self) -> bytes:
        """Return what the file holds.

        Raises:
            OSError: it cannot be read.
        """
        with self.system.open_input_file(self.path) as file:
            return bytes(file.read())

    def write(self, data: bytes) -> None:
        """Write a file whole or not at all: under a temporary name, then renamed.

        Raises:
            OutputError: it cannot be written.
        """
        folder, _, file = self.path.rpartition("/")
        temporary = f"{folder}/.{secrets.token_hex(4)}.{file}"
        try:
            self.system.create_dir(folder, recursive=True)
            with self.system.open_output_stream(temporary) as stream:
                stream.write(data)
            self.system.move(temporary, self.path)
        except OSError as error:
            with suppress(OSError):
                self.system.delete_file(temporary)
            raise OutputError(f"cannot write {self.name}: {reason_of(error)}") from error

    def file_names(self) -> list[str]:
        """List the names of the files in the folder; none where there is no folder.

        Raises:
            OSError: it cannot be listed.
        """
        return [info.base_name for info in self._entries() if info.is_file]

    def image_names(self) -> Iterator[str]:
        """List the images in the folder and those below it, by their suffixes, in order.

        As ``images.list_images`` does, but one folder at a time.

        Returns:
            Names within the folder, as ``cats/1.jpg``.

        Raises:
            OSError: a folder cannot be listed.
        """
        for info in sorted(self._entries(), key=lambda info: str(info.base_name)):
            name = str(info.base_name)
            if info.is_file:
                suffix = os.path.splitext(name)[1].lower()
                if suffix in IMAGE_SUFFIXES and not name.startswith("."):
                    yield name
            else:
                yield from (f"{name}/{below}" for below in (self / name).image_names())

    def _entries(self) -> list[Any]:
        from pyarrow.fs import FileSelector

        return list(self.system.get_file_info(FileSelector(self.path, allow_not_found=True)))


def open_storage(text: str) -> Storage:
    """Return the folder or file that a path or an address names.

    Args:
        text: a path; an address that Arrow knows (``s3``, ``gs``, ``hdfs``), with the credentials
            and settings that its own library finds; or any other that fsspec knows.

    Raises:
        MissingExtraError: pyarrow is not installed.
        RequestError: no library knows the address.
    """
    try:
        from pyarrow.fs import LocalFileSystem
    except ImportError as error:
        raise MissingExtraError("pyarrow", "ray", "reading and writing Parquet") from error
    if not is_address(text):
        whole = os.path.abspath(text)
        return Storage(LocalFileSystem(), whole, whole)
    # Names of files are taken as they are: within an address they would have to be encoded.
    scheme, _, rest = text.partition("://")
    host, slash, inner = rest.partition("/")
    system, base = _open_system(f"{scheme}://{host}" + ("" if host else "/"))
    path = f"{base.rstrip('/')}{slash}{inner}" if inner else base
    return Storage(system, path.rstrip("/"), text.rstrip("/"))


@lru_cache(maxsize=16)  # one takes a request, which asks where a bucket is
def _open_system(address: str) -> tuple[Any, str]:
    from pyarrow import ArrowInvalid
    from pyarrow.fs import FileSystem, FSSpecHandler, PyFileSystem

    try:
        system, path = FileSystem.from_uri(address)
        return system, str(path)
    except (ArrowInvalid, OSError, NotImplementedError) as problem:
        try:
            import fsspec

            other, path = fsspec.core.url_to_fs(address)
        except (ImportError, ValueError, OSError):
            raise RequestError(f"{address} cannot be opened: {reason_of(problem)}") from problem
        return PyFileSystem(FSSpecHandler(other)), str(path)
