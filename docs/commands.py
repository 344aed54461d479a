"""Append all commands and their options to a page when the site is built (an MkDocs hook)."""

import subprocess
import sys
from typing import Any


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Add what Typer writes about the command line to the page that lists commands."""
    if page.file.src_uri != "commands.md":
        return markdown
    command = [sys.executable, "-m", "typer", "whycam.cli", "utils", "docs", "--name", "whycam"]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    # Its own title and lead stand on the page already.
    return markdown + text[text.index("\n## ") :]
