"""Cache on disk, in chunks, the arrays that training reads in every epoch.

A chunk is a folder that is written under a temporary name and then renamed, so a killed run loses
only the chunk that it was writing. Several processes can write different chunks, and all read them
through memory maps.
"""

from __future__ import annotations

import json
import os
import shutil
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..runtime.errors import OutputError

CHUNK = 128
OPEN_FILES = 256  # each memory map holds a file open, and systems allow a process about a thousand
_ERRORS = "unreadable.json"


class Cache:
    """Named arrays on disk with one row for each item.

    Args:
        folder: of the chunks, on storage that every process sees.
        count: number of items.
        layout: for each array the shape of a row and its dtype.
    """

    def __init__(
        self, folder: Path, count: int, layout: Mapping[str, tuple[tuple[int, ...], str]]
    ) -> None:
        self.folder = folder
        self.count = count
        self.layout = dict(layout)
        self._open: OrderedDict[tuple[int, str], NDArray[Any]] = OrderedDict()

    @property
    def row_bytes(self) -> int:
        """Return the bytes of one item."""
        return sum(
            int(np.prod(shape)) * np.dtype(kind).itemsize for shape, kind in self.layout.values()
        )

    def check_space(self) -> None:
        """Check, before the first chunk is written, that the disk can hold the rest.

        Raises:
            OutputError: it cannot.
        """
        needed = self.row_bytes * sum(len(items) for _, items in self.missing())
        self._make(self.folder)
        free = shutil.disk_usage(self.folder).free
        if needed > 0.95 * free:
            raise OutputError(
                f"the cache needs {needed / 2**30:.1f} GiB in {self.folder}, where "
                f"{free / 2**30:.1f} GiB are free: name another place with --cache DIR, or "
                "--cache off"
            )

    def missing(self, rank: int = 0, world: int = 1) -> Iterator[tuple[int, range]]:
        """Yield one process's share of the chunks not yet written, with their items."""
        for index in range(rank, -(-self.count // CHUNK), world):
            if not self._place(index).is_dir():
                yield index, range(index * CHUNK, min((index + 1) * CHUNK, self.count))

    def write(self, index: int, arrays: Mapping[str, NDArray[Any]], errors: dict[int, str]) -> None:
        """Write one chunk, whole or not at all.

        Args:
            index: of the chunk.
            arrays: as ``layout`` has them.
            errors: items that could not be read, and why; their rows mean nothing.
        """
        target = self._place(index)
        temporary = target.with_name(f".{target.name}.{os.getpid()}")
        shutil.rmtree(temporary, ignore_errors=True)
        try:
            self._make(temporary)
            for name, (shape, kind) in self.layout.items():
                rows = np.asarray(arrays[name], dtype=kind)
                assert rows.shape[1:] == shape, (name, rows.shape, shape)
                np.save(temporary / f"{name}.npy", rows)
            (temporary / _ERRORS).write_text(json.dumps(errors))
            temporary.rename(target)
        except OSError as error:
            raise OutputError(f"cannot write {target}: {error.strerror or error}") from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def errors(self) -> dict[int, str]:
        """Return the items that could not be read, and why."""
        errors: dict[int, str] = {}
        for index in range(-(-self.count // CHUNK)):
            entries = json.loads((self._place(index) / _ERRORS).read_text())
            errors.update({int(item): why for item, why in entries.items()})
        return errors

    def rows(self, name: str, items: Sequence[int]) -> NDArray[Any]:
        """Read the rows of some items, [len(items), ...]."""
        shape, kind = self.layout[name]
        rows = np.empty((len(items), *shape), kind)
        for place, item in enumerate(items):
            rows[place] = self._array(item // CHUNK, name)[item % CHUNK]
        return rows

    def remove(self) -> None:
        """Delete every chunk."""
        self._open.clear()
        shutil.rmtree(self.folder, ignore_errors=True)
        with suppress(OSError):
            self.folder.parent.rmdir()  # if it is empty

    def _array(self, index: int, name: str) -> NDArray[Any]:
        key = index, name
        if key not in self._open:
            self._open[key] = np.load(self._place(index) / f"{name}.npy", mmap_mode="r")
            if len(self._open) > OPEN_FILES:
                self._open.popitem(last=False)
        self._open.move_to_end(key)
        return self._open[key]

    def _place(self, index: int) -> Path:
        return self.folder / f"{index:06d}"

    def _make(self, folder: Path) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"cannot write {folder}: {error.strerror or error}") from error
