"""Run a graph on chunks of images x classes, and join the outputs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..manifest import Manifest
from ..place_weights import REGION

Arrays = Mapping[str, NDArray[Any]]
Outputs = dict[str, NDArray[Any]]
# Calls a function for each part, in order: the built-in ``map``, or a thread pool's.
Mapper = Callable[[Callable[[Arrays], Outputs], Iterable[Arrays]], Iterable[Outputs]]


def slices(count: int, size: int) -> list[slice]:
    """Divide ``count`` items into slices of at most ``size``."""
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


def run_in_chunks(
    run: Callable[[Arrays], Outputs],
    feeds: Arrays,
    manifest: Manifest,
    images: int,
    classes: int | None = None,
    mapper: Mapper = map,
) -> Outputs:
    """Run a graph for any number of images and classes, a few at a time.

    Args:
        run: one run, from inputs to outputs by their contract names.
        feeds: ``image`` [N, ...], and where the graph has these inputs ``target`` [N, k] and
            ``region`` [N, h, w]; others are the same in each run.
        manifest: of the graph; knows which outputs have a row for each class.
        images: most images of one run.
        classes: most classes of one run; None: any number.
        mapper: runs the parts, one after the other unless it does otherwise.

    Returns:
        The outputs as one run returns them.
    """
    image, target = feeds["image"], feeds.get("target")
    rows = slices(len(image), images)
    columns = [slice(None)]
    if target is not None and classes is not None:
        columns = slices(target.shape[1], classes)
    parts: list[Arrays] = []
    for row in rows:
        of_row = {name: feeds[name][row] for name in ("image", REGION) if name in feeds}
        for column in columns:
            targets = {} if target is None else {"target": target[row, column]}
            parts.append({**feeds, **of_row, **targets})
    if len(parts) == 1:
        return run(feeds)
    found = list(mapper(run, parts))
    width = len(columns)
    lines = [found[start : start + width] for start in range(0, len(found), width)]
    return {name: _joined(name, lines, manifest) for name in found[0]}


def _joined(name: str, lines: Sequence[Sequence[Outputs]], manifest: Manifest) -> NDArray[Any]:
    """Join one output of several runs, which are rows of columns."""
    # An output without a row for each class is the same whatever classes are explained.
    per_class = manifest.output_shapes.get(name, (0,))[0] is None
    joined = [
        np.concatenate([part[name] for part in line], axis=1)
        if per_class and len(line) > 1
        else line[0][name]
        for line in lines
    ]
    return joined[0] if len(joined) == 1 else np.concatenate(joined)
