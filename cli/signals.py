"""End a command on a signal as Ctrl-C does, so that every block cleans up."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn


class EndedBySignal(SystemExit):
    """A signal asks the process to end; the exit code is the one that shells expect."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.exit_code = 128 + number
        self.signal = signal.Signals(number).name


@contextmanager
def ending_by_signals() -> Iterator[None]:
    """Raise ``EndedBySignal`` within the block on SIGTERM and SIGHUP, where these are not ignored.

    By default these end a process at once, and leave half-written files.
    """

    def end(number: int, _: FrameType | None) -> NoReturn:
        raise EndedBySignal(number)

    before = {}
    if threading.current_thread() is threading.main_thread():
        for name in ("SIGTERM", "SIGHUP"):  # Windows has no second one
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) == signal.SIG_DFL:
                before[number] = signal.signal(number, end)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
