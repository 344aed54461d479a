"""Explanations over a video, frame by frame: reader and network on threads of their own."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .annotate import Overlay
from .cam import Method
from .errors import RequestError
from .explainer import Explainer, Images
from .explanation import Explanation
from .live import Controls, Look, StreamFrame, Sweep, Timing
from .pipe import Pipe, stage
from .preprocess import Placement
from .reader import Event, Frame, Reader
from .source import find_source
from .track import FORWARDS, Tracker

_RANKED = 5
_FPS_OVER = 30  # frames


@dataclass(frozen=True, eq=False)
class _Prepared:
    """A frame with what the network is fed of it."""

    frame: Frame
    images: Images
    placement: Placement
    seconds: float


@dataclass(frozen=True, eq=False)
class _Explained:
    """A frame with its explanation."""

    frame: Frame
    explanation: Explanation
    ranking: tuple[tuple[int, str, float], ...]
    look: Look
    seconds: float
    forwards: int


class Stream:
    """The frames of a source, explained and drawn, as long as it is iterated.

    A context manager; ``close`` ends its threads, and so does the end of the iteration. Errors of
    any thread are raised where the frames are taken.

    Attributes:
        controls: what it explains and draws with; any thread may change it between two frames.
        source: in words.
        live: whether frames come at their own pace. If so, or with ``drop``, old frames give way
            to new ones where the network is slower.
        fps: frames a second that the source gives, or 0 where it does not say.
        total: how many frames the source has, or None.

    Args:
        explainer: explains them.
        source: see ``find_source``.
        look: how to explain and draw.
        fps: take at most so many frames a second of the source; the rate of pictures, which have
            none.
        drop: whether old frames give way to new ones; None: for live sources only. A file is
            then played at its own pace.
        loop: a file begins again when it ends.
        limit: end after so many frames.
        caption: whether label, probability, threshold and speed are written over the frames.
        forwards: passes a frame that ``tft="track"`` spends on thresholds, on average.
        stall: seconds without a frame after which a live source counts as lost.
        retries: how often a lost source is opened again; None: until it comes back.
        tell: called with each ``Event``, on another thread.

    Raises:
        SourceError: the source cannot be opened.
        RequestError: a setting that cannot be used with this file.
    """

    def __init__(
        self,
        explainer: Explainer,
        source: Any,
        look: Look | None = None,
        *,
        fps: float | None = None,
        drop: bool | None = None,
        loop: bool = False,
        limit: int | None = None,
        caption: bool = True,
        forwards: float = FORWARDS,
        stall: float = 5.0,
        retries: int | None = None,
        tell: Callable[[Event], None] = lambda _: None,
    ) -> None:
        _check_numbers(fps, limit, stall, retries)
        self.controls = Controls(explainer.manifest, look)
        self._explainer = explainer
        self._tracker = Tracker(explainer.probabilities, forwards)
        self._tracked: tuple[Method | None, bool] = (None, False)
        self._overlay = Overlay(caption=caption)
        self._limit, self._given = limit, 0
        self._tell = tell
        self._size: tuple[int, int] | None = None
        self._drawn: deque[float] = deque(maxlen=_FPS_OVER)
        self._latency = 0.0
        found = find_source(source, fps)
        if loop and (found.live or not found.again):
            raise RequestError(f"{found.name} cannot begin again: loop is for files")
        self.source, self.live = found.name, found.live
        dropping = found.live if drop is None else drop
        self._reader = Reader(
            found, drop=dropping, loop=loop, fps=fps, stall=stall, retries=retries, tell=tell
        )
        self.fps, self.total = self._reader.pace, self._reader.total
        frames = self._reader.frames
        self._explained: Pipe[_Explained] = Pipe(1)
        self._pipes: list[Pipe[Any]] = [self._explained]
        if dropping:
            # Prepared when the network is free, and not before: a frame that waits grows old.
            stages = [stage("explainer", self._explain_frame, frames, self._explained)]
        else:
            prepared: Pipe[_Prepared] = Pipe(1)
            self._pipes.append(prepared)
            stages = [
                stage("preparation", self._prepare, frames, prepared),
                stage("explainer", self._explain, prepared, self._explained),
            ]
        self._threads = stages

    @property
    def dropped(self) -> int:
        """Frames that gave way to newer ones so far."""
        return self._reader.frames.dropped

    @property
    def corrupt(self) -> int:
        """Frames that could not be decoded so far."""
        return self._reader.corrupt

    @property
    def reconnects(self) -> int:
        """How often a lost source came back."""
        return self._reader.reconnects

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[StreamFrame]:
        return self

    def __next__(self) -> StreamFrame:
        if self._limit is not None and self._given >= self._limit:
            self.close()
            raise StopIteration
        try:
            explained = next(self._explained)
        except BaseException:
            self.close()
            raise
        self._given += 1
        return self._draw(explained)

    def stop(self) -> None:
        """End the iteration at its next step, from any thread or signal handler."""
        self._explained.close()

    def close(self) -> None:
        """End all threads; a read or a run of the network under way is waited for a moment."""
        for pipe in self._pipes:
            pipe.close()
        self._reader.close()
        for thread in self._threads:
            thread.join(5.0)

    def _prepare(self, frame: Frame) -> _Prepared:
        begun = time.perf_counter()
        images, (placement,) = self._explainer.inputs([frame.picture])
        return _Prepared(frame, images, placement, time.perf_counter() - begun)

    def _explain_frame(self, frame: Frame) -> _Explained:
        return self._explain(self._prepare(frame))

    def _explain(self, prepared: _Prepared) -> _Explained:
        begun = time.perf_counter()
        look, frame = self.controls.look, prepared.frame
        tracked = look.tft == "track"
        if (look.method, tracked) != self._tracked:
            self._tracker.reset()  # what it knows is of other maps, or of long ago
            self._tracked = look.method, tracked
        explanation, probabilities = self._explainer.explain_prepared(
            frame.picture,
            prepared.images,
            prepared.placement,
            look.target,
            look.method,
            None if look.tft == "off" else True,
            self._tracker.choose if tracked else None,
        )
        return _Explained(
            frame,
            explanation,
            self._ranked(probabilities),
            look,
            prepared.seconds + time.perf_counter() - begun,
            self._tracker.forwards if tracked else _forwards(explanation),
        )

    def _ranked(self, probabilities: NDArray[np.float32]) -> tuple[tuple[int, str, float], ...]:
        count = min(_RANKED, len(probabilities))
        best = np.argpartition(-probabilities, count - 1)[:count]
        order = best[np.argsort(-probabilities[best], kind="stable")]
        label = self._explainer.manifest.label
        return tuple((int(i), label(int(i)), float(probabilities[i])) for i in order)

    def _draw(self, explained: _Explained) -> StreamFrame:
        begun = time.perf_counter()
        frame, look, overlay = explained.frame, explained.look, self._overlay
        self._watch_size(frame)
        overlay.opacity, overlay.smoothing = look.opacity, look.smoothing
        overlay.threshold, overlay.contour = look.threshold, look.contour
        fps = self._rate()
        note = f"{fps:.0f} fps  {1e3 * self._latency:.0f} ms" if fps else ""
        image = overlay.draw(frame.picture, explained.explanation, note)
        now = time.perf_counter()
        self._drawn.append(now)
        self._latency = now - frame.arrived
        timing = Timing(
            read=frame.read,
            explain=explained.seconds,
            draw=now - begun,
            latency=self._latency,
            fps=self._rate(),
            forwards=explained.forwards,
        )
        return StreamFrame(
            index=frame.index,
            seconds=frame.seconds,
            picture=frame.picture,
            image=image,
            explanation=explained.explanation,
            ranking=explained.ranking,
            timing=timing,
            dropped=self.dropped,
            look=look,
        )

    def _rate(self) -> float:
        if len(self._drawn) < 2:
            return 0.0
        return (len(self._drawn) - 1) / max(self._drawn[-1] - self._drawn[0], 1e-9)

    def _watch_size(self, frame: Frame) -> None:
        height, width = frame.picture.shape[:2]
        if self._size not in (None, (height, width)):
            text = f"frames have {width} x {height} pixels from frame {frame.index} on"
            self._tell(Event("resized", text))
        self._size = height, width


def stream(
    explainer: Explainer,
    source: Any,
    *,
    method: Method | None = None,
    tft: Sweep = "off",
    target: int | str = -1,
    threshold: float | None = None,
    opacity: float = 0.6,
    smoothing: float = 0.5,
    contour: bool = True,
    **options: Any,
) -> Stream:
    """Explain a camera, a video or a folder of pictures, frame by frame.

    >>> for frame in whycam.stream(explainer, 0, tft="track"):  # doctest: +SKIP
    ...     print(frame.explanation.label, frame.timing.fps)

    Args:
        explainer: from ``whycam.load``.
        source: a camera's number, a file, an address, a folder, a ``cv2.VideoCapture`` or an
            iterable of RGB pictures; see ``runtime.source.find_source``.
        method, tft, target, threshold, opacity, smoothing, contour: see ``Look``.
        options: see ``Stream``.

    Raises:
        SourceError: the source cannot be opened.
        RequestError: a setting that cannot be used with this file.
    """
    look = Look(
        method=method,
        tft=tft,
        target=target,
        threshold=threshold,
        opacity=opacity,
        smoothing=smoothing,
        contour=contour,
    )
    return Stream(explainer, source, look, **options)


def _forwards(explanation: Explanation) -> int:
    """Of a sweep: as many as there are thresholds that it tried."""
    return 0 if explanation.rpi is None else int(np.count_nonzero(~np.isnan(explanation.rpi)))


def _check_numbers(fps: float | None, limit: int | None, stall: float, retries: int | None) -> None:
    if fps is not None and not 0 < fps <= 1000:
        raise RequestError(f"fps must lie between 0 and 1000, not {fps}")
    if limit is not None and limit < 1:
        raise RequestError(f"limit must be 1 or more, not {limit}")
    if not stall > 0:
        raise RequestError(f"stall must be more than 0 seconds, not {stall}")
    if retries is not None and retries < 0:
        raise RequestError(f"retries must be 0 or more, not {retries}")
