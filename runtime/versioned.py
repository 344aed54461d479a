"""Read JSON that states the version of its layout."""

from __future__ import annotations

from typing import TypeVar

import msgspec

from .errors import ModelFileError, RequestError

_Kind = TypeVar("_Kind")


class _Versioned(msgspec.Struct):
    version: int


def decode_versioned(
    text: str | bytes, kind: type[_Kind], version: int, source: str, remedy: str
) -> _Kind:
    """Read a document of one version.

    Args:
        text: JSON.
        kind: what it holds.
        version: the only one that can be read.
        source: whose document it is, for messages.
        remedy: what to do about another version.

    Raises:
        ModelFileError: not JSON, of another version, or with fields missing or wrong.
    """
    try:
        found = msgspec.json.decode(text, type=_Versioned).version
        if found != version:
            raise ModelFileError(
                f"{source} has version {found}, this whycam reads {version}. {remedy}"
            )
        return msgspec.json.decode(text, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, RequestError) as error:
        raise ModelFileError(f"{source} is damaged: {error}") from error
