"""Say what a text encoder is, and make texts fit the length that it reads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ..runtime.errors import DataError

TextEncoder = Callable[[Sequence[str]], Any]


def fill_texts(is_filled: bool, length: int) -> dict[str, Any]:
    """Return a tokenizer's options: all texts as long as the text encoder reads, or the longest."""
    return {"padding": "max_length", "max_length": length} if is_filled else {"padding": True}


def refuse_long_text(text: str, count: int, length: int) -> None:
    """Refuse a text of more tokens than the text encoder reads, which tokenizers cut off silently.

    Raises:
        DataError: ``count`` is more than ``length``.
    """
    if count > length:
        raise DataError(
            f"the text '{text}' is longer than the {length} tokens that the text encoder reads: "
            "shorten it"
        )
