"""Read class names: ImageNet's, or those of a file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from ..runtime.errors import ExportError, MissingExtraError


def read_labels(labels: str | Sequence[str]) -> tuple[str, ...]:
    """Read class names in index order.

    Args:
        labels: ``imagenet``, a file with one name a line or a JSON list, or the names themselves.

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
    if text.lstrip().startswith("["):
        try:
            names = json.loads(text)
        except ValueError as error:
            raise ExportError(f"{path} is not valid JSON: {error}") from error
        return tuple(str(name) for name in names)
    return tuple(line.strip() for line in text.splitlines() if line.strip())
