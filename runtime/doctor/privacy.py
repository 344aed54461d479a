"""Remove paths and the names of user and machine from reports that are sent to others."""

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
        known: paths that the message may contain, with any characters.
    """
    places = {str(path): Path(path).name for path in known}
    places |= {str(Path(path).absolute()): Path(path).name for path in known}
    places |= {sys.prefix: "python", str(Path.cwd()): ".", str(Path.home()): "~"}
    for place in sorted(places, key=len, reverse=True):
        if len(place) > 1:
            text = text.replace(place, places[place])
    host = platform.node()
    if len(host) > 1:
        text = re.sub(rf"\b{re.escape(host)}\b", "host", text)
    # Not after a colon or a slash: that is a web address.
    text = re.sub(r"(?<![\w:/.])~?(?:/[^\s/:'\"()]+)+/([^\s/:'\"()]*)", r"\1", text)
    return re.sub(r"\b[A-Za-z]:\\(?:[^\s\\:'\"]+\\)*([^\s\\:'\"]*)", r"\1", text)
