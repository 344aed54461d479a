"""Broadcast the newest frame to any number of pages, without making the stream wait."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from ..live.controls import Controls, Look, StreamFrame
from .protocol import State, pack

# Frames sent to a page and not yet shown: one on its way, one being drawn.
_UNDER_WAY = 2
# More would look no better, and encoding takes time from the stream on the same cores.
_MAX_FPS = 30.0


class Client:
    """A connected page, and the frames sent to it; used in the event loop alone."""

    def __init__(self) -> None:
        self.wake = asyncio.Event()
        self.wake.set()
        self.look: Look | None = None
        self.state: tuple[State, str] | None = None
        self._sent = 0
        self._under_way: list[int] = []

    def mark_sent(self, sequence: int) -> None:
        """Note that a frame was sent."""
        self._sent = sequence
        self._under_way.append(sequence)

    def mark_shown(self, sequence: int) -> None:
        """Note that the page has shown a frame, and all before it."""
        self._under_way = [sent for sent in self._under_way if sent > sequence]
        self.wake.set()

    def wants(self, sequence: int) -> bool:
        """Tell whether to send a frame: it is new, and the page has shown earlier ones."""
        return sequence > self._sent and len(self._under_way) < _UNDER_WAY


class Broadcaster:
    """Hands frames from the stream's thread to the pages' event loop.

    ``offer``, ``tell`` and ``end`` may be called from any thread, before, while and after the loop
    runs; the rest belongs to the loop.

    Attributes:
        controls: of the stream.
        state: of the stream, with a text for people.
        ended: whether the stream has ended, so that pages are disconnected.
        encoded: number of images encoded.
    """

    def __init__(self, controls: Controls) -> None:
        self.controls = controls
        self.state: tuple[State, str] = ("live", "")
        self.ended = False
        self.encoded = 0
        self._newest: tuple[int, StreamFrame | None] = (0, None)
        self._clients: set[Client] = set()
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._encoder: ThreadPoolExecutor | None = None
        self._encoding: asyncio.Future[tuple[int, bytes]] | None = None
        self._not_before = 0.0

    @contextmanager
    def open(self) -> Iterator[None]:
        """Connect with the running event loop while the block runs."""
        with ThreadPoolExecutor(1, "whycam-page-jpeg") as self._encoder:
            with self._lock:
                self._loop = asyncio.get_running_loop()
            try:
                yield
            finally:
                with self._lock:
                    self._loop = None

    def offer(self, frame: StreamFrame) -> None:
        """Replace the newest frame; returns within microseconds."""
        with self._lock:
            self._newest = (self._newest[0] + 1, frame)
        self._call_wake()

    def tell(self, state: State, text: str) -> None:
        """Set the stream's state."""
        self.state = (state, text)
        self._call_wake()

    def end(self) -> None:
        """End the broadcast; pages are disconnected."""
        if self.state[0] != "ended":
            self.state = ("ended", "the stream has ended")
        self.ended = True
        self._call_wake()

    def _call_wake(self) -> None:
        with self._lock:
            if self._loop is not None and self._clients:
                self._loop.call_soon_threadsafe(self.wake)

    def wake(self) -> None:
        """Wake every page's task, to send what has changed."""
        for client in self._clients:
            client.wake.set()

    @property
    def clients(self) -> int:
        """Count the connected pages."""
        return len(self._clients)

    @property
    def sequence(self) -> int:
        """Return the number of the newest frame; 0 before the first."""
        return self._newest[0]

    @contextmanager
    def client(self) -> Iterator[Client]:
        """Connect a page while the block runs."""
        client = Client()
        with self._lock:
            self._clients.add(client)
        try:
            yield client
        finally:
            with self._lock:
                self._clients.discard(client)

    async def encoded_frame(self) -> tuple[int, bytes]:
        """Encode the newest frame, and return its number and message.

        Calls during an encoding share its result.
        """
        last = self._encoding
        if last is None or (
            last.done() and (last.exception() is not None or last.result()[0] < self.sequence)
        ):
            last = self._encoding = asyncio.ensure_future(self._encode())
        return await asyncio.shield(last)

    async def _encode(self) -> tuple[int, bytes]:
        loop = asyncio.get_running_loop()
        if not self.ended:
            await asyncio.sleep(self._not_before - loop.time())
        self._not_before = loop.time() + 1 / _MAX_FPS
        sequence, frame = self._newest
        assert frame is not None, "asked for a frame before there is one"
        self.encoded += 1
        return sequence, await loop.run_in_executor(self._encoder, pack, sequence, frame)
