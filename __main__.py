"""``python -m whycam``: the command line."""

from .cli import main

main()
