"""Read class names: ImageNet's, or those of a file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from ..runtime.errors import ExportError, MissingExtraError
from ..runtime.manifest_parts import OutputHead


def read_labels(labels: str | Sequence[str]) -> tuple[str, ...]:
    """Read class names in index order.

    Args:
        labels: ``imagenet``, a file with one name a line or a JSON list, or the names themselves.
            For several heads a JSON object from head to list, which gives ``HEAD:CLASS``.

    Raises:
        ExportError: the file cannot be read.
        MissingExtraError: ImageNet's names come with torchvision, which is not installed.
    """
    if not isinstance(labels, str):
        return tuple(labels)
    if labels == "imagenet":
        try:
            from torchvision import models
        except ImportError as error:
            raise MissingExtraError("torchvision", "export", "labels imagenet") from error
        return tuple(models.ResNet50_Weights.DEFAULT.meta["categories"])
    path = Path(labels)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise ExportError(f"cannot read labels from {path}: {error}") from error
    if text.lstrip().startswith(("[", "{")):
        try:
            names = json.loads(text)
        except ValueError as error:
            raise ExportError(f"{path} is not valid JSON: {error}") from error
        if isinstance(names, list):
            return tuple(str(name) for name in names)
        if all(isinstance(listed, list) for listed in names.values()):
            return tuple(f"{head}:{name}" for head, listed in names.items() for name in listed)
        raise ExportError(f"{path} must hold a list of names, or an object from head to such lists")
    return tuple(line.strip() for line in text.splitlines() if line.strip())


def name_classes(labels: Sequence[str], heads: Sequence[OutputHead]) -> list[tuple[str, ...]]:
    """Distribute class names over a network's heads.

    Args:
        labels: of a single head, its names, one for a binary head; of several, ``HEAD:CLASS`` for
            those that are named, or the names of all heads in their order.
        heads: in that order.

    Returns:
        The names of each head's classes as far as there are any; their number is not checked,
        except that names without a head must be as many as there are classes.

    Raises:
        ExportError: names without a head are too few or too many for several heads, or name a head
            that is not explained.
    """
    if len(heads) == 1:
        return [_name_both(tuple(labels), heads[0])]
    grouped: dict[str, list[str]] = {head.name: [] for head in heads}
    for label in labels:
        owner = next((name for name in grouped if label.startswith(f"{name}:")), None)
        if owner is not None:
            grouped[owner].append(label.removeprefix(f"{owner}:"))
    if any(grouped.values()):
        if sum(map(len, grouped.values())) != len(labels):
            raise ExportError(
                f"some labels belong to none of the heads {', '.join(grouped)}: name each as "
                "HEAD:CLASS"
            )
        return [_name_both(tuple(grouped[head.name]), head) for head in heads]
    total = sum(head.num_classes for head in heads)
    if labels and len(labels) != total:
        raise ExportError(
            f"there are {len(labels)} labels, but the heads {', '.join(grouped)} have {total} "
            "classes: list the classes of all heads in this order, or pass a JSON object from head "
            "to list"
        )
    names, parts = list(labels), []
    for head in heads:
        parts.append(tuple(names[: head.num_classes]))
        del names[: head.num_classes]
    return parts


def _name_both(names: tuple[str, ...], head: OutputHead) -> tuple[str, ...]:
    """Name both classes of one logit, where only one is named."""
    if head.task == "binary" and len(names) == 1:
        return f"not {names[0]}", names[0]
    return names
