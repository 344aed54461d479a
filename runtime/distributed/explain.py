"""Explain batches of images in a data pipeline: columns of arrays in, columns of arrays out."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any

from ..batches import map_ahead
from ..cam import Method
from ..engines.base import Hint, Precision
from ..errors import ImageError, RequestError, reason_of
from ..explainer import Explainer
from ..images import ImageSource
from ..load import load
from ..request import Thresholding
from .columns import Columns, to_columns, to_row, to_schema, to_series
from .storage import is_address, open_storage

_READERS = 8  # an object store answers slowly, and several at a time


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is explained of each image, and how its map is stored.

    Attributes:
        target: the class, or several: see ``Explainer.explain``.
        method, tft: see ``Explainer.explain``.
        map_size: side of the stored map, in cells; 0: none is stored.
    """

    target: int | str | tuple[int | str, ...] = -1
    method: Method | tuple[Method, ...] | None = None
    tft: Thresholding = None
    map_size: int = 16

    def __post_init__(self) -> None:
        if not 0 <= self.map_size <= 1024:
            raise RequestError(f"map_size must be 0 to 1024, not {self.map_size}")
        for one in fields(self):
            value = getattr(self, one.name)
            if isinstance(value, list):  # what identifies a loaded model must be hashable
                object.__setattr__(self, one.name, tuple(value))


@dataclass(frozen=True)
class Explain(Request):
    """Explain the images of a batch, on a worker of Ray Data, Spark or Dask.

    The object holds its arguments alone, and can be pickled; the first batch loads the model, once
    a process. Ray Data calls it with a dict of arrays, and gets one back; Spark (``mapInPandas``)
    and Dask (``map_partitions``) call it with data frames, and get data frames back.

    A batch has one of the columns ``bytes`` (of image files), ``image`` (uint8 [h, w, 3], RGB) and
    ``path``; the first of them that it has is read, and ``path``, an address as
    ``s3://bucket/cat.jpg`` as well, names the image. Results have a row for each image, or one for
    each of its methods and classes, in order:

    - ``path``, ``error``: the image, and why it cannot be read, else an empty text; the numbers of
      such a row are NaN, -1 (``index``, ``top_index``) or 0;
    - ``height``, ``width`` int32: of the image;
    - ``method``, ``index`` int32, ``label``, ``probability`` float32: of the map, and of the class
      explained;
    - ``top_index`` int32 [5], ``top_probability`` float32 [5]: the most probable classes; -1 and
      NaN where the network has fewer;
    - ``threshold``, ``rpi``, ``masked_probability`` float32: tau* or the naive threshold, the
      largest relative probability increase, and the probability under the mask; NaN without
      thresholding, and a NaN threshold where none helps;
    - ``box`` int32 [4], ``share`` float32: left, top, right and bottom of the region in pixels of
      the image, zeros if it is empty, and its share of the image's area;
    - ``map`` uint8 [map_size, map_size]: the map's mean in each cell, 255 for 1, thresholded if
      thresholding was asked for; in data frames its bytes, row by row;
    - ``map_box`` float32 [4]: left, top, right and bottom of the map in pixels of the image.

    Attributes:
        model, engine, memory_mb, precision, hint, cache, gpu, prompts: see ``whycam.load``.
        threads: for one run; None: OMP_NUM_THREADS, which Ray and Spark set to a worker's share of
            the processors and Dask's nannies to 1; without that, every core.
        target, method, tft: see ``Explainer.explain``.
        map_size: side of the stored map, in cells; 0: none is stored.

    Raises:
        RequestError: a setting that does not exist, or a batch without images.
        WhyCamError: see ``whycam.load``, when the first batch comes.

    Example:
        >>> explain = whycam.distributed.Explain("model.onnx", tft=True)
        >>> found = explain({"path": np.array(["cat.jpg", "missing.jpg"])})
        >>> found["label"].tolist(), found["map"].shape
        (['tabby', ''], (2, 16, 16))
        >>> found["error"].tolist()
        ['', 'there is no file missing.jpg']
    """

    model: str | os.PathLike[str]
    engine: str = "auto"
    threads: int | None = None
    memory_mb: int = 256
    precision: Precision = "fp32"
    hint: Hint = "latency"
    cache: str | None = None
    gpu: int = 0
    prompts: str | os.PathLike[str] | None = None

    def __call__(self, batch: Any) -> Any:
        """Explain a batch.

        Args:
            batch: a dict of arrays, or a data frame; see the class.

        Returns:
            The same kind.
        """
        names, sources = read_columns(batch)
        if sources:
            columns = explain_images(self._load(), names, sources, self)
        else:
            columns = to_columns([], self.map_size)
        if isinstance(batch, Mapping):
            return columns
        return type(batch)({name: to_series(name, values) for name, values in columns.items()})

    @property
    def schema(self) -> str:
        """Return the columns of its data frames as Spark's ``mapInPandas`` takes them."""
        return to_schema(self.map_size)

    def _load(self) -> Explainer:
        stat = os.stat(self.model) if os.path.exists(self.model) else None
        # A file that was written again is loaded again.
        changed = None if stat is None else (stat.st_mtime_ns, stat.st_size)
        with _lock:  # Dask calls from several threads
            return _load(self, os.environ.get("OMP_NUM_THREADS"), changed)


