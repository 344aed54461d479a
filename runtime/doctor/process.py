"""Does a doctor's job in a process of its own."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec

from ..errors import EngineError
from .job import JOB, RESULT, Job


def in_process(job: Job, folder: Path, limit_s: float, kind: type[Any]) -> Any:
    """Do a job in a process of its own.

    Raises:
        EngineError: it crashed or took too long.
    """
    result = folder / RESULT
    result.unlink(missing_ok=True)
    (folder / JOB).write_bytes(msgspec.json.encode(job))
    command = [sys.executable, "-m", "whycam.runtime.doctor.job", str(folder)]
    try:
        done = subprocess.run(
            command, capture_output=True, check=False, timeout=limit_s, stdin=subprocess.DEVNULL
        )
    except subprocess.TimeoutExpired as error:
        raise EngineError(f"it was stopped after {limit_s:g} seconds") from error
    if done.returncode == 0 and result.is_file():
        return msgspec.json.decode(result.read_bytes(), type=kind)
    lines = done.stderr.decode(errors="replace").strip().splitlines()
    said = f": {lines[-1]}" if lines else ""
    raise EngineError(f"its process {_ended(done.returncode)}{said}")


def _ended(code: int) -> str:
    if code >= 0:
        return f"ended with code {code}"
    try:
        return f"was ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"was ended by signal {-code}"
