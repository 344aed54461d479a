"""Tell the class that means: no object."""

from __future__ import annotations


def is_background(label: str) -> bool:
    """Tell whether a class name is that of the background, as ``__background__`` is."""
    return label.strip("_ ").lower() == "background"
