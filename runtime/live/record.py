"""Write a stream's numbers, one JSON line a frame."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec

from ..errors import OutputError
from ..files import replacing
from .controls import StreamFrame

__all__ = ["RecordFile", "to_record"]


def to_record(frame: StreamFrame) -> dict[str, Any]:
    """Collect the numbers of a frame, ready for JSON.

    ``index`` is the class explained; a detector's frame has a list of ``detections`` instead.
    """
    timing = {name: round(value, 6) for name, value in msgspec.to_builtins(frame.timing).items()}
    explained: dict[str, Any]
    if frame.explanation is None:
        explained = {"detections": [one.to_dict() for one in frame.detections or ()]}
    else:
        ranking = [
            {"index": index, "label": label, "probability": probability}
            for index, label, probability in frame.ranking
        ]
        explained = {**frame.explanation.to_dict(), "ranking": ranking}
    return {
        "frame": frame.index,
        "seconds": round(frame.seconds, 6),
        **explained,
        "dropped": frame.dropped,
        "reused": frame.reused,
        "timing": timing,
    }


class RecordFile:
    """A JSON Lines file being written; a context manager.

    It has a temporary name until ``close``, which keeps every line written so far, also after an
    error or an interruption.

    Raises:
        OutputError: the place cannot be written.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._stack = ExitStack()
        temporary = self._stack.enter_context(replacing(self.path))
        self._file = temporary.open("wb")

    def __enter__(self) -> RecordFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def write(self, frame: StreamFrame) -> None:
        """Add a frame.

        Raises:
            OutputError: it cannot be written.
        """
        try:
            self._file.write(msgspec.json.encode(to_record(frame)) + b"\n")
        except OSError as error:
            raise OutputError(f"cannot write {self.path}: {error.strerror or error}") from error

    def close(self) -> None:
        """Finish the file and give it its name.

        Raises:
            OutputError: it could not be finished.
        """
        with self._stack:
            self._file.close()
