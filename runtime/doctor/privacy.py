"""Reports that can be shown to strangers: no name of user or machine, no place on a disk."""

from __future__ import annotations

import os
import platform
import re
import sys
from collections.abc import Iterable
from pathlib import Path


def redact(text: str, known: Iterable[str | os.PathLike[str]] = ()) -> str:
    """A message with the names of files alone, and without those of user and machine.

    Args:
        text: the message.
        known: files and folders that may stand in it, with whatever characters.
    """
    places = {str(each): Path(each).name for each in known}
    places |= {str(Path(each).absolute()): Path(each).name for each in known}
    places |= {sys.prefix: "python", str(Path.cwd()): ".", str(Path.home()): "~"}
    for place in sorted(places, key=len, reverse=True):
        if len(place) > 1:
            text = text.replace(place, places[place])
    host = platform.node()
    if len(host) > 1:
        text = re.sub(rf"\b{re.escape(host)}\b", "host", text)
    # Not after a colon or a slash, which is an address in the web.
    text = re.sub(r"(?<![\w:/.])~?(?:/[^\s/:'\"()]+)+/([^\s/:'\"()]*)", r"\1", text)
    return re.sub(r"\b[A-Za-z]:\\(?:[^\s\\:'\"]+\\)*([^\s\\:'\"]*)", r"\1", text)
