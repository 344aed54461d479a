"""This package's version, which pyproject.toml alone states."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path


@cache
def package_version() -> str:
    """Return the version: of a source checkout as it stands, else as installed."""
    project = Path(__file__).parents[1] / "pyproject.toml"
    if project.is_file():
        stated = re.search(r'^version = "(.+)"$', project.read_text("utf-8"), re.MULTILINE)
        if stated is not None:
            return stated[1]
    from importlib.metadata import version  # takes longer than all else here

    return version("whycam")
