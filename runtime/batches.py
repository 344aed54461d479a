"""Read and prepare images on threads, ahead of the network, and gather them in batches."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from typing import TypeVar

import numpy as np

from .errors import ImageError
from .images import ImageSource
from .manifest import Manifest
from .pipeline import Model, Prepared, prepare
from .pixels import read_pixels

# Images of one run, at most. More are no faster on CPUs, and delay the first results.
_LARGEST = 16
# Batches worked on at a time: while one is mapped or drawn, the other keeps the engine busy.
CALLERS = 2
_READERS = 8
# Preprocessing inside the graph holds an image's bytes as float32 up to three times.
_EMBEDDED_OVERHEAD = 12
_Item = TypeVar("_Item")
_Result = TypeVar("_Result")
# An item with its prepared image, or with the reason why it cannot be read.
Read = tuple[_Item, Prepared | ImageError]


def map_ahead(
    work: Callable[[_Item], _Result], items: Iterable[_Item], threads: int, ahead: int
) -> Generator[_Result]:
    """Apply a function on threads, and give its results in order.

    Args:
        work: safe to call from several threads; an exception is raised in place of the result.
        items: read as they are needed.
        threads: number of threads.
        ahead: items in work or finished and not yet yielded, at most.
    """
    pending: deque[Future[_Result]] = deque()
    with ThreadPoolExecutor(threads, "whycam-ahead") as pool:
        try:
            for item in items:
                pending.append(pool.submit(work, item))
                if len(pending) >= ahead:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def prepared_batches(
    items: Iterable[_Item],
    source_of: Callable[[_Item], ImageSource],
    manifest: Manifest,
    most: int,
    memory: int | None = None,
) -> Generator[list[Read[_Item]]]:
    """Read images ahead of the network, and gather those that can go through it together.

    Args:
        items: to read, in order.
        source_of: returns an item's image, as ``read_pixels`` takes it.
        manifest: has the preprocessing.
        most: images of one batch, at most.
        memory: bytes of one batch's inputs, at most; None: any number.

    Returns:
        Batches of all items in order, each with its prepared image (a batch of one) or the error
        of reading it.

    Raises:
        RequestError: an image of a size that the file excludes.
    """

    def read(item: _Item) -> Read[_Item]:
        try:
            return item, prepare([read_pixels(source_of(item), manifest.preprocess)], manifest)
        except ImageError as error:
            return item, error

    threads = min(_READERS, os.cpu_count() or 1)
    batch: list[Read[_Item]] = []
    count, shape, limit = 0, None, most
    with closing(map_ahead(read, items, threads, most + threads)) as reads:
        for item, prepared in reads:
            if isinstance(prepared, Prepared):
                if count and prepared.inputs.shape != shape:
                    yield batch
                    batch, count = [], 0
                shape = prepared.inputs.shape
                limit = most
                if memory is not None:
                    limit = max(1, min(most, memory // prepared.inputs.nbytes))
                count += 1
            batch.append((item, prepared))
            if count >= limit:
                yield batch
                batch, count = [], 0
        if batch:
            yield batch


def run_batches(
    model: Model,
    memory: int,
    items: Iterable[_Item],
    source_of: Callable[[_Item], ImageSource],
    work: Callable[[list[Read[_Item]]], Iterable[_Result]],
    callers: int = CALLERS,
) -> Generator[_Result]:
    """Apply a function to batches of images, while others are read and prepared on threads.

    Args:
        model: the network that images are prepared for.
        memory: bytes of the activations of one batch, at most.
        items: with an image each.
        source_of: returns an item's image, as ``read_pixels`` takes it.
        work: takes a batch of ``prepared_batches`` and returns one result for each item.
        callers: batches worked on at a time, on threads; 1: on the calling thread.

    Returns:
        The results in order.

    Raises:
        RequestError: an image of a size that the file excludes.
    """
    inputs = memory // _EMBEDDED_OVERHEAD if model.manifest.embedded_preprocess else None
    most = batch_size_for(model.batch, model.manifest.batch, callers)
    with closing(prepared_batches(items, source_of, model.manifest, most, inputs)) as batches:
        if callers == 1:
            for batch in batches:
                yield from work(batch)
            return
        with closing(map_ahead(work, batches, callers, callers + 1)) as results:
            for batch_results in results:
                yield from batch_results


def batch_size_for(batch: int, fixed: int | None, callers: int) -> int:
    """Choose how many images of a folder go into one run.

    Args:
        batch: images that fit into memory, see ``pipeline.Model``.
        fixed: batch size of the graph, if it takes no other.
        callers: runs at a time.
    """
    return fixed or max(1, min(_LARGEST, batch) // callers)


def join_batches(parts: Iterable[Prepared]) -> Prepared:
    """Join several prepared batches into one."""
    batches = list(parts)
    if len(batches) == 1:
        return batches[0]
    return Prepared(
        tuple(image for batch in batches for image in batch.images),
        np.concatenate([batch.inputs for batch in batches]),
        tuple(placement for batch in batches for placement in batch.placements),
    )
