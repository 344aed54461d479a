"""Classify and explain images over HTTP: python service.py MODEL.onnx --port 8000

POST an image to /explain; /healthz, /readyz and /metrics are for those who run it. docs/service.md
has the requests, the answers and the limits.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import ipaddress
import os
import secrets
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal

import cv2
import numpy as np
import prometheus_client as prometheus
import uvicorn
from fastapi import Depends, FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

import whycam
from whycam.runtime.dynamic_batching import BatchReport, DynamicBatcher
from whycam.runtime.errors import BusyError, ImageError, RequestError
from whycam.runtime.images import open_image
from whycam.runtime.results import to_record

# Which status an error of whycam has; any other is the engine's, 500.
STATUS = {BusyError: 503, ImageError: 422, RequestError: 422}
IMAGE_TYPES = {"image/png": ".png", "image/jpeg": ".jpg", "image/webp": ".webp"}
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)


@dataclass(frozen=True)
class Limits:
    """What requests may cost: ``capacity`` images of ``pixels`` are held at most."""

    bytes: int = 10 * 2**20
    pixels: int = 16_000_000
    seconds: float = 10.0
    capacity: int = 64
    batch: int = 8
    wait_seconds: float = 0.005


class Metrics:
    """What Prometheus reads; a registry of its own, so that several services fit a process."""

    def __init__(self) -> None:
        self.registry = prometheus.CollectorRegistry()
        prometheus.ProcessCollector(registry=self.registry)
        histogram = partial(prometheus.Histogram, registry=self.registry)
        self.seconds = histogram("whycam_request_seconds", "Headers to answer", buckets=SECONDS)
        self.queued = histogram("whycam_queue_seconds", "Waiting for the network", buckets=SECONDS)
        self.run = histogram("whycam_run_seconds", "One run of a batch", buckets=SECONDS)
        self.batch = histogram("whycam_batch_size", "Images in a run", buckets=(1, 2, 4, 8, 16, 32))
        self.requests = prometheus.Counter(
            "whycam_requests", "Requests to /explain", ["status"], registry=self.registry
        )
        self.active = prometheus.Gauge(
            "whycam_active_requests", "Requests in work", registry=self.registry
        )

    def observe_batch(self, report: BatchReport) -> None:
        """Take the figures of a run of the network."""
        for seconds in report.queued:
            self.queued.observe(seconds)
        self.run.observe(report.seconds)
        self.batch.observe(len(report.queued))


def create_app(
    explainer: whycam.Explainer, limits: Limits | None = None, token: str | None = None
) -> FastAPI:
    """Build the service of a loaded model; ``token``: what /explain and /metrics ask for."""
    limits, manifest, metrics = limits or Limits(), explainer.manifest, Metrics()
    if manifest.preprocess.value_range is not None or manifest.preprocess.color == "bands":
        raise RequestError(
            "this service takes 8-bit images in colour or grey; the network does not"
        )
    batcher = DynamicBatcher(
        explainer,
        batch=limits.batch,
        wait_seconds=limits.wait_seconds,
        capacity=limits.capacity,
        observe=metrics.observe_batch,
    )
    readers = ThreadPoolExecutor(os.cpu_count(), "service-reader")  # as many decode at a time
    places = asyncio.Semaphore(limits.capacity)  # of requests in work, their upload included

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield  # Uvicorn comes back here when the requests in work are answered
        await asyncio.to_thread(batcher.close)
        readers.shutdown()

    async def on_reader(work: Callable[..., Any], *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(readers, work, *arguments)

    async def authorise(request: Request) -> None:
        sent = request.headers.get("authorization", "").encode()
        if token is not None and not secrets.compare_digest(sent, f"Bearer {token}".encode()):
            raise HTTPException(401, "send the token in the header Authorization: Bearer TOKEN")

    async def fail(request: Request, error: Exception) -> Response:
        response = to_failure(error)
        if request.url.path == "/explain":
            metrics.requests.labels(str(response.status_code)).inc()
        return response

    async def answer(request: Request, options: dict[str, Any], image: str) -> Response:
        deadline = time.monotonic() + limits.seconds
        data = await receive(request, limits.bytes)

        def submit() -> Any:
            if time.monotonic() > deadline:
                raise TimeoutError
            check_pixels(data, limits.pixels)
            return batcher.submit(data, **options)

        # A request that is given up here is cancelled there as well.
        found = await asyncio.wrap_future(await on_reader(submit))
        if image in IMAGE_TYPES:
            return Response(await on_reader(draw, found[0], IMAGE_TYPES[image]), media_type=image)
        return JSONResponse(await on_reader(to_json, manifest.model, found, image))

    handled = (Exception, HTTPException, RequestValidationError, whycam.WhyCamError)
    # The pages /docs and /redoc load scripts from elsewhere; /openapi.json says the same.
    app = FastAPI(
        title="whycam",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        exception_handlers=dict.fromkeys(handled, fail),
    )

    @app.post(
        "/explain",
        dependencies=[Depends(authorise)],
        openapi_extra={"requestBody": {"required": True, "content": {"image/*": {}}}},
    )
    async def explain(
        request: Request,
        target: Annotated[list[str] | None, Query(description="index, label or rank")] = None,
        method: str | None = None,
        tft: bool = "tft" in manifest.outputs,
        image: Literal["map", "overlay", "none"] = "map",
    ) -> Response:
        """Explain the image in the body: as JSON, or with ``Accept: image/png`` as its overlay."""
        if method == "scorecam":  # runs the network once for each channel: others would wait
            raise RequestError("scorecam takes minutes: use whycam explain")
        if places.locked():
            raise BusyError(f"{limits.capacity} requests are in work: try again in a moment")
        targets = [read_target(one) for one in target or ["-1"]]
        options = {"targets": targets, "method": method, "tft": tft}
        accepted = request.headers.get("accept", "").partition(",")[0].partition(";")[0].strip()
        kind = accepted if accepted in IMAGE_TYPES else image
        async with places:
            with metrics.active.track_inprogress(), metrics.seconds.time():
                try:
                    work = answer(request, options, kind)
                    response = await asyncio.wait_for(work, limits.seconds)
                except (TimeoutError, asyncio.TimeoutError) as error:
                    raise HTTPException(504, f"no answer within {limits.seconds:g} s") from error
        metrics.requests.labels("200").inc()
        return response

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        """Tell that the process answers."""
        return {"status": "ok"}

    @app.get("/readyz")
    async def readyz() -> Response:
        """Tell whether the next image would be taken."""
        ready = not batcher.closed and not places.locked()
        about = {"ready": ready, "model": manifest.model, "engine": explainer.engine.description}
        return JSONResponse(about, 200 if ready else 503)

    @app.get("/metrics", dependencies=[Depends(authorise)])
    async def read_metrics() -> Response:
        """Return the figures in Prometheus' format."""
        text = prometheus.generate_latest(metrics.registry)
        return Response(text, media_type=prometheus.CONTENT_TYPE_PLAIN_0_0_4)

    return app


