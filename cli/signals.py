"""End a command on a signal as Ctrl-C does, so that every block cleans up."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

_AGAIN_S = 0.5  # until a signal that changed nothing is given again


class EndedBySignal(SystemExit):
    """A signal asks the process to end; the exit code is the one that shells expect."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.exit_code = 128 + number
        self.signal = signal.Signals(number).name


@contextmanager
def ending_by_signals() -> Iterator[None]:
    """Raise ``EndedBySignal`` within the block on SIGTERM and SIGHUP, where these are not ignored.

    By default these end a process at once, and leave half-written files. Ctrl-C raises
    ``KeyboardInterrupt`` as usual. Where other code loses such an exception, as an extension module
    does that turns it into an ``ImportError``, it is raised again half a second later.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    left = threading.Event()
    insistence = _Insistence(left)

    def end(number: int, _: FrameType | None) -> None:
        if insistence.is_own() and _is_ending():
            return  # blocks are cleaning up
        insistence.begin(number)
        _raise(number)

    before = {}
    for name in ("SIGTERM", "SIGHUP", "SIGINT"):  # Windows has no second one
        number = getattr(signal, name, None)
        usual = signal.default_int_handler if name == "SIGINT" else signal.SIG_DFL
        if number is not None and signal.getsignal(number) == usual:
            before[number] = signal.signal(number, end)
    try:
        yield
    finally:
        left.set()
        for number, handler in before.items():
            signal.signal(number, handler)


def _raise(number: int) -> NoReturn:
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise EndedBySignal(number)


def _is_ending() -> bool:
    """Tell whether the interrupted code handles an exception that a signal led to."""
    pending, seen = [sys.exc_info()[1]], set[int]()
    while pending:
        error = pending.pop()
        if error is None or id(error) in seen:
            continue
        if isinstance(error, EndedBySignal | KeyboardInterrupt):
            return True
        seen.add(id(error))
        pending += [error.__cause__, error.__context__]
    return False


class _Insistence:
    """Gives the main thread a signal again and again, until the block is left."""

    def __init__(self, left: threading.Event) -> None:
        self._left = left
        self._given = threading.Event()
        self._begun = False

    def is_own(self) -> bool:
        """Tell whether the signal that is handled now is one of these, and not a new one."""
        own = self._given.is_set()
        self._given.clear()
        return own

    def begin(self, number: int) -> None:
        """Begin, unless it has."""
        if self._begun or not hasattr(signal, "pthread_kill"):
            return
        self._begun = True
        threading.Thread(target=self._insist, args=(number,), daemon=True).start()

    def _insist(self, number: int) -> None:
        main = threading.main_thread().ident
        while not self._left.wait(_AGAIN_S):
            if main is not None:
                self._given.set()
                signal.pthread_kill(main, number)