_lock = threading.Lock()


@lru_cache(maxsize=1)
def _load(options: Explain, share: str | None, _: object) -> Explainer:
    threads = options.threads
    if threads is None and share is not None and share.isdecimal():
        threads = max(1, int(share))
    return load(
        options.model,
        options.engine,
        threads,
        options.memory_mb,
        precision=options.precision,
        hint=options.hint,
        cache=options.cache,
        gpu=options.gpu,
        prompts=options.prompts,
    )


def read_columns(batch: Any) -> tuple[list[str], list[ImageSource]]:
    """Return the names of a batch's images, and what they are read from.

    Raises:
        RequestError: it has no column of images.
    """
    for column in ("bytes", "image", "path"):
        if column in batch:
            sources = list(batch[column])
            break
    else:
        raise RequestError(
            "a batch needs a column of images: 'path', 'bytes' or 'image'; it has: "
            f"{', '.join(map(str, batch)) or 'none'}"
        )
    names = list(map(str, batch["path"])) if "path" in batch else [""] * len(sources)
    if column == "path":
        return names, list(names)
    return names, sources


def explain_images(
    explainer: Explainer, names: Sequence[str], sources: Sequence[ImageSource], request: Request
) -> Columns:
    """Explain images, and return the columns that ``Explain`` describes.

    Args:
        explainer: has the model.
        names: of the images.
        sources: a path or an address, or what ``read_pixels`` takes.
        request: what is explained.

    Raises:
        RequestError, EngineError: see ``Explainer.explain``.
    """
    several = isinstance(request.target, tuple)
    target = list(request.target) if isinstance(request.target, tuple) else request.target
    method = list(request.method) if isinstance(request.method, tuple) else request.method
    rows: list[dict[str, Any]] = []
    with closing(map_ahead(_fetch, sources, _READERS, 2 * _READERS)) as fetched:
        errors: list[str] = []

        def readable() -> Any:
            for source in fetched:
                errors.append(str(source) if isinstance(source, ImageError) else "")
                yield source

        results = explainer.iter_explanations(readable(), target, method, request.tft)
        for place, (name, (_, outcome)) in enumerate(zip(names, results, strict=True)):
            if isinstance(outcome, ImageError):
                rows.append({"path": name, "error": errors[place] or str(outcome)})
                continue
            for found in outcome.values():
                # Two targets, as a rank and a label, may be one class.
                classes = {one.index: one for one in (found if several else [found])}
                rows += [to_row(name, one, request.map_size) for one in classes.values()]
    return to_columns(rows, request.map_size)


def _fetch(source: ImageSource) -> ImageSource:
    """Return what can be read here of an image that is elsewhere, or an ``ImageError``."""
    if not isinstance(source, str) or not is_address(source):
        return source
    try:
        return open_storage(source).read()
    except FileNotFoundError:
        return ImageError(f"there is no file {source}")
    except OSError as error:
        return ImageError(f"{source} cannot be read: {reason_of(error)}")
