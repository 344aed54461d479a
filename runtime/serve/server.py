"""Serve a web page for a running stream: its image, its numbers and its controls."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import threading
from collections.abc import Collection
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING

from ..errors import MissingExtraError, RequestError, WhyCamError
from ..explainer import Explainer
from ..live.capture_thread import Event
from ..live.controls import Controls, StreamFrame
from ..request import check_classifier
from .access_control import is_loopback, local_host_names, new_token, validate_token
from .broadcaster import Broadcaster
from .protocol import State, hello_message
from .still import MAX_BYTES, StillExplainer

if TYPE_CHECKING:
    import uvicorn

__all__ = ["Server"]

LOOPBACK = "127.0.0.1"
_MESSAGE_BYTES = 16 * 1024
_FAREWELL = 1.0  # seconds to send pages the end of the stream


class Server:
    """Serves the page on a thread of its own, from ``start`` to ``stop`` or in a ``with`` block.

    ``publish`` never waits. A page gets the newest frame once it has shown the earlier ones, at
    most 30 a second. Frames are encoded only if a page is connected. Can be started once.

    Args:
        controls: of the stream; pages read and change its look.
        explainer: explains images that are dropped on a page, between the frames of the stream;
            None: pages cannot send images.
        engine: name of the engine, shown on the page.
        source: name of the source, shown on the page.
        host: address or name to bind to; if other machines can reach it, a token is required.
        port: to bind to; 0: any free one, see ``url``.
        token: that pages must send; None: one is made if ``host`` requires it.
        clients: number of connected pages, at most.
        names: other host names of the server, as behind a proxy.

    Raises:
        RequestError: a token or port that cannot be used.
    """

    def __init__(
        self,
        controls: Controls,
        explainer: Explainer | None = None,
        *,
        engine: str = "",
        source: str = "",
        host: str = LOOPBACK,
        port: int = 8080,
        token: str | None = None,
        clients: int = 8,
        names: Collection[str] = (),
    ) -> None:
        check_classifier(controls.manifest)
        _check_port(port)
        if clients < 1:
            raise RequestError(f"clients must be 1 or more, not {clients}")
        self.token = None if token is None else validate_token(token)
        self.broadcaster = Broadcaster(controls)
        self._stills = None if explainer is None else StillExplainer(explainer)
        image_bytes = MAX_BYTES if self._stills else 0
        self._hello = hello_message(controls.manifest, engine, source, image_bytes)
        self._host, self._port, self._clients = host, port, clients
        self._names = frozenset(name.lower() for name in names)
        self._address = (host, port)
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop = asyncio.Event()

    def start(self) -> Server:
        """Bind to the address and start serving.

        Raises:
            RequestError: a host that is not this machine's, a port in use or not permitted.
            MissingExtraError: Starlette, Uvicorn or websockets is not installed.
        """
        if self._thread is not None:
            raise RequestError("a server can be started once: make another one")
        _check_extra()
        import uvicorn

        from .app import HEADERS, application

        bound = _bind(self._host, self._port)
        address, port = bound.getsockname()[:2]
        loopback = is_loopback(address)
        if not loopback and self.token is None:
            self.token = new_token()
        names = self._names if loopback else self._names | local_host_names() | {self._host.lower()}
        self._address = (_reachable(address), port)
        config = uvicorn.Config(
            application(
                self.broadcaster,
                self._stills,
                self._hello,
                self.token,
                self._clients,
                names,
                loopback,
            ),
            http="h11",
            ws="websockets-sansio",
            ws_max_size=_MESSAGE_BYTES,
            ws_per_message_deflate=False,  # JPEG is compressed
            lifespan="off",
            log_config=None,
            log_level="error",
            access_log=False,
            proxy_headers=False,
            server_header=False,
            headers=list(HEADERS.items()),
            timeout_graceful_shutdown=1,
        )
        config.load()
        ready = threading.Event()
        self._thread = threading.Thread(
            target=self._serve,
            args=(uvicorn.Server(config), bound, ready),
            name="whycam-page",
            daemon=True,
        )
        self._thread.start()
        ready.wait()
        return self

    @property
    def url(self) -> str:
        """Return the address to open in a browser, with the token where there is one."""
        host, port = self._address
        address = f"http://{f'[{host}]' if ':' in host else host}:{port}/"
        return address if self.token is None else f"{address}#token={self.token}"

    def publish(self, frame: StreamFrame) -> bool:
        """Show a frame on every page, from any thread; returns True at once."""
        self.broadcaster.offer(frame)
        return True

    def tell(self, state: State, text: str = "") -> None:
        """Show the stream's state on every page.

        Args:
            state: ``live``, ``lost`` or ``ended``.
            text: in words, as the reason of a loss.
        """
        self.broadcaster.tell(state, text)

    def tell_event(self, event: Event) -> None:
        """Show on every page that the source was lost or came back."""
        if event.kind == "lost":
            self.tell("lost", event.text)
        elif event.kind == "back":
            self.tell("live")

    def stop(self) -> None:
        """Tell the pages that the stream has ended, and end the thread, within 3 s."""
        self.broadcaster.end()
        if self._thread is None:
            return
        if self._loop is not None:
            with suppress(RuntimeError):  # it has ended by itself
                self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    def __enter__(self) -> Server:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if isinstance(error, WhyCamError):
            self.tell("ended", f"the stream has ended: {error}")
        self.stop()

    def _serve(self, server: uvicorn.Server, bound: socket.socket, ready: threading.Event) -> None:
        with bound:
            try:
                asyncio.run(self._run(server, bound, ready))
            finally:
                ready.set()

    async def _run(
        self, server: uvicorn.Server, bound: socket.socket, ready: threading.Event
    ) -> None:
        self._loop = asyncio.get_running_loop()
        with self.broadcaster.open():
            # Uvicorn handles signals on the main thread only, so not here.
            serving = asyncio.create_task(server.serve(sockets=[bound]))
            stopping = asyncio.create_task(self._stop.wait())
            ready.set()
            await asyncio.wait({serving, stopping}, return_when=asyncio.FIRST_COMPLETED)
            until = self._loop.time() + _FAREWELL
            while self.broadcaster.clients and self._loop.time() < until:
                await asyncio.sleep(0.01)
            server.should_exit = True
            await serving
            stopping.cancel()


def check(host: str, port: int, token: str | None) -> None:
    """Check that a server can start, before a model is loaded.

    Raises:
        RequestError: see ``Server``.
        MissingExtraError: see ``Server.start``.
    """
    _check_port(port)
    if token is not None:
        validate_token(token)
    _check_extra()
    _bind(host, port).close()


def _check_port(port: int) -> None:
    if not 0 <= port <= 65535:
        raise RequestError(f"a port is a number from 0 to 65535, not {port}")


def _check_extra() -> None:
    try:
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
        import websockets  # noqa: F401  Uvicorn looks for it when a page connects
    except ImportError as error:
        package = (error.name or "starlette").partition(".")[0]
        raise MissingExtraError(package, "serve", "the web page of a stream") from error


def _bind(host: str, port: int) -> socket.socket:
    """Open a listening socket.

    Raises:
        RequestError: see ``Server.start``.
    """
    try:
        addresses = socket.getaddrinfo(
            host or " ", port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except (OSError, UnicodeError) as error:
        raise RequestError(
            f"cannot serve on the host '{host}': there is no such address or name"
        ) from error
    # IPv4 first: ``localhost`` has both, and every client can use it.
    family, kind, protocol, _, address = min(addresses, key=lambda one: one[0] != socket.AF_INET)
    bound = socket.socket(family, kind, protocol)
    try:
        if os.name == "posix":  # a restart need not wait for old connections to time out
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
        bound.listen()
    except OSError as error:
        bound.close()
        raise RequestError(_why_not_bound(host, port, error)) from error
    return bound


def _why_not_bound(host: str, port: int, error: OSError) -> str:
    where = f"cannot serve on {host} port {port}"
    if error.errno == errno.EADDRINUSE:
        return f"{where}: the port is in use. Choose another, or 0 for any free one"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"{where}: the address is none of this machine's. 0.0.0.0 stands for all it has"
    if error.errno in (errno.EACCES, errno.EPERM):
        return f"{where}: not permitted. Ports from 1024 on need no rights"
    return f"{where}: {error.strerror or error}"


def _reachable(address: str) -> str:
    """Return an address to open in a browser; if bound to all, that of the default route."""
    if address not in ("0.0.0.0", "::"):
        return address
    family = socket.AF_INET6 if address == "::" else socket.AF_INET
    # Connecting a UDP socket sends nothing. The addresses are reserved for documentation.
    far = "2001:db8::1" if address == "::" else "192.0.2.1"
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((far, 9))
            return str(probe.getsockname()[0])
    except OSError:  # no default route
        return "localhost"
