"""The command line of whycam: one file a verb, and the only home of typer and rich.

``entry`` registers the verbs and turns errors into one line and an exit code. ``options`` has what
several verbs ask for, ``parse`` reads the text of options, ``console``, ``progress`` and ``tables``
print. A verb imports what it needs when it runs.
"""

from .entry import app, main

__all__ = ["app", "main"]
