"""Explain requests of many threads in common batches, as a server needs it."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from . import pipeline
from .batches import batch_size_for, join_batches
from .cam import Method
from .errors import BusyError, RequestError
from .explainer import Explainer
from .explanation import Explanation
from .images import ImageSource
from .pipeline import Prepared
from .pixels import read_pixels
from .request import RequestPlan, Thresholding, check_whole_image
from .targets import class_rows, resolve_targets

__all__ = ["BatchReport", "DynamicBatcher"]


@dataclass(frozen=True)
class BatchReport:
    """What one run of the network took.

    Attributes:
        queued: seconds that each of its requests waited.
        seconds: of the run: network, maps and thresholds.
    """

    queued: tuple[float, ...]
    seconds: float


@dataclass(frozen=True, eq=False)
class _Request:
    prepared: Prepared
    classes: int | list[int]
    plan: RequestPlan
    by_method: bool
    answer: Future[Any] = field(default_factory=Future)
    arrived: float = field(default_factory=time.monotonic)

    def fits(self, other: _Request) -> bool:
        """Tell whether both can go through the network in one batch."""
        shapes = (one.prepared.inputs.shape[1:] for one in (self, other))
        return self.plan == other.plan and len(set(shapes)) == 1


class DynamicBatcher:
    """Gathers requests of many threads, and sends those that fit together through the network.

    Images are read and prepared on the caller's thread, so an unreadable one is refused at once and
    delays nobody; a thread of the batcher runs the network. A request waits for others at most
    ``wait_seconds``, and not at all while no other is being read. Where a batch fails, its requests
    are run again one by one, so that only the one at fault fails.

    Attributes:
        batch: images of one run, at most: what the file and ``memory_mb`` of ``load`` allow of
            what was asked for.

    Args:
        explainer: loaded.
        batch: images of one run, at most.
        wait_seconds: how long the first request of a batch waits for others, at most.
        capacity: requests that are read, waiting or run, at most; each holds its image.
        observe: called after each run, on the batcher's thread; must not raise.

    Raises:
        RequestError: a number below its range.

    Example:
        >>> explainer = whycam.load("model.onnx")
        >>> with DynamicBatcher(explainer, batch=4) as batcher:
        ...     answers = [batcher.submit(path, tft=True) for path in ("a.jpg", "b.jpg")]
        ...     [answer.result().label for answer in answers]
        ['tabby', 'tabby']
    """

    def __init__(
        self,
        explainer: Explainer,
        *,
        batch: int = 8,
        wait_seconds: float = 0.005,
        capacity: int = 64,
        observe: Callable[[BatchReport], None] = lambda _: None,
    ) -> None:
        for name, value in (("batch", batch), ("capacity", capacity)):
            if value < 1:
                raise RequestError(f"{name} must be 1 or more, not {value}")
        if not wait_seconds >= 0:
            raise RequestError(f"wait_seconds must be 0 or more, not {wait_seconds}")
        allowed = batch_size_for(explainer.batch, explainer.manifest.batch, callers=1)
        self.batch = min(batch, allowed)
        self._explainer = explainer
        self._wait_seconds = wait_seconds
        self._capacity = capacity
        self._observe = observe
        self._changed = threading.Condition()
        self._waiting: deque[_Request] = deque()
        self._reading = self._running = 0
        self._closed = False
        # A daemon, so that a program that forgets to close can end.
        self._thread = threading.Thread(target=self._work, name="whycam-batcher", daemon=True)
        self._thread.start()

    @property
    def pending(self) -> int:
        """Return how many requests are read, waiting or run."""
        return self._reading + len(self._waiting) + self._running

    @property
    def closed(self) -> bool:
        """Tell whether it takes no more requests."""
        return self._closed

    def submit(
        self,
        image: ImageSource,
        targets: Any = None,
        method: Method | Sequence[Method] | None = None,
        tft: Thresholding = None,
    ) -> Future[Any]:
        """Read an image and queue it; may be called from any thread.

        Args:
            image: one, see ``Explainer.explain``.
            targets, method, tft: see ``Explainer.explain``.

        Returns:
            The future answer: what ``Explainer.explain`` returns for one image. Cancelled before
            its run, it costs no run.

        Raises:
            BusyError: ``capacity`` requests are pending, or it is closed.
            ImageError: the image cannot be read.
            RequestError: a class, method or setting that does not exist.
        """
        manifest = self._explainer.manifest
        check_whole_image(manifest)
        plan = self._explainer.plan(method, tft)
        (classes,) = resolve_targets(targets, 1, False, manifest)
        with self._changed:
            if self._closed:
                raise BusyError("no more images are taken: the server is stopping")
            if self.pending >= self._capacity:
                raise BusyError(
                    f"{self._capacity} images are waiting to be explained: try again in a moment"
                )
            self._reading += 1
        request = None
        by_method = method is not None and not isinstance(method, str)
        try:
            pixels = read_pixels(image, manifest.preprocess)
            request = _Request(pipeline.prepare([pixels], manifest), classes, plan, by_method)
        finally:
            with self._changed:
                self._reading -= 1
                if request is not None:
                    self._waiting.append(request)
                self._changed.notify_all()
        return request.answer

    def close(self, drain: bool = True) -> None:
        """Take no more requests, and end the thread.

        Args:
            drain: whether the requests that wait are still answered; else their futures are
                cancelled.
        """
        with self._changed:
            self._closed = True
            if not drain:
                while self._waiting:
                    self._waiting.popleft().answer.cancel()
            self._changed.notify_all()
        self._thread.join()

    def __enter__(self) -> DynamicBatcher:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close(drain=error is None)

    def _work(self) -> None:
        while (batch := self._next_batch()) is not None:
            if batch:
                self._answer(batch)
            with self._changed:
                self._running = 0

    def _next_batch(self) -> list[_Request] | None:
        """Wait for the next batch, without those that were cancelled; None: it is closed."""
        with self._changed:
            while True:
                batch = self._gathered()
                if not batch and self._closed and not self._reading:
                    return None
                remaining: float | None = None
                if batch:
                    remaining = batch[0].arrived + self._wait_seconds - time.monotonic()
                    if len(batch) == self.batch or remaining <= 0 or not self._reading:
                        break
                self._changed.wait(remaining)
            self._running = len(batch)
            for request in batch:
                self._waiting.remove(request)
        return [one for one in batch if one.answer.set_running_or_notify_cancel()]

    def _gathered(self) -> list[_Request]:
        """List the requests that can go with the one that waits longest."""
        fitting: list[_Request] = []
        for request in self._waiting:
            if len(fitting) < self.batch and request.fits(self._waiting[0]):
                fitting.append(request)
        return fitting

    def _answer(self, batch: Sequence[_Request]) -> None:
        begun = time.monotonic()
        try:
            found = self._explainer.explain_prepared(
                join_batches(request.prepared for request in batch),
                class_rows([request.classes for request in batch]),
                batch[0].plan,
            )
        except Exception as error:  # whatever it is, callers wait for an answer
            if len(batch) == 1:
                batch[0].answer.set_exception(error)
                return
            for request in batch:
                self._answer([request])
            return
        queued = tuple(begun - request.arrived for request in batch)
        self._observe(BatchReport(queued, time.monotonic() - begun))
        for request, by_method in zip(batch, found, strict=True):
            request.answer.set_result(_result_of(request, by_method))


def _result_of(request: _Request, by_method: dict[Method, list[Explanation]]) -> Any:
    """Shape the explanations of one image as ``Explainer.explain`` does."""
    found: dict[Method, Any] = dict(by_method)
    if not isinstance(request.classes, list):
        found = {method: listed[0] for method, listed in by_method.items()}
    return found if request.by_method else next(iter(found.values()))
