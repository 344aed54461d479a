"""Frames a second of explained video: drawn, and drawn and written, stage by stage.

    python benchmarks/stream.py lite0.onnx cockatoo.mp4 bikes.mp4 --threads 1,2

For each video, way of thresholding and number of engine threads: frames a second over the whole
video, medians of the stages, which run beside each other, and processor time a frame, which says
what a machine with more cores would make of it. Wants a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

import whycam
from whycam.cli.progress import progress
from whycam.runtime.live.controls import SWEEPS
from whycam.runtime.live.track import EVALUATIONS
from whycam.runtime.live.video import VideoFile
from whycam.runtime.machine import describe_machine


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("videos", nargs="+")
    parser.add_argument("--tft", default=",".join(SWEEPS), help="of: off,every,track")
    parser.add_argument("--written", default="off,on", help="whether an .mp4 is written: off,on")
    parser.add_argument("--threads", default="1,2", help="of the engine")
    parser.add_argument("--method", default="gradcam")
    parser.add_argument("--evaluations", type=float, default=EVALUATIONS)
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--frames", type=int, help="of each video")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    runs = [
        (threads, video, tft, written)
        for threads in map(int, options.threads.split(","))
        for video in options.videos
        for tft in options.tft.split(",")
        for written in options.written.split(",")
    ]
    rows = []
    with progress("starting", len(runs), options.json) as advance:
        advance.total(len(runs))
        for threads, video, tft, written in runs:
            explainer = whycam.load(
                options.model, options.engine, threads, precision=options.precision
            )
            rows.append(measured(explainer, video, tft, written == "on", threads, options))
            advance(f"{Path(video).name} {tft}", 1)
    about = {**describe_machine(), "engine": explainer.engine.description, "load": os.getloadavg()}
    if options.json:
        print(json.dumps({**about, "rows": rows}))
        return
    table = Table(*rows[0])
    for row in rows:
        table.add_row(*(f"{v:.1f}" if isinstance(v, float) else str(v) for v in row.values()))
    out = Console(highlight=False, width=150)
    out.print(table)
    out.print(about)


def measured(
    explainer: whycam.Explainer,
    video: str,
    tft: str,
    written: bool,
    threads: int,
    options: argparse.Namespace,
) -> dict[str, Any]:
    """One run over a video; the first frames, in which everything warms up, do not count."""
    settings = {"tft": tft, "method": options.method, "evaluations": options.evaluations}
    for _ in whycam.stream(explainer, video, limit=8, **settings):
        pass
    with tempfile.TemporaryDirectory() as folder:
        limit = None if options.frames is None else options.frames
        begun, worked = time.perf_counter(), time.process_time()
        timings = []
        with whycam.stream(explainer, video, limit=limit, **settings) as frames:
            sink = VideoFile(Path(folder) / "why.mp4", frames.fps) if written else nullcontext()
            with sink:
                for frame in frames:
                    timings.append(frame.timing)
                    if written:
                        sink.write(frame.image, frame.seconds)
        took, worked = time.perf_counter() - begun, time.process_time() - worked

    def median(name: str) -> float:
        return 1e3 * statistics.median(getattr(timing, name) for timing in timings)

    return {
        "video": Path(video).name,
        "tft": tft,
        "written": "yes" if written else "no",
        "threads": threads,
        "frames": len(timings),
        "fps": len(timings) / took,
        "read ms": median("read"),
        "explain ms": median("explain"),
        "draw ms": median("draw"),
        "evaluations": statistics.mean(timing.evaluations for timing in timings),
        "cpu ms": 1e3 * worked / len(timings),
    }


if __name__ == "__main__":
    main()
