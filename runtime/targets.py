"""Resolve the classes to explain: indices, ranks and labels."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .errors import RequestError
from .manifest import Manifest
from .suggest import suggest

# The graph resolves the ranks -1 .. -RANKS, as far as there are classes.
RANKS = 5


class ClassScore(NamedTuple):
    """A class and its probability; its value where the task is ``none``."""

    index: int  # type: ignore[assignment]  # tuples have a method of that name
    label: str
    probability: float


def resolve_targets(
    targets: Any, count: int, many: bool, manifest: Manifest
) -> list[int | list[int]]:
    """Resolve targets to one class or rank an image, or a list of them.

    Args:
        targets: None (the most probable), an index, a rank, a label, or a list of these: for
            one image its classes, for many one entry an image. Of several heads a class is named
            ``HEAD:CLASS`` and its rank ``HEAD:RANK``; a rank alone is the first head's.
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
        ranked = _rank_of_head(target, manifest)
        return find_label(target, manifest.labels) if ranked is None else ranked
    count = manifest.num_classes
    ranks = count_ranks(manifest.output_heads[0].num_classes)
    if not -ranks <= target < count:
        raise RequestError(
            f"there is no class {target}: indices go from 0 to {count - 1}, ranks from -1 (the "
            f"most probable) to -{ranks}"
        )
    return int(target)


def count_ranks(num_classes: int) -> int:
    """Count the ranks that the graph resolves in a head of so many classes."""
    return min(RANKS, num_classes)


def most_probable(probabilities: NDArray[Any], manifest: Manifest) -> NDArray[np.int64]:
    """Find the class of rank -1, of several heads the first one's: [N, C] to int64 [N]."""
    first = manifest.output_heads[0]
    return np.asarray(probabilities[:, : first.num_classes].argmax(1), np.int64)


def rank_classes(
    probabilities: NDArray[Any], manifest: Manifest, first: int = 0, count: int | None = None
) -> tuple[ClassScore, ...]:
    """List the most probable classes, ``RANKS`` at most, the most probable first.

    Args:
        probabilities: float [C], of one image.
        manifest: knows the classes' names.
        first, count: which of the classes are ranked: those of one head; by default all.
    """
    ranked = probabilities[first : None if count is None else first + count]
    most = min(RANKS, len(ranked))
    best = np.argpartition(-ranked, most - 1)[:most]
    order = best[np.argsort(-ranked[best], kind="stable")]
    return tuple(
        ClassScore(first + int(i), manifest.label(first + int(i)), float(ranked[i])) for i in order
    )


def _rank_of_head(text: str, manifest: Manifest) -> int | None:
    """Resolve ``HEAD:RANK`` as the graph counts ranks: one head's after the other's."""
    before = 0
    for head in manifest.heads:
        ranks = count_ranks(head.num_classes)
        rank = text.removeprefix(f"{head.name}:")
        if rank != text and re.fullmatch(r"-\d+", rank):
            if not -ranks <= int(rank) < 0:
                raise RequestError(
                    f"there is no class '{text}': ranks of '{head.name}' go from -1 (the most "
                    f"probable) to -{ranks}"
                )
            return int(rank) - before
        before += ranks
    return None


def _rank(target: str | int | np.integer[Any], top: int) -> int:
    """Check a rank for a graph that has no input for the class."""
    if isinstance(target, str) or not -top <= target < 0:
        ranks = "rank -1 (the most probable class)" if top == 1 else f"ranks -1 to -{top}"
        raise RequestError(
            f"this file explains {ranks} alone, not {target!r}: it was exported with --top {top} "
            "and has no input for the class. Export again without --top"
        )
    return int(target)


def find_label(label: str, labels: Sequence[str]) -> int:
    """Find the index of a class by its label, in any case of its letters.

    Raises:
        RequestError: there is none of that name, or several, or the file holds no names.
    """
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
    close = suggest(label, labels)
    hint = f"; did you mean {' or '.join(map(repr, close))}?" if close else ""
    raise RequestError(f"no class is called '{label}'{hint}")
