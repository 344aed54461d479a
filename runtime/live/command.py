"""The verb stream: explanations over a camera or a video, shown, written and recorded."""

from __future__ import annotations

import os
import signal
import statistics
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from .. import options
from ..cam import METHODS
from ..console import err, escape, out, print_json, progress
from ..errors import RequestError, WhyCamError
from ..options import Engine, Json, Precision, Threads
from .attempt import Event
from .controls import StreamFrame
from .stream import Stream
from .track import FORWARDS

# What takes the frames of a stream, one after the other; False: enough.
Sink = Callable[[StreamFrame], bool]
_REPORTED = 10_000  # frames that the summary's latencies are of, the last ones


def stream(
    model: Annotated[Path, typer.Argument(help="A file made by whycam export.")],
    source: Annotated[
        str,
        typer.Option(
            "-s",
            "--source",
            help="A camera's number, a video file, a folder of pictures, an address as "
            "rtsp://HOST/PATH, or a GStreamer pipeline in quotes.",
        ),
    ] = "0",
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="The .mp4 to write.")
    ] = None,
    record: Annotated[
        Path | None, typer.Option(help="Write the numbers of each frame here, as JSON Lines.")
    ] = None,
    show: Annotated[
        bool, typer.Option("--show", help="Open a window; q or Esc closes it.")
    ] = False,
    serve: Annotated[
        int | None,
        typer.Option(
            metavar="PORT",
            help="Show it as a web page with controls, for this machine; 0: any free port.",
        ),
    ] = None,
    host: Annotated[
        str | None,
        typer.Option(
            help="With --serve: the address to bind to, as 0.0.0.0; pages on other machines then "
            "need the token that is printed [default: 127.0.0.1]."
        ),
    ] = None,
    token: Annotated[
        str | None, typer.Option(help="With --serve: your own token [default: a new one].")
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(
            help=f"Of: {', '.join(METHODS)} [default: what the graph finishes itself, or gradcam]."
        ),
    ] = None,
    tft: Annotated[
        str,
        typer.Option(
            help="Thresholds: off, every (all of them at each frame) or track (the best one is "
            "followed from frame to frame)."
        ),
    ] = "off",
    forwards: Annotated[
        float,
        typer.Option(help="With --tft track: passes a frame spent on thresholds, on average."),
    ] = FORWARDS,
    target: Annotated[
        str | None,
        typer.Option(help="Class to explain: index, label, or rank -1 to -5 [default: -1]."),
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(help="Draw only map values from here on [default: what TFT finds, or all]."),
    ] = None,
    opacity: Annotated[float, typer.Option(help="Of the heat, 0 to 1.")] = 0.6,
    smoothing: Annotated[
        float, typer.Option(help="How much of the map stays from frame to frame; 0: none.")
    ] = 0.5,
    contour: Annotated[
        bool, typer.Option("--contour/--no-contour", help="Outline the region above tau.")
    ] = True,
    caption: Annotated[
        bool, typer.Option("--caption/--no-caption", help="Write class and speed over the frame.")
    ] = True,
    fps: Annotated[
        float | None,
        typer.Option(
            help="Take at most so many frames a second; the rate of a folder [default: all, 25]."
        ),
    ] = None,
    drop: Annotated[
        bool | None,
        typer.Option(
            "--drop/--every-frame",
            help="Pass over frames that come too fast, or wait for each "
            "[default: cameras drop, files do not].",
        ),
    ] = None,
    loop: Annotated[bool, typer.Option("--loop", help="Begin a file again when it ends.")] = False,
    limit: Annotated[int | None, typer.Option(help="End after so many frames.")] = None,
    retries: Annotated[
        int | None,
        typer.Option(help="How often a lost camera is opened again [default: until it is back]."),
    ] = None,
    codec: Annotated[
        str | None,
        typer.Option(
            help="Encoder of the .mp4, by FFmpeg's name, as mpeg4 or h264_nvenc "
            "[default: libx264, or mpeg4 where FFmpeg has no encoder for H.264]."
        ),
    ] = None,
    engine: Engine = "auto",
    precision: Precision = "fp32",
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Explain a camera or a video, frame by frame.

    Ctrl-C ends it: what was written is finished and kept, and the exit code is 130 (143 after
    SIGTERM).
    """
    from ..explainer import load
    from ..serve.server import LOOPBACK, Server
    from ..serve.server import check as check_page
    from .controls import Look
    from .window import Window

    if output is not None and os.path.exists(source) and output.exists():
        _check_other(output, source)
    look = Look(
        method=method,  # type: ignore[arg-type]
        tft=options.one_of("--tft", tft, ("off", "every", "track")),  # type: ignore[arg-type]
        target=-1 if target is None else options.target(target) or 0,
        threshold=threshold,
        opacity=opacity,
        smoothing=smoothing,
        contour=contour,
    )
    if serve is not None:
        check_page(host or LOOPBACK, serve, token)
    elif host is not None or token is not None:
        raise RequestError("--host and --token are settings of --serve: add it")
    pages: list[Server] = []

    def tell(event: Event) -> None:
        err.print(escape(event.text), soft_wrap=True)
        for page in pages:
            page.tell_event(event)

    _silence_opencv()
    places, began = [place for place in (output, record) if place is not None], time.time()
    with _kept_told(places, began), ExitStack() as stack:
        # A window that cannot be opened, and a place that cannot be written, are known first.
        sinks: list[Sink] = []
        if show:
            window = stack.enter_context(Window(f"whycam: {source}"))
            sinks.append(lambda frame: window.show(frame.image))
        explainer = load(model, engine, threads, precision=precision)  # type: ignore[arg-type]
        opened = Stream(
            explainer,
            source,
            look,
            fps=fps,
            drop=drop,
            loop=loop,
            limit=limit,
            caption=caption,
            forwards=forwards,
            retries=retries,
            tell=tell,
        )
        stack.enter_context(opened)
        if serve is not None:
            page = Server(
                opened.controls,
                engine=explainer.engine.description,
                source=os.path.basename(source) if os.path.exists(source) else opened.source,
                host=host or LOOPBACK,
                port=serve,
                token=token,
            )
            pages.append(stack.enter_context(page))
            sinks.append(page.publish)
            err.print(escape(f"page: {page.url}"), soft_wrap=True)
        sinks += _files(stack, opened, output, record, codec)
        stopped, report = _run(opened, sinks, limit, as_json)
    report |= {"source": opened.source, "model": str(model)}
    report |= {"written": _written(places, began)}
    if as_json:
        print_json(report)
    else:
        out.print(_summary(report), soft_wrap=True)
    if stopped is not None:
        raise typer.Exit(128 + stopped)


@contextmanager
def _kept_told(places: list[Path], began: float) -> Iterator[None]:
    """After an error people want to know what they still have."""
    try:
        yield
    except WhyCamError:
        for place in _written(places, began):
            err.print(escape(f"kept: what was written to {place} before this"), soft_wrap=True)
        raise


def _written(places: list[Path], began: float) -> list[str]:
    """Those files that were written since."""
    return [str(p) for p in places if p.exists() and p.stat().st_mtime >= began - 1]


def _check_other(output: Path, source: str) -> None:
    if output.samefile(source):
        raise RequestError(f"{output} would replace what is read: choose another --output")


def _files(
    stack: ExitStack, opened: Stream, output: Path | None, record: Path | None, codec: str | None
) -> Iterator[Sink]:
    """Files that take the frames; kept whatever ends the stream."""
    if output is not None:
        from .video import VideoFile

        video = stack.enter_context(VideoFile(output, opened.fps or 25.0, codec))

        def write(frame: StreamFrame) -> bool:
            video.write(frame.image, frame.seconds)
            return True

        yield write
    if record is not None:
        from .record import RecordFile

        lines = stack.enter_context(RecordFile(record))

        def note(frame: StreamFrame) -> bool:
            lines.write(frame)
            return True

        yield note


def _run(
    opened: Stream, sinks: list[Sink], limit: int | None, quiet: bool
) -> tuple[int | None, dict[str, Any]]:
    """Hand each frame to all sinks: the signal that ended it, if any, and what there is to say."""
    latencies: deque[float] = deque(maxlen=_REPORTED)
    frames = passes = 0
    begun = shown = time.perf_counter()
    total = min((n for n in (opened.total, limit) if n is not None), default=None)
    with _stopping(opened) as signals, progress("starting", total, quiet) as advance:
        advance("starting", 0)
        done = 0
        for frame in opened:
            frames += 1
            passes += frame.timing.forwards
            latencies.append(frame.timing.latency)
            if not min((sink(frame) for sink in sinks), default=True):  # all take it, even the last
                break
            now = time.perf_counter()
            if now - shown > 0.1:
                advance(f"{frame.timing.fps:.0f} fps: {frame.explanation.label}", frames - done)
                shown, done = now, frames
        opened.close()
    took = time.perf_counter() - begun
    return (signals[0] if signals else None), {
        "frames": frames,
        "took": took,
        "fps": frames / took,
        "latency": {
            "median": statistics.median(latencies) if latencies else None,
            "p95": sorted(latencies)[int(0.95 * len(latencies))] if latencies else None,
        },
        "forwards": passes / max(1, frames),
        "dropped": opened.dropped,
        "corrupt": opened.corrupt,
        "reconnects": opened.reconnects,
        "stopped": signal.Signals(signals[0]).name if signals else None,
    }


@contextmanager
def _stopping(opened: Stream) -> Iterator[list[int]]:
    """Ctrl-C and SIGTERM end the stream between two frames, so that files are finished."""
    signals: list[int] = []

    def stop(number: int, _: object) -> None:
        signals.append(number)
        opened.stop()
        if len(signals) > 2:  # somebody insists
            raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield signals  # only the main thread may handle signals
        return
    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _summary(report: dict[str, Any]) -> str:
    median = report["latency"]["median"]
    parts = [
        f"{report['frames']} frames in {report['took']:.1f} s, {report['fps']:.1f} a second",
        *([f"latency {1e3 * median:.0f} ms"] if median is not None else []),
        *([f"{report['forwards']:.1f} forwards a frame"] if report["forwards"] else []),
        *(f"{report[name]} {name}" for name in ("dropped", "corrupt") if report[name]),
        *([f"lost and back {report['reconnects']} times"] if report["reconnects"] else []),
    ]
    written = [f"written to {place}" for place in report["written"]]
    return "\n".join(["; ".join(parts), *written])


def _silence_opencv() -> None:
    """Its own lines about sources that do not open say less than ours, and come first."""
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    import cv2

    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
