"""Write a report: a page with its style, its program and its data in one HTML file."""

from __future__ import annotations

import base64
import hashlib
import html
import tempfile
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np

from .. import overlay
from ..class_comparison import LESS, MORE
from ..errors import RequestError
from ..files import replacing
from .entry import Encoded, merge_labels
from .facts import describe_reduced

# In this order, each may use what stands before it.
_SCRIPTS = ("data", "maps", "charts", "gallery", "viewer", "tables", "overview", "app")
# Browsers hold that many without effort.
MOST_IMAGES = 5000

Kind = Literal["explain", "evaluate", "compare", "train"]


class About(msgspec.Struct, frozen=True, kw_only=True):
    """What a report is of.

    Attributes:
        kind: of the command that wrote it.
        title: of the page.
        sources: names of the models, one or two.
        facts: names and values, shown below the title.
        notes: sentences for the reader.
        task: what the classes' numbers are, see ``Manifest.task``.
        taus: thresholds that TFT tried.
        reading: ``mask`` and ``thresholds`` of TFT; empty without it.
        sections: what else the page shows, by section.
    """

    kind: Kind
    title: str
    sources: tuple[str, ...]
    facts: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()
    task: str = "softmax"
    taus: tuple[float, ...] = ()
    reading: dict[str, str] = msgspec.field(default_factory=dict)
    sections: dict[str, Any] = msgspec.field(default_factory=dict)


class Report:
    """Collects images, and writes the file when all are there.

    Images wait in a temporary file that has no name, so memory does not grow with them.

    Args:
        path: of the HTML file.
        count: how many images there will be.

    Raises:
        RequestError: too many images for one page.
    """

    def __init__(self, path: Path, count: int) -> None:
        check_count(count)
        self.path = path
        self._entries: list[bytes] = []
        self._labels: dict[int, str] = {}
        self._maps = self._reduced = 0
        self._parts = tempfile.TemporaryFile()  # noqa: SIM115 - closed by __exit__

    def __enter__(self) -> Report:
        return self

    def __exit__(self, *_: object) -> None:
        self._parts.close()

    def add(self, encoded: Encoded) -> None:
        """Add an image, see ``encode_explanations``."""
        tag = f'<script type="text/plain" id="i{len(self._entries)}">'
        self._parts.write(f"{tag}{' '.join(encoded.parts)}</script>\n".encode())
        self._entries.append(msgspec.json.encode(encoded.entry))
        merge_labels(self._labels, encoded.labels)
        self._maps += len(encoded.entry.maps)
        self._reduced += sum(one.reduced for one in encoded.entry.maps)

    def name_class(self, index: int, label: str) -> None:
        """Name a class that the page's figures mention, be it of no image."""
        merge_labels(self._labels, {index: label})

    def write(self, about: About) -> Path:
        """Write the file, whole or not at all, and return where it is.

        A note is added where maps are finer than a report stores them.

        Raises:
            OutputError: it cannot be written.
        """
        if self._reduced:
            note = describe_reduced(self._reduced, self._maps)
            about = msgspec.structs.replace(about, notes=(*about.notes, note))
        document = {
            "about": about,
            "labels": {str(index): name for index, name in sorted(self._labels.items())},
            "colours": _colours(),
            "images": [msgspec.Raw(entry) for entry in self._entries],
        }
        head, foot = render(about.title, msgspec.json.encode(document)).split("<!--images-->\n")
        with replacing(self.path) as temporary, temporary.open("wb") as file:
            file.write(head.encode())
            self._parts.seek(0)
            while chunk := self._parts.read(2**20):
                file.write(chunk)
            file.write(foot.encode())
        return self.path


def check_count(count: int) -> None:
    """Refuse more images than a browser holds.

    Raises:
        RequestError: there are more.
    """
    if count > MOST_IMAGES:
        raise RequestError(
            f"a report of {count:,} images would be too large for a browser: it shows up to "
            f"{MOST_IMAGES:,}. Pass fewer images, or leave --report out"
        )


def render(title: str, data: bytes) -> str:
    """Fill the page's template; images belong at ``<!--images-->``.

    Nothing is fetched and no other script runs: the page's content security policy names the hash
    of its own.

    Args:
        title: any text, which is escaped.
        data: JSON. Inside it ``<`` is written as ``\\u003c``, so that no text ends the element.
    """
    page = resources.files(__package__) / "page"
    parts = [(page / f"{name}.js").read_text("utf-8") for name in _SCRIPTS]
    script = '(() => {\n"use strict";\n' + "\n".join(parts) + "})();\n"
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    values = {
        "title": html.escape(title),
        "policy": f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'",
        "style": (page / "style.css").read_text("utf-8"),
        "script": script,
        "data": data.decode().replace("<", "\\u003c"),
    }
    text = (page / "index.html").read_text("utf-8")
    pieces = []
    for piece in text.split("{{"):
        name, found, rest = piece.partition("}}")
        pieces.append(values[name] + rest if found else piece)
    return "".join(pieces)


def _colours() -> dict[str, list[list[int]]]:
    """List the colours of overlays and differences.

    ``heat``: the colour and opacity [256][4] of each level of a map; ``difference``: the colours
    where the first map is larger and where the second is.
    """
    kept, laid = (table.reshape(256, 3).astype(np.float64) for table in overlay.tables(1.0))
    weight = np.clip(1 - kept[:, 0] / 255, 0, 1)
    colour = laid / np.maximum(weight, 1 / 255)[:, None]
    table = np.column_stack([np.clip(colour, 0, 255), 255 * weight])
    return {"heat": np.rint(table).astype(int).tolist(), "difference": [list(MORE), list(LESS)]}
