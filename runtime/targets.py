"""Resolve the classes to explain: indices, ranks and labels."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any

import numpy as np

from .errors import RequestError
from .manifest import Manifest

# The graph resolves the ranks -1 .. -RANKS, as far as there are classes.
RANKS = 5


def resolve_targets(
    targets: Any, count: int, many: bool, manifest: Manifest
) -> list[int | list[int]]:
    """Resolve targets to one class or rank an image, or a list of them.

    Args:
        targets: None (the most probable), an index, a rank, a label, or a list of these: for
            one image its classes, for many one entry an image.
        count: how many images there are.
        many: whether the caller passed many images, be it a list of one.
        manifest: knows the classes and their names.

    Raises:
        RequestError: a class that does not exist, or lists of the wrong length.
    """
    if targets is None:
        targets = -1
    if isinstance(targets, np.ndarray):
        targets = targets.tolist()
    if not isinstance(targets, list | tuple):
        entries: Sequence[Any] = [targets] * count
    elif not many:
        entries = [targets]
    elif len(targets) == count:
        entries = targets
    else:
        raise RequestError(
            f"{len(targets)} targets for {count} images: pass one for all, or one entry an image"
        )
    return [
        _classes(entry, manifest) if isinstance(entry, list | tuple) else _class(entry, manifest)
        for entry in entries
    ]


def class_rows(entries: Sequence[int | list[int]]) -> list[list[int]]:
    """List the classes of each image, be it one."""
    return [entry if isinstance(entry, list) else [entry] for entry in entries]


def _classes(entry: Sequence[Any], manifest: Manifest) -> list[int]:
    if not entry:
        raise RequestError("an empty list of targets: name at least one class")
    return [_class(target, manifest) for target in entry]


def _class(target: Any, manifest: Manifest) -> int:
    if isinstance(target, bool) or not isinstance(target, str | int | np.integer):
        raise RequestError(f"a target is a class index, a rank from -1 or a label, not {target!r}")
    if manifest.top is not None:
        return _rank(target, manifest.top)
    if isinstance(target, str):
        return _index_of(target, manifest.labels)
    count = manifest.num_classes
    ranks = min(RANKS, count)
    if not -ranks <= target < count:
        raise RequestError(
            f"there is no class {target}: indices go from 0 to {count - 1}, ranks from -1 (the "
            f"most probable) to -{ranks}"
        )
    return int(target)


def _rank(target: str | int | np.integer[Any], top: int) -> int:
    """Check a rank for a graph that has no input for the class."""
    if isinstance(target, str) or not -top <= target < 0:
        ranks = "rank -1 (the most probable class)" if top == 1 else f"ranks -1 to -{top}"
        raise RequestError(
            f"this file explains {ranks} alone, not {target!r}: it was exported with --top {top} "
            "and has no input for the class. Export again without --top"
        )
    return int(target)


def _index_of(label: str, labels: Sequence[str]) -> int:
    if not labels:
        raise RequestError(
            f"the model file holds no class names, so '{label}' cannot be looked up: pass the "
            "index, or export with --labels"
        )
    matches = [i for i, name in enumerate(labels) if name.lower() == label.lower()]
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise RequestError(f"'{label}' names the classes {matches}: pass the index")
    close = difflib.get_close_matches(label, labels, n=3, cutoff=0.5)
    hint = f"; did you mean {' or '.join(map(repr, close))}?" if close else ""
    raise RequestError(f"no class is called '{label}'{hint}")
