"""Explain a video frame by frame; reading and the network run on threads of their own."""

from __future__ import annotations

import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from threading import Thread, current_thread
from typing import Any

from ..cam import Method
from ..errors import RequestError
from ..explainer import Explainer
from ..input_format import describe_images
from ..overlay import Colormap
from .annotate import Overlay, View
from .capture_thread import Event, Frame
from .controls import QUALITIES, Controls, Found, Look, Quality, StreamFrame, Sweep, Timing
from .frames import Explained, FrameExplainer, PreparedFrame
from .pipe import Pipe, start_stage
from .reader import Reader
from .redraw import DrawnFrames
from .schedule import Schedule
from .source import find_source
from .track import Allowance

_FPS_FRAMES = 30  # frames that the rate is measured over
_JOIN_SECONDS = 5.0  # to wait for the network's current run


class Stream:
    """An iterator over the frames of a source, explained and drawn; a context manager.

    Its threads end with ``close``, at the end of the iteration, or when the stream is no longer
    referenced. An error on any thread is raised by the iteration.

    Attributes:
        controls: settings, which any thread may change between two frames.
        source: name of the source.
        live: whether the source sends frames at its own rate.
        fps: frames a second of the source, or 0 if it states none.
        total: number of frames of the source, or None.

    Args:
        explainer: from ``whycam.load``.
        source: see ``find_source``.
        look: how to explain and draw at first.
        fps: frames a second to take, at most; for images, their rate.
        drop: whether a new frame replaces one that is still waiting; a file is then played at its
            own speed. None: for live sources only.
        loop: whether a file starts again when it ends.
        limit: number of frames to end after.
        caption: whether to write label, probability and threshold over the frames, and the speed
            if the source is live.
        quality: what ``tft="track"`` does where the source's rate and the thresholds want the same
            time. ``balanced``: every frame has a map of its own, and thresholds get the time that
            the source's rate leaves, from none to all of them. ``rate``: the same, and frames that
            are late even so show the explanation of an earlier one (with any ``tft``). ``full``:
            thresholds get 3.9 evaluations a frame or more, even if the rate is not kept. A source
            without a rate of its own (images without ``fps``) has 3.9.
        evaluations: a fixed number of evaluations a frame for ``tft="track"``, on average, whatever
            time they take: the same frames then give the same explanations again.
        stall: seconds without a frame after which a live source counts as lost.
        retries: attempts to open a lost source again; None: until it comes back.
        tell: called with each ``Event``, on another thread.
        found: what a detector looks for in each frame.

    Raises:
        SourceError: the source cannot be opened.
        RequestError: a setting that cannot be used with this file.

    Example:
        >>> from whycam.runtime.live.controls import Look
        >>> explainer = whycam.load("model.onnx")
        >>> with whycam.Stream(explainer, "walk.avi", Look(tft="track"), limit=2) as frames:
        ...     images = [frame.image for frame in frames]
        >>> len(images)
        2
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
        quality: Quality = "balanced",
        evaluations: float | None = None,
        stall: float = 5.0,
        retries: int | None = None,
        tell: Callable[[Event], None] = lambda _: None,
        found: Found | None = None,
    ) -> None:
        _check_numbers(fps, limit, stall, retries)
        if explainer.manifest.detector is not None and evaluations is not None:
            raise RequestError(
                "evaluations are those of tft=track, which a detector has not: leave them out"
            )
        spec = explainer.manifest.preprocess
        if not spec.accepts_rgb:
            raise RequestError(
                f"a stream has 8-bit RGB frames, and this network takes {describe_images(spec)}: "
                "explain its images with whycam explain"
            )
        self.controls = Controls(explainer.manifest, look, found)
        allowance = _fixed_allowance(quality, evaluations)
        self._drawn = DrawnFrames(Overlay(caption=caption))
        self._limit, self._yielded = limit, 0
        self._tell = tell
        self._size: tuple[int, int] | None = None
        self._times: deque[float] = deque(maxlen=_FPS_FRAMES)
        self._latency = 0.0
        origin = find_source(source, fps)
        if loop and (origin.live or not origin.again):
            raise RequestError(f"{origin.name} cannot start again: loop is for files")
        self.source, self.live = origin.name, origin.live
        dropping = origin.live if drop is None else drop
        self._reader = Reader(
            origin, drop=dropping, loop=loop, fps=fps, stall=stall, retries=retries, tell=tell
        )
        self.fps, self.total = self._reader.pace, self._reader.state.total
        live = dropping or origin.live
        has_rate = live or fps is not None or self._reader.state.fps > 0
        schedule = Schedule(live) if has_rate else None
        frames = FrameExplainer(explainer, self.controls, quality, allowance, schedule)
        read, self._explained = self._reader.frames, Pipe[Explained](1)
        pipes: list[Pipe[Any]] = [self._explained]
        if dropping:
            # A frame is prepared only when the network is free, so that it is the newest.
            threads = [start_stage("explainer", frames.prepare_and_explain, read, self._explained)]
        else:
            prepared = Pipe[PreparedFrame](1)
            pipes.append(prepared)
            threads = [
                start_stage("preparation", frames.prepare, read, prepared),
                start_stage("explainer", frames.explain, prepared, self._explained),
            ]
        # The threads hold no reference to the stream, so that leaving the loop ends them.
        self._finalizer = weakref.finalize(self, _close, pipes, self._reader, threads)

    @property
    def dropped(self) -> int:
        """Count the frames dropped for newer ones so far."""
        return self._reader.frames.dropped

    @property
    def corrupt(self) -> int:
        """Count the frames that could not be decoded so far."""
        return self._reader.state.corrupt

    @property
    def reconnects(self) -> int:
        """Count how often a lost source came back."""
        return self._reader.state.reconnects

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[StreamFrame]:
        return self

    def __next__(self) -> StreamFrame:
        if self._limit is not None and self._yielded >= self._limit:
            self.close()
            raise StopIteration
        try:
            explained = next(self._explained)
        except BaseException:
            self.close()
            raise
        self._yielded += 1
        return self._draw(explained)

    def stop(self) -> None:
        """End the iteration at its next step, from any thread or signal handler."""
        self._explained.close()

    def close(self) -> None:
        """End all threads; wait a few seconds for the current read and run of the network."""
        self._finalizer()

    def _draw(self, explained: Explained) -> StreamFrame:
        begun = time.perf_counter()
        frame = explained.frame
        self._report_size(frame)
        fps = self._rate() if self.live else 0.0
        note = [f"{fps:.0f} fps  {1e3 * self._latency:.0f} ms"] if fps else []
        if explained.reused == "explanation":
            note.append("map held")
        image = self._drawn.draw(explained, "  ".join(note))
        now = time.perf_counter()
        self._times.append(now)
        self._latency = now - frame.arrived
        timing = Timing(
            read=frame.read,
            explain=explained.seconds,
            draw=now - begun,
            latency=self._latency,
            fps=self._rate(),
            evaluations=explained.evaluations,
        )
        return StreamFrame(
            index=frame.index,
            seconds=frame.seconds,
            original=frame.image,
            image=image,
            explanation=explained.explanation,
            ranking=explained.ranking,
            timing=timing,
            dropped=self.dropped,
            look=explained.look,
            live=self.live,
            reused=explained.reused,
            detections=explained.detections,
        )

    def _rate(self) -> float:
        if len(self._times) < 2:
            return 0.0
        return (len(self._times) - 1) / max(self._times[-1] - self._times[0], 1e-9)

    def _report_size(self, frame: Frame) -> None:
        height, width = frame.image.shape[:2]
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
    colormap: Colormap = "inferno",
    view: View = "overlay",
    **options: Any,
) -> Stream:
    """Explain a camera, a video or a folder of images, frame by frame.

    Args:
        explainer: from ``whycam.load``.
        source: a camera's number, a file, an address, a folder, a ``cv2.VideoCapture`` or an
            iterable of RGB images; see ``runtime.live.source.find_source``.
        method, tft, target, threshold, opacity, smoothing, contour, colormap, view: see ``Look``.
        options: see ``Stream``.

    Returns:
        A ``Stream`` to iterate over, which has begun to read.

    Raises:
        SourceError: the source cannot be opened.
        RequestError: a setting that cannot be used with this file.

    Example:
        >>> explainer = whycam.load("model.onnx")
        >>> for frame in whycam.stream(explainer, "walk.avi", tft="track"):
        ...     print(frame.image.shape, frame.explanation.label)
        (48, 64, 3) tabby
        (48, 64, 3) tabby
        (48, 64, 3) tabby
    """
    look = Look(
        method=method,
        tft=tft,
        target=target,
        threshold=threshold,
        opacity=opacity,
        smoothing=smoothing,
        contour=contour,
        colormap=colormap,
        view=view,
    )
    return Stream(explainer, source, look, **options)


def _fixed_allowance(quality: Quality, evaluations: float | None) -> Allowance | None:
    """Check quality and evaluations; None: the number of evaluations follows the time left."""
    if quality not in QUALITIES:
        raise RequestError(f"quality must be {', '.join(QUALITIES)}, not {quality!r}")
    if evaluations is None:
        return None
    if quality != "balanced":
        raise RequestError(
            f"quality {quality} lets the time that is left decide how many evaluations a frame "
            f"has, and evaluations={evaluations:g} fixes their number: give one of the two"
        )
    return Allowance(evaluations)


def _close(pipes: Sequence[Pipe[Any]], reader: Reader, threads: Sequence[Thread]) -> None:
    for pipe in pipes:
        pipe.close()
    reader.close()
    for thread in threads:
        if thread is not current_thread():  # which may be collecting garbage
            thread.join(_JOIN_SECONDS)


def _check_numbers(fps: float | None, limit: int | None, stall: float, retries: int | None) -> None:
    if fps is not None and not 0 < fps <= 1000:
        raise RequestError(f"fps must lie between 0 and 1000, not {fps}")
    if limit is not None and limit < 1:
        raise RequestError(f"limit must be 1 or more, not {limit}")
    if not stall > 0:
        raise RequestError(f"stall must be more than 0 seconds, not {stall}")
    if retries is not None and retries < 0:
        raise RequestError(f"retries must be 0 or more, not {retries}")
