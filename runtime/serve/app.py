"""Serve the page's files, and one WebSocket for each page."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from importlib import resources
from pathlib import PurePosixPath

from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.websockets import WebSocket, WebSocketDisconnect

from ..errors import WhyCamError
from .access_control import is_allowed_host, is_same_origin, token_matches
from .broadcaster import Broadcaster, Client
from .protocol import FrameShown, look_message, read_message, refusal_message, state_message
from .still import StillExplainer

PROTOCOL = "whycam.1"
TOKEN_PREFIX = "token."

# Close codes that the page puts into words.
ENDED, WRONG_TOKEN, FULL = 1001, 4401, 4429

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}

_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
}


def application(
    broadcaster: Broadcaster,
    stills: StillExplainer | None,
    hello: str,
    token: str | None,
    clients: int,
    names: Collection[str],
    loopback: bool,
) -> ASGIApp:
    """Build the web application.

    Args:
        broadcaster: of the stream.
        stills: explains the images that pages send; None: they may send none.
        hello: the first message to every page.
        token: that pages must send; None: none is needed.
        clients: number of connected pages, at most.
        names: host names of the server, see ``is_allowed_host``.
        loopback: whether the server can be reached from this machine alone.
    """

    async def stream(socket: WebSocket) -> None:
        # Not the scope's own list, which some versions of Uvicorn leave in one piece.
        lines = socket.headers.getlist("sec-websocket-protocol")
        offered = [name.strip() for line in lines for name in line.split(",")]
        await socket.accept(PROTOCOL if PROTOCOL in offered else None)
        tokens = [
            name.removeprefix(TOKEN_PREFIX) for name in offered if name.startswith(TOKEN_PREFIX)
        ]
        if not token_matches(tokens[0] if tokens else "", token):
            await socket.close(WRONG_TOKEN, "the token is missing or wrong")
        elif broadcaster.clients >= clients:
            await socket.close(FULL, f"{clients} pages are connected, no more are allowed")
        else:
            with broadcaster.client() as client:
                await _session(socket, client, broadcaster, hello)

    async def explain(request: Request) -> Response:
        scheme, _, received = request.headers.get("authorization", "").partition(" ")
        if not token_matches(received if scheme.lower() == "bearer" else "", token):
            return PlainTextResponse("the token is missing or wrong", 401)
        if stills is None:
            return PlainTextResponse("this stream explains no images that a page sends", 404)
        try:
            message = await stills.explain(request.stream(), broadcaster.controls.look)
        except WhyCamError as error:
            return PlainTextResponse(str(error), 422)
        except ClientDisconnect:  # nobody is left to read the answer
            return Response(status_code=400)
        return Response(message, media_type="application/octet-stream")

    routes = [_file(path, data) for path, data in page_files().items()]
    routes.append(Route("/explain", explain, methods=["POST"]))
    inner = Starlette(routes=[*routes, WebSocketRoute("/stream", stream)])
    inner.router.redirect_slashes = False
    return _AccessControl(inner, names, loopback)


def page_files() -> dict[str, bytes]:
    """Read the page's files, by the path they are served under."""
    folder = resources.files(__package__) / "page"
    files = {entry.name: entry.read_bytes() for entry in folder.iterdir() if entry.is_file()}
    return {
        "/" if name == "index.html" else f"/{name}": data
        for name, data in files.items()
        if PurePosixPath(name).suffix in _TYPES
    }


def _file(path: str, data: bytes) -> Route:
    kind = _TYPES[PurePosixPath(path).suffix or ".html"]

    async def get(_: Request) -> Response:
        return Response(data, headers={"Content-Type": kind})

    return Route(path, get)


class _AccessControl:
    """Refuses requests whose host is not this server, and WebSockets and POSTs of other pages."""

    def __init__(self, inner: ASGIApp, names: Collection[str], loopback: bool) -> None:
        self._inner, self._names, self._loopback = inner, names, loopback

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        host = headers.get("host")
        known = is_allowed_host(host, self._names, self._loopback)
        if scope["type"] == "websocket":
            if not known or not is_same_origin(headers.get("origin"), host):
                await send({"type": "websocket.close", "code": 1008})  # answered with 403
                return
        elif not known:
            refusal = PlainTextResponse("This server does not go by that name.", 403)
            await refusal(scope, receive, send)
            return
        elif scope["method"] == "POST" and not is_same_origin(headers.get("origin"), host):
            refusal = PlainTextResponse("This server answers its own page alone.", 403)
            await refusal(scope, receive, send)
            return
        await self._inner(scope, receive, send)


async def _session(socket: WebSocket, client: Client, broadcaster: Broadcaster, hello: str) -> None:
    await socket.send_text(hello)
    tasks = {
        asyncio.create_task(_send(socket, client, broadcaster)),
        asyncio.create_task(_receive(socket, client, broadcaster)),
    }
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in done:
        error = task.exception()
        if error is not None and not isinstance(error, WebSocketDisconnect):
            raise error


async def _send(socket: WebSocket, client: Client, broadcaster: Broadcaster) -> None:
    """Send whatever is new; of frames only the newest."""
    while True:
        await client.wake.wait()
        client.wake.clear()
        ended = broadcaster.ended
        if client.wants(broadcaster.sequence):
            sequence, message = await broadcaster.encoded_frame()
            client.mark_sent(sequence)
            await socket.send_bytes(message)
            client.wake.set()  # another may have come meanwhile
        look = broadcaster.controls.look
        if client.look != look:
            client.look = look
            await socket.send_text(look_message(look))
        if client.state != broadcaster.state:
            client.state = broadcaster.state
            await socket.send_text(state_message(*broadcaster.state))
        if ended:
            await socket.close(ENDED, "the stream has ended")
            return


async def _receive(socket: WebSocket, client: Client, broadcaster: Broadcaster) -> None:
    """Handle a page's messages one after the other."""
    while True:
        received = await socket.receive()
        if received["type"] == "websocket.disconnect":
            return
        try:
            request = read_message(received.get("text") or received.get("bytes") or b"")
            if isinstance(request, FrameShown):
                client.mark_shown(request.sequence)
            else:
                broadcaster.controls.change(**request.look)
                broadcaster.wake()
        except WhyCamError as error:
            await socket.send_text(refusal_message(str(error), broadcaster.controls.look))
