"""A stream of synthetic images for the page's tests, and a client for its WebSocket."""

from __future__ import annotations

import json
import threading
from typing import Any
from urllib.parse import urlsplit

import numpy as np

import whycam
from whycam.runtime.live.controls import Controls, StreamFrame, Timing
from whycam.runtime.overlay import Style
from whycam.runtime.serve.protocol import unpack
from whycam.runtime.serve.server import Server


def frame_of(
    explainer: whycam.Explainer, controls: Controls, index: int, size: tuple[int, int] = (72, 128)
) -> StreamFrame:
    """A frame whose image depends on its index, explained and drawn as the look says."""
    rng = np.random.default_rng(index)
    small = rng.integers(0, 256, (3, 4, 3)).astype(np.uint8)
    image = np.kron(small, np.ones((-(-size[0] // 3), -(-size[1] // 4), 1), np.uint8))
    image = np.ascontiguousarray(image[: size[0], : size[1]])
    look = controls.look
    tft = None if look.tft == "off" else True
    found = explainer.explain(image, look.target, look.method, tft)
    probabilities = explainer.classify(image)[0]
    order = np.argsort(-probabilities)
    label = explainer.manifest.label
    return StreamFrame(
        index=index,
        seconds=index / 25,
        original=image,
        image=found.overlay(Style(opacity=look.opacity)),
        explanation=found,
        ranking=tuple((int(i), label(int(i)), float(probabilities[i])) for i in order),
        timing=Timing(0.001, 0.002, 0.001, 0.005, 25.0, 9),
        dropped=3,
        look=look,
        live=True,
    )


class Publisher:
    """Publishes one image again and again, drawn as the look says, until the block ends."""

    def __init__(self, server: Server, explainer: whycam.Explainer, size: tuple[int, int]) -> None:
        self._server, self._explainer, self._size = server, explainer, size
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Publisher:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(0.05):
            controls = self._server.broadcaster.controls
            self._server.publish(frame_of(self._explainer, controls, 7, self._size))


class Page:
    """What a page does, by hand: nothing is said to be seen that the test does not say."""

    def __init__(self, url: str, token: str | None = None) -> None:
        from websockets.sync.client import connect

        offered = ["whycam.1", f"token.{token}"] if token else ["whycam.1"]
        place = f"ws://127.0.0.1:{urlsplit(url).port}/stream"
        self.socket = connect(place, subprotocols=offered, compression=None)

    def __enter__(self) -> Page:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def say(self, message: Any) -> None:
        self.socket.send(message if isinstance(message, str | bytes) else json.dumps(message))

    def hear(self, kind: str, seconds: float = 5) -> dict[str, Any]:
        """The next message of a kind; others are passed over."""
        while True:
            message = self.socket.recv(seconds)
            if isinstance(message, bytes):
                if kind == "frame":
                    numbers, jpeg = unpack(message)
                    return {**numbers, "jpeg": jpeg}
            elif json.loads(message)["kind"] == kind:
                return json.loads(message)

    def see(self, seconds: float = 5) -> dict[str, Any]:
        """The next frame, said to be seen."""
        frame = self.hear("frame", seconds)
        self.say({"kind": "seen", "sequence": frame["sequence"]})
        return frame
