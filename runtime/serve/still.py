"""Explain an image that a page sends, while the stream goes on."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress

import msgspec

from ..errors import EngineError, ImageError, RequestError, WhyCamError, reason_of
from ..explainer import Explainer
from ..images import RGBImage, open_image, read_image, without_warnings
from ..live.annotate import Overlay
from ..live.capture_thread import Frame
from ..live.controls import Controls, Look, StreamFrame, Timing
from ..live.frames import FrameExplainer
from .protocol import pack

MAX_BYTES = 20 * 2**20
_FILE = "the file"  # as errors call it; the page adds its name
_MAX_PIXELS = 50_000_000  # 150 MB as RGB
_MAX_WAITING = 4  # images that are received, waiting or explained
_RECEIVE_SECONDS = 60.0


class StillExplainer:
    """Explains one image after the other, on a thread of its own; used in one event loop alone.

    The thread is a daemon, so that a method that takes minutes does not hold up the end of the
    server.

    Args:
        explainer: of the stream.
    """

    def __init__(self, explainer: Explainer) -> None:
        self._explainer = explainer
        self._turn = asyncio.Lock()
        self._waiting = 0

    async def explain(self, body: AsyncIterator[bytes], look: Look) -> bytes:
        """Receive the bytes of an image file, and explain and draw it.

        Args:
            body: the file in parts.
            look: how to explain and draw.

        Returns:
            A message of ``pack`` with the number 0.

        Raises:
            ImageError: it is too large, arrives too slowly, or cannot be read.
            RequestError: too many images are waiting, or the look cannot be used.
            EngineError: the engine failed.
        """
        if self._waiting >= _MAX_WAITING:
            raise RequestError(
                f"{_MAX_WAITING} images are being explained already: try again in a moment"
            )
        self._waiting += 1
        try:
            data = await asyncio.wait_for(_receive(body), _RECEIVE_SECONDS)
            async with self._turn:
                return await _run_in_thread(lambda: explain_still(self._explainer, data, look))
        except asyncio.TimeoutError as error:
            raise ImageError(
                f"the image did not arrive within {_RECEIVE_SECONDS:.0f} s: send a smaller one"
            ) from error
        finally:
            self._waiting -= 1


def explain_still(explainer: Explainer, data: bytes, look: Look) -> bytes:
    """Explain and draw an image file as the stream's frames are, but alone.

    Args:
        explainer: of the stream.
        data: the image file.
        look: how to explain and draw; nothing is smoothed, and ``track`` is ``every``.

    Returns:
        A message of ``pack`` with the number 0.

    Raises:
        ImageError, RequestError, EngineError: see ``StillExplainer.explain``.
    """
    image, read = _timed(lambda: _read(data))
    alone = msgspec.structs.replace(
        look, smoothing=0.0, tft="every" if look.tft == "track" else look.tft
    )
    frames = FrameExplainer(explainer, Controls(explainer.manifest, alone), "balanced", None, None)
    explained = frames.prepare_and_explain(Frame(0, 0.0, image, read, time.perf_counter()))
    explanation = explained.explanation
    if explanation is None:
        raise RequestError("a page shows the classes of whole images, and this is a detector")
    overlay = Overlay(
        alone.opacity,
        alone.smoothing,
        alone.threshold,
        alone.contour,
        colormap=alone.colormap,
        view=alone.view,
    )
    drawn, draw = _timed(lambda: overlay.draw(image, explanation))
    frame = StreamFrame(
        index=0,
        seconds=0.0,
        original=image,
        image=drawn,
        explanation=explanation,
        ranking=explained.ranking,
        timing=Timing(
            read=read,
            explain=explained.seconds,
            draw=draw,
            latency=read + explained.seconds + draw,
            fps=0.0,
            evaluations=explained.evaluations,
        ),
        dropped=0,
        look=alone,
        live=False,
    )
    return pack(0, frame)


async def _receive(body: AsyncIterator[bytes]) -> bytes:
    received = bytearray()
    async for part in body:
        received += part
        if len(received) > MAX_BYTES:
            raise ImageError(
                f"the image file has more than {MAX_BYTES // 2**20} MiB: scale it down, or use "
                "whycam explain"
            )
    return bytes(received)


def _read(data: bytes) -> RGBImage:
    with without_warnings():  # of Pillow, about large images: they are refused here
        width, height = open_image(data, lambda image: image.size, _FILE)
    if width * height > _MAX_PIXELS:
        raise ImageError(
            f"the image has {width} x {height} pixels, more than {_MAX_PIXELS:,}: scale it down, "
            "or use whycam explain"
        )
    return read_image(data, _FILE)


def _timed(work: Callable[[], RGBImage]) -> tuple[RGBImage, float]:
    begun = time.perf_counter()
    return work(), time.perf_counter() - begun


async def _run_in_thread(work: Callable[[], bytes]) -> bytes:
    """Run work on a daemon thread; an executor's threads would be waited for.

    Raises:
        WhyCamError: of the work; any other error is an ``EngineError``.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[bytes] = loop.create_future()

    def settle(result: bytes | None, error: WhyCamError | None) -> None:
        if done.cancelled():
            return
        if error is not None:
            done.set_exception(error)
        elif result is not None:
            done.set_result(result)

    def run() -> None:
        result: bytes | None = None
        failure: WhyCamError | None = None
        try:
            result = work()
        except WhyCamError as error:
            failure = error
        except Exception as error:  # of the engine or a decoder: the stream goes on
            failure = EngineError(f"the image cannot be explained: {reason_of(error)}")
        with suppress(RuntimeError):  # the loop is closed: the server has ended
            loop.call_soon_threadsafe(settle, result, failure)

    threading.Thread(target=run, name="whycam-page-image", daemon=True).start()
    return await done
