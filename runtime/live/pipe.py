"""Pass items between two threads through a bounded queue that either side can end."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")
U = TypeVar("U")


class Pipe(Generic[T]):
    """A bounded queue from one thread to another.

    Attributes:
        dropped: how many items were dropped for newer ones.

    Args:
        size: how many items it holds at most.
        latest: whether a full queue drops its oldest item; else ``put`` waits.
    """

    def __init__(self, size: int, latest: bool = False) -> None:
        self.dropped = 0
        self._size = size
        self._latest = latest
        self._items: deque[T] = deque()
        self._changed = threading.Condition()
        self._ended = False
        self._closed = False
        self._error: BaseException | None = None

    def put(self, item: T) -> bool:
        """Add an item; returns False if the other side takes no more."""
        with self._changed:
            if self._latest and len(self._items) >= self._size and not self._closed:
                self._items.popleft()
                self.dropped += 1
            while len(self._items) >= self._size and not self._closed:
                self._changed.wait()
            if self._closed or self._ended:
                return False
            self._items.append(item)
            self._changed.notify_all()
            return True

    def end(self, error: BaseException | None = None) -> None:
        """End the queue after its last item; an error is then raised where items are taken."""
        with self._changed:
            if not self._ended:
                self._ended, self._error = True, error
            self._changed.notify_all()

    def close(self) -> None:
        """Stop ``put`` and iteration at once, whatever is waiting.

        Changes nothing but a flag, so that a signal handler may call it at any moment.
        """
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        with self._changed:
            while not self._items and not self._ended and not self._closed:
                self._changed.wait()
            if self._closed:
                raise StopIteration
            if self._items:
                item = self._items.popleft()
                self._changed.notify_all()
                return item
            if self._error is not None:
                raise self._error
            raise StopIteration


def start_stage(
    name: str, work: Callable[[T], U], source: Pipe[T], sink: Pipe[U]
) -> threading.Thread:
    """Start a thread that applies ``work`` to each item of one pipe and puts it into another.

    It ends when either pipe ends; an error of ``work`` ends both pipes.
    """

    def run() -> None:
        try:
            for item in source:
                if not sink.put(work(item)):
                    break
        except BaseException as error:
            sink.end(error)
        else:
            sink.end()
        finally:
            source.close()

    thread = threading.Thread(target=run, name=f"whycam {name}", daemon=True)
    thread.start()
    return thread
