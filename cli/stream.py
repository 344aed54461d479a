"""The verb stream: explain a camera or a video; show, write or record it."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated

import typer

from ..runtime.cam import METHODS
from ..runtime.detection_plan import DETECTIONS
from ..runtime.errors import RequestError, WhyCamError
from ..runtime.live.annotate import View
from ..runtime.live.capture_thread import Event
from ..runtime.live.controls import QUALITIES, Found, Quality, StreamFrame, Sweep
from ..runtime.live.stream import Stream
from ..runtime.onnxfile import read_manifest
from ..runtime.overlay import COLORMAPS, Colormap
from . import parse
from .console import note, print_json, say
from .options import (
    DetectorOptions,
    Json,
    Model,
    PromptedEngineOptions,
    Target,
    complete,
    require,
)
from .stream_run import Sink, run, summary


def stream(
    model: Model,
    engine: PromptedEngineOptions,
    detector: DetectorOptions,
    source: Annotated[
        str,
        typer.Option(
            "-s",
            "--source",
            help="A camera's number, a video file, a folder of images, an address as "
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
            help=f"Of: {', '.join(METHODS)} [default: what the graph finishes itself, or gradcam].",
            autocompletion=complete(METHODS),
        ),
    ] = None,
    tft: Annotated[
        Sweep,
        typer.Option(
            help="Thresholds: off, every (all of them at each frame) or track (the best one is "
            "followed from frame to frame, in the time that the source's rate leaves)."
        ),
    ] = "off",
    quality: Annotated[
        Quality,
        typer.Option(
            help="Where the source's rate and the thresholds want the same time. balanced: every "
            "frame is explained, thresholds get the time left; rate: frames that are late even so "
            "repeat the last explanation; full: thresholds get theirs, even if the rate suffers.",
            autocompletion=complete(QUALITIES),
        ),
    ] = "balanced",
    evaluations: Annotated[
        float | None,
        typer.Option(
            help="With --tft track: a fixed number of evaluations of the network for each frame, "
            "on average, whatever time they take [default: as many as there is time for]."
        ),
    ] = None,
    target: Target = None,
    top: Annotated[
        int | None,
        typer.Option(help="Of a detector: detections explained of a frame [default: 10]."),
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(help="Least map value that is drawn, 0 to 1 [default: TFT's, or 0]."),
    ] = None,
    opacity: Annotated[float, typer.Option(help="Opacity of the map's colours, 0 to 1.")] = 0.6,
    smoothing: Annotated[
        float, typer.Option(help="Weight of the last frame's map, 0 to 0.99; 0: no smoothing.")
    ] = 0.5,
    contour: Annotated[
        bool, typer.Option("--contour/--no-contour", help="Outline the region above tau.")
    ] = True,
    colormap: Annotated[
        Colormap,
        typer.Option(help="Colours of the map.", autocompletion=complete(COLORMAPS)),
    ] = "inferno",
    view: Annotated[
        View,
        typer.Option(
            help="Show the map over the frame (overlay), the map alone, or frame and overlay side "
            "by side."
        ),
    ] = "overlay",
    caption: Annotated[
        bool,
        typer.Option(
            "--caption/--no-caption",
            help="Write the class over the frame, and the speed if the source is live.",
        ),
    ] = True,
    fps: Annotated[
        float | None,
        typer.Option(
            help="Frames a second to take, at most [default: all]; for a folder, its rate "
            "[default: 25]."
        ),
    ] = None,
    drop: Annotated[
        bool | None,
        typer.Option(
            "--drop/--every-frame",
            help="When frames arrive faster than they are explained: drop all but the newest, or "
            "explain every one [default: drop for cameras, not for files].",
        ),
    ] = None,
    loop: Annotated[bool, typer.Option("--loop", help="Start a file again when it ends.")] = False,
    limit: Annotated[int | None, typer.Option(help="End after so many frames.")] = None,
    retries: Annotated[
        int | None,
        typer.Option(help="Attempts to open a lost camera again [default: until it is back]."),
    ] = None,
    codec: Annotated[
        str | None,
        typer.Option(
            help="Encoder of the .mp4, by FFmpeg's name, as mpeg4 or h264_nvenc "
            "[default: libx264, or mpeg4 where FFmpeg has no encoder for H.264]."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Explain a camera or a video, frame by frame.

    Ctrl-C ends it: what was written is finished and kept, and the exit code is 130 (143 after
    SIGTERM).
    """
    from ..runtime.live.controls import Look
    from ..runtime.live.window import Window
    from ..runtime.serve.server import LOOPBACK, Server
    from ..runtime.serve.server import check as check_page

    if output is not None and _is_same_file(output, source):
        raise RequestError(f"{output} is the source itself: choose another --output")
    look = Look(
        method=method,  # type: ignore[arg-type]
        tft=tft,
        target=-1 if target is None else parse.target(target) or 0,
        threshold=threshold,
        opacity=opacity,
        smoothing=smoothing,
        contour=contour,
        colormap=colormap,
        view=view,
    )
    require("--host or --token", bool(host or token), "--serve", serve is not None)
    if serve is not None:
        check_page(host or LOOPBACK, serve, token)
    found = _choose_found(model, detector, top, serve is not None)
    pages: list[Server] = []

    def tell(event: Event) -> None:
        note(event.text)
        for page in pages:
            page.tell_event(event)

    _silence_opencv()
    outputs, began = [path for path in (output, record) if path is not None], time.time()
    with _name_kept_files(outputs, began), ExitStack() as stack:
        # A window that cannot be opened is an error before the model is loaded.
        sinks: list[Sink] = []
        if show:
            window = stack.enter_context(Window(f"whycam: {source}"))
            sinks.append(lambda frame: window.show(frame.image))
        explainer = engine.load(model, takes_detectors=True, spin=False)
        opened = Stream(
            explainer,
            source,
            look,
            fps=fps,
            drop=drop,
            loop=loop,
            limit=limit,
            caption=caption,
            quality=quality,
            evaluations=evaluations,
            retries=retries,
            tell=tell,
            found=found,
        )
        stack.enter_context(opened)
        if serve is not None:
            page = Server(
                opened.controls,
                explainer,
                engine=explainer.engine.description,
                source=os.path.basename(source) if os.path.exists(source) else opened.source,
                host=host or LOOPBACK,
                port=serve,
                token=token,
            )
            pages.append(stack.enter_context(page))
            sinks.append(page.publish)
            note(f"page: {page.url}")
        sinks += _files(stack, opened, output, record, codec)
        stopped, report = run(opened, sinks, limit, as_json)
    report |= {"source": opened.source, "model": str(model), "written": _written(outputs, began)}
    if as_json:
        print_json(report)
    else:
        say(summary(report))
    if stopped is not None:
        raise typer.Exit(128 + stopped)


