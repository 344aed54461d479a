"""Keep the explanations of a folder in parts, each written whole, so that a stopped run goes on.

The folder of a run holds ``_run.json``, what is explained of which model and images;
``_images.parquet``, the list of images, a row group for each part; and of each finished part
``part-00000.parquet``. Readers of Parquet folders skip names that begin with ``_`` or ``.``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import chain, islice
from typing import Any

import msgspec

from ..errors import EngineError, OutputError, RequestError
from ..explainer import Explainer
from ..manifest import Manifest
from .columns import Columns
from .explain import Request, explain_images
from .storage import Storage

_RUN, _IMAGES = "_run.json", "_images.parquet"
_LARGEST = 1000  # images of a part: what a worker that dies has to do again
_PARTS = 64  # at least, as far as there are so many images, so that workers end together
_BATCH = 16  # a part is no smaller


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """What all parts of a run have in common.

    Attributes:
        model: its name.
        source: the folder of images.
        settings: all that the results depend on, in words, by the name of each setting.
        images: how many there are.
        size: how many of them a part has; the last one may have fewer.
    """

    model: str
    source: str
    settings: dict[str, str]
    images: int = 0
    size: int = 1

    @property
    def parts(self) -> int:
        """Count the parts."""
        return -(-self.images // self.size)

    def count(self, parts: Iterable[int]) -> int:
        """Count the images of some parts."""
        return sum(min(self.size, self.images - part * self.size) for part in parts)


def describe_settings(
    manifest: Manifest, request: Request, engine: str, precision: str, prompts: str, version: str
) -> dict[str, str]:
    """Name all that results depend on, besides the images.

    Args:
        manifest: of the model.
        request: what is explained.
        engine, precision: as asked for.
        prompts: a digest of the prompts, or an empty text.
        version: of whycam.
    """
    told = {
        "target": str(request.target),
        "method": str(request.method),
        "TFT": str(request.tft),
        "size of maps": str(request.map_size),
        "engine": engine,
        "precision": precision,
        "prompts": prompts,
        "version of whycam": version,
    }
    return {"digest of the model": manifest.digest, **told}


def begin_run(folder: Storage, source: Storage, run: Run) -> tuple[Run, set[int]]:
    """List the images of a new run, or take up a stopped one.

    Args:
        folder: of the results.
        source: the folder of images.
        run: what is asked for; its counts are not known yet.

    Returns:
        The run with its counts, and the parts that are finished.

    Raises:
        RequestError: there are no images, or the folder holds a run of something else.
        OutputError: the folder cannot be read or written.
    """
    try:
        if _RUN in folder.file_names():
            before = msgspec.json.decode((folder / _RUN).read(), type=Run)
            _check_same(folder, before, run)
            return before, finished_parts(folder)
        if finished_parts(folder):
            raise OutputError(f"{folder.name} holds parts of an unknown run: choose another folder")
        begun = _write_list(folder, source, run)
    except (OSError, msgspec.DecodeError) as error:
        raise OutputError(f"cannot begin a run in {folder.name}: {error}") from error
    (folder / _RUN).write(msgspec.json.format(msgspec.json.encode(begun)))
    return begun, set()


def finished_parts(folder: Storage) -> set[int]:
    """Return the numbers of the parts that are written.

    Raises:
        OSError: the folder cannot be listed.
    """
    matches = (re.fullmatch(r"part-(\d+)\.parquet", name) for name in folder.file_names())
    return {int(match[1]) for match in matches if match}


def _check_same(folder: Storage, before: Run, now: Run) -> None:
    """Refuse to go on with other settings: the parts would not belong together."""
    pairs = {"folder of images": (before.source, now.source)}
    for name in {**before.settings, **now.settings}:
        pairs[name] = before.settings.get(name, "unknown"), now.settings.get(name, "unknown")
    changed = [f"{name}: {old}, now {new}" for name, (old, new) in pairs.items() if old != new]
    if changed:
        raise RequestError(
            f"{folder.name} holds a run with other settings ({'; '.join(changed)}): repeat them to "
            "go on with it, or choose another folder"
        )


def _write_list(folder: Storage, source: Storage, run: Run) -> Run:
    import pyarrow
    from pyarrow import parquet

    names = source.image_names()
    first = list(islice(names, _PARTS * _LARGEST))
    if not first:
        raise RequestError(f"no images in {source.name}")
    size = min(_LARGEST, max(_BATCH, -(-len(first) // _PARTS)))
    images = 0
    sink = pyarrow.BufferOutputStream()
    schema = pyarrow.schema([("name", pyarrow.string())])
    with parquet.ParquetWriter(sink, schema, compression="zstd") as writer:
        every = chain(first, names)
        while group := list(islice(every, size)):
            writer.write_table(pyarrow.table({"name": group}, schema))
            images += len(group)
    (folder / _IMAGES).write(sink.getvalue())
    return msgspec.structs.replace(run, images=images, size=size)


def explain_part(
    explainer: Explainer, part: int, folder: Storage, source: Storage, request: Request
) -> int:
    """Explain the images of a part, write their results, and return how many there are.

    Args:
        explainer: has the model.
        part: its number.
        folder: of the run.
        source: the folder of images.
        request: what is explained.

    Raises:
        EngineError: no image can be opened: the place of the images is at fault, not a file.
        OutputError: the results cannot be written.
    """
    from pyarrow import parquet

    with parquet.ParquetFile((folder / _IMAGES).path, filesystem=folder.system) as listed:
        names = listed.read_row_group(part).column("name").to_pylist()
    paths = [(source / name).name for name in names]
    columns = explain_images(explainer, paths, paths, request)
    failed = [str(text) for text in columns["error"] if text]
    if len(failed) == len(names) and not any(_exists(source / name) for name in names):
        raise EngineError(
            f"none of the images from {paths[0]} to {paths[-1]} can be opened ({failed[0]}): every "
            "worker must reach them under this name"
        )
    (folder / f"part-{part:05d}.parquet").write(_to_parquet(columns))
    return len(names)


def _exists(image: Storage) -> bool:
    try:
        with image.system.open_input_file(image.path):
            return True
    except OSError:
        return False


def _to_parquet(columns: Columns) -> Any:
    """Encode columns: rows of arrays are lists of fixed length, and what is NaN is null."""
    import pyarrow
    from pyarrow import parquet

    table = {}
    for name, values in columns.items():
        flat = pyarrow.array(values.ravel(), from_pandas=values.dtype.kind == "f")
        for length in reversed(values.shape[1:]):
            flat = pyarrow.FixedSizeListArray.from_arrays(flat, length)
        table[name] = flat
    sink = pyarrow.BufferOutputStream()
    parquet.write_table(pyarrow.table(table), sink, compression="zstd")
    return sink.getvalue()


def read_unreadable(folder: Storage, most: int) -> tuple[int, list[str]]:
    """Count the images of a run that could not be read, and return some of the reasons.

    Args:
        folder: of the run.
        most: reasons to return.
    """
    from pyarrow import dataset

    found = dataset.dataset(folder.path, filesystem=folder.system, format="parquet")
    failed = dataset.field("error") != ""
    count = found.count_rows(filter=failed)
    rows = found.scanner(columns=["error"], filter=failed).head(most) if count else None
    return count, [] if rows is None else rows.column("error").to_pylist()
