"""Run Python in a process of its own, so that a library that crashes or hangs ends only that."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Sequence

from .errors import EngineError


def run_python(arguments: Sequence[str], limit_s: float | None = None) -> str:
    """Run this interpreter in a process of its own and wait for it.

    Args:
        arguments: of the interpreter, as ``["-m", "package.module", "argument"]``.
        limit_s: seconds after which it is stopped; None: no limit.

    Returns:
        Its standard output.

    Raises:
        EngineError: it crashed or took too long; the message begins with "it" or "its process".
    """
    try:
        done = subprocess.run(
            [sys.executable, *arguments],
            capture_output=True,
            check=False,
            timeout=limit_s,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired as error:
        raise EngineError(f"it was stopped after {limit_s:g} seconds") from error
    if done.returncode == 0:
        return done.stdout.decode(errors="replace")
    lines = done.stderr.decode(errors="replace").strip().splitlines()
    reason = f": {lines[-1]}" if lines else ""
    raise EngineError(f"its process {_describe_end(done.returncode)}{reason}")


def _describe_end(code: int) -> str:
    if code >= 0:
        return f"ended with code {code}"
    try:
        return f"was ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"was ended by signal {-code}"
