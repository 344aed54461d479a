"""Remove names of user and machine, and folders, from reports that strangers will read."""

from __future__ import annotations

import os
import platform
import re
import sys
from collections.abc import Iterable
from pathlib import Path


def redact(text: str, known: Iterable[str | os.PathLike[str]] = ()) -> str:
    """Reduce the paths in a message to file names, and remove the names of user and machine.

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