def _choose_found(
    model: Path, detector: DetectorOptions, top: int | None, serves: bool
) -> Found | None:
    """Read what a detector looks for; None for a classifier.

    Raises:
        RequestError: options that the file's kind has not.
    """
    manifest = read_manifest(model)
    if manifest.detector is None:
        detector.refuse(manifest, top)
        return None
    if serves:
        raise RequestError(
            f"the page of --serve shows the classes of whole images, and {manifest.model} is a "
            "detector: use --show, --output or --record"
        )
    detector.plan(manifest, most=top)
    return Found(DETECTIONS if top is None else top, detector.min_score, detector.iou)


@contextmanager
def _name_kept_files(outputs: list[Path], began: float) -> Iterator[None]:
    """Name the files that are kept when an error ends the stream."""
    try:
        yield
    except WhyCamError:
        for path in _written(outputs, began):
            note(f"kept: {path}, with the frames before this error")
        raise


def _written(outputs: list[Path], began: float) -> list[str]:
    """Return the files that were written since ``began``."""
    return [str(p) for p in outputs if p.exists() and p.stat().st_mtime >= began - 1]


def _is_same_file(output: Path, source: str) -> bool:
    return os.path.exists(source) and output.exists() and output.samefile(source)


def _files(
    stack: ExitStack, opened: Stream, output: Path | None, record: Path | None, codec: str | None
) -> Iterator[Sink]:
    """Open the output files as sinks; they are kept whatever ends the stream."""
    if output is not None:
        from ..runtime.live.video import VideoFile

        video = stack.enter_context(VideoFile(output, opened.fps or 25.0, codec))

        def write(frame: StreamFrame) -> bool:
            video.write(frame.image, frame.seconds)
            return True

        yield write
    if record is not None:
        from ..runtime.live.record import RecordFile

        lines = stack.enter_context(RecordFile(record))

        def add(frame: StreamFrame) -> bool:
            lines.write(frame)
            return True

        yield add


def _silence_opencv() -> None:
    """Silence OpenCV's messages about sources that do not open; whycam's say more."""
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    import cv2

    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