def to_failure(error: Exception) -> JSONResponse:
    """Turn an error into an answer: its kind, and a message that says what to do."""
    kind, message, headers = type(error).__name__, str(error), {}
    if isinstance(error, HTTPException):
        status, kind, message = error.status_code, "HttpError", error.detail
    elif isinstance(error, RequestValidationError):
        status, kind = 422, "RequestError"
        message = "; ".join(f"{one['loc'][-1]}: {one['msg']}" for one in error.errors())
    elif isinstance(error, whycam.WhyCamError):
        status = next((code for each, code in STATUS.items() if isinstance(error, each)), 500)
    else:
        status, message = 500, "a fault of the service: its log says more"
    if status == 503:
        headers["Retry-After"] = "1"
    return JSONResponse({"error": {"kind": kind, "message": message}}, status, headers)


async def receive(request: Request, most: int) -> bytes:
    """Read the body, and stop where it is too long."""
    data = bytearray()
    async for part in request.stream():
        data += part
        if len(data) > most:
            raise HTTPException(413, f"the image file has more than {most:,} bytes")
    if not data:
        raise HTTPException(400, "send the image file as the body of the request")
    return bytes(data)


def check_pixels(data: bytes, most: int) -> None:
    """Refuse a large image before it is decoded."""
    width, height = open_image(data, lambda image: image.size, "the body")
    if width * height > most:
        raise HTTPException(413, f"{width} x {height} pixels are more than {most:,}")


def read_target(text: str) -> int | str:
    """Read a class: an index or a rank if it is a number, else a label."""
    digits = text.removeprefix("-")
    return int(text) if digits.isascii() and digits.isdigit() else text


def to_json(model: str, found: list[whycam.Explanation], image: str) -> dict[str, Any]:
    """Collect the answer for one image."""
    records = []
    for one in found:
        record = to_record("", one)
        del record["file"], record["top"]
        if image == "map":
            levels, place = np.rint(255 * one.map).astype(np.uint8), one.placement
            box = [place.left, place.top, place.right, place.bottom]
            record["map"] = {"png": in_base64(encode(levels, ".png")), "box": box}
        elif image == "overlay":
            record["overlay"] = {"jpeg": in_base64(draw(one, ".jpg"))}
        records.append(record)
    height, width = found[0].placement.image
    classes = [one._asdict() for one in found[0].top]
    size = {"height": height, "width": width}
    return {"model": model, "image": size, "classes": classes, "explanations": records}


def draw(explanation: whycam.Explanation, ending: str) -> bytes:
    """Draw the overlay as an image file."""
    return encode(explanation.overlay()[..., ::-1], ending)


def encode(pixels: np.ndarray, ending: str) -> bytes:
    """Encode grey [h, w] or BGR [h, w, 3] as an image file."""
    return bytes(cv2.imencode(ending, pixels)[1])


def in_base64(data: bytes) -> str:
    """Write bytes as JSON takes them."""
    return base64.b64encode(data).decode()


def main() -> None:
    """Load the model, and serve until SIGTERM; requests in work are still answered."""
    limits = Limits()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--threads", type=int, help="of one run [default: all cores]")
    parser.add_argument("--max-bytes", type=int, default=limits.bytes)
    parser.add_argument("--max-pixels", type=int, default=limits.pixels)
    parser.add_argument("--timeout", type=float, default=limits.seconds, help="seconds")
    parser.add_argument("--capacity", type=int, default=limits.capacity, help="requests in work")
    parser.add_argument("--batch", type=int, default=limits.batch, help="images of one run")
    parser.add_argument("--wait", type=float, default=limits.wait_seconds, help="seconds")
    o = parser.parse_args()
    limits = Limits(o.max_bytes, o.max_pixels, o.timeout, o.capacity, o.batch, o.wait)
    token = os.environ.get("WHYCAM_TOKEN") or None
    if token is None and not ipaddress.ip_address(o.host).is_loopback:
        sys.exit("other machines could connect: set WHYCAM_TOKEN to a secret that clients send")
    # Uvicorn raises the signal again once all is answered, which is the regular end.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        app = create_app(whycam.load(o.model, o.engine, o.threads), limits, token)
    except whycam.WhyCamError as error:
        sys.exit(f"error: {error}")
    uvicorn.run(
        app,
        host=o.host,
        port=o.port,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=int(limits.seconds) + 1,
    )


if __name__ == "__main__":
    main()
