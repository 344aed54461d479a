"""Store the measurements of each image line by line, so that a stopped evaluation resumes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..runtime.errors import OutputError

ROWS = "images.jsonl"


class Rows:
    """A file with one line of JSON an image; the first line identifies the evaluation.

    Attributes:
        names: of the images that ``done`` has returned.
    """

    def __init__(self, folder: Path | None, key: str) -> None:
        self._path = None if folder is None else folder / ROWS
        self._key = key
        self._file: Any = None
        self.names: set[str] = set()

    def __enter__(self) -> Rows:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def done(self) -> Iterator[dict[str, Any]]:
        """Yield the rows of a stopped evaluation; an incomplete last line is dropped."""
        if self._path is None:
            return
        whole = 0
        try:
            if self._path.is_file():
                with self._path.open("rb") as file:
                    first = file.readline()
                    if first == self._head():
                        whole = len(first)
                        for line in file:
                            if not line.endswith(b"\n"):
                                break
                            whole += len(line)
                            row = self._read(line)
                            self.names.add(row["name"])
                            yield row
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._path.open("r+b" if whole else "wb")
            if whole:
                self._file.truncate(whole)
                self._file.seek(whole)
            else:
                self._file.write(self._head())
        except (OSError, ValueError) as error:
            raise OutputError(f"cannot write {self._path}: {error}") from error

    def _read(self, line: bytes) -> dict[str, Any]:
        try:
            row = json.loads(line)
        except ValueError as error:
            raise OutputError(
                f"{self._path} is damaged ({error}): delete it, or evaluate into another folder"
            ) from error
        return dict(row)

    def write(self, row: dict[str, Any]) -> None:
        """Write the row of one image.

        Raises:
            OutputError: the disk is full.
        """
        if self._file is None:
            return
        try:
            self._file.write(json.dumps(row).encode() + b"\n")
            self._file.flush()
        except OSError as error:
            raise OutputError(f"cannot write {self._path}: {error.strerror or error}") from error

    def _head(self) -> bytes:
        return json.dumps({"evaluation": self._key}).encode() + b"\n"


def read_rows(folder: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows that an evaluation wrote to a folder.

    Raises:
        OutputError: they cannot be read.
    """
    path = folder / ROWS
    try:
        with path.open("rb") as file:
            file.readline()
            for line in file:
                yield dict(json.loads(line))
    except (OSError, ValueError) as error:
        raise OutputError(f"cannot read {path}: {error}") from error
