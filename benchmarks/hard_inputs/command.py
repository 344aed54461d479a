"""The command line in this process, and what it may print."""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from typing import IO

from whycam.cli import main

from .rules import ANSWERED, REFUSED, Case, Fault, whole

_OURS = ("Traceback (most recent", "a fault of whycam", "Warning:", "most recent call last")


def command(case: Case, arguments: Sequence[str]) -> str:
    """Run it and look at exit code, output and files.

    Raises:
        Fault: another exit code than 0 and 2, a traceback, a refusal without a word, standard
            output that is not one JSON document where that was asked for, or a file that is not
            whole.
    """
    code: object = None
    with _printed() as (out, err):
        try:
            main(list(arguments))
        except SystemExit as stop:
            code = stop.code
        sys.stdout.flush()
        sys.stderr.flush()
    said, complained = out.getvalue(), err.getvalue()
    told = f"{' '.join(map(repr, arguments))}: exit code {code}\n{complained[-3000:]}"
    if code not in (0, 2):
        raise Fault(told)
    for words in _OURS:
        if words in complained or words in said:
            raise Fault(f"{words!r} in the output of {told}")
    # Of several images, the document says which could not be read.
    if code == 2 and not complained.strip() and '"error"' not in said:
        raise Fault(f"no word of complaint from {told}")
    if "--json" in arguments and not {"-h", "--help"}.intersection(arguments):
        _one_document(said, code == 0, told)
    whole(case.out)
    return ANSWERED if code == 0 else REFUSED


def _one_document(said: str, needed: bool, told: str) -> None:
    if not said.strip() and not needed:
        return
    try:
        json.loads(said, parse_constant=lambda name: _no(name))
    except ValueError as error:
        raise Fault(f"not one JSON document ({error}): {said[:500]!r} from {told}") from error


def _no(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


class _Kept:
    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def getvalue(self) -> str:
        self._file.seek(0)
        return self._file.read().decode(errors="replace")


@contextlib.contextmanager
def _printed() -> Iterator[tuple[_Kept, _Kept]]:
    """What is printed meanwhile, by libraries in C as well, as a pipe in UTF-8 would get it."""
    with contextlib.ExitStack() as stack:
        kept = []
        for number, name in ((1, "stdout"), (2, "stderr")):
            file = stack.enter_context(tempfile.TemporaryFile())
            before = os.dup(number)
            stack.callback(os.close, before)
            stack.callback(os.dup2, before, number)
            os.dup2(file.fileno(), number)
            # Its own descriptor: closing it must not close the number.
            stream = io.TextIOWrapper(
                open(os.dup(number), "wb"),  # noqa: SIM115 the stack closes it
                encoding="utf-8",
                errors="strict" if name == "stdout" else "backslashreplace",  # as Python begins
                write_through=True,
            )
            stack.enter_context(stream)
            stack.callback(setattr, sys, name, getattr(sys, name))
            setattr(sys, name, stream)
            kept.append(_Kept(file))
        yield kept[0], kept[1]
        # Read before the files go.
        for each in kept:
            text = each.getvalue()
            each.getvalue = lambda text=text: text  # type: ignore[method-assign, misc]
