"""Does a stream keep its source's rate, and what is left for thresholds then, under four loads.

    python benchmarks/stream.py lite0.onnx cockatoo.mp4 bikes.mp4 --slides IMAGES

Each video is explained, drawn and written to an .mp4 on one core and on two, each without and with
another process that computes all the time on the same cores; in a process of its own, from the
opening of the video until the file is closed. ``--slides`` makes one more video of a folder's
images, which change every 15 frames.

Afterwards all ten thresholds are evaluated at each frame, without a clock, and what the stream
chose is compared: rpi kept is the mean rpi of its thresholds relative to the best ones, and IoU
that of the two masks. Linux alone: cores are chosen by affinity.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
from rich.console import Console
from rich.table import Table

import whycam
from whycam.cli.progress import progress
from whycam.runtime import pipeline
from whycam.runtime.images import list_images, read_image
from whycam.runtime.live.controls import SWEEPS
from whycam.runtime.live.reader import Reader
from whycam.runtime.live.source import find_source
from whycam.runtime.live.video import VideoFile
from whycam.runtime.machine import describe_machine
from whycam.runtime.request import plan_request
from whycam.runtime.sweep import masked_probabilities
from whycam.runtime.tft import Tft

# Cores, and processes that compute beside the stream.
LOADS = {"1 core": (1, 0), "1 core, busy": (1, 1), "2 cores": (2, 0), "2 cores, busy": (2, 1)}
SLIDE_FRAMES, SLIDE_FPS, SLIDE_SIZE, SLIDES = 15, 25, (720, 1280), 20
LOSSLESS = {"preset": "ultrafast", "qp": "0"}
TFT = Tft()


def main() -> None:
    options = parse()
    if options.one is not None:
        print(json.dumps(measure(json.loads(options.one))))
        return
    with tempfile.TemporaryDirectory() as folder:
        videos = [Path(video) for video in options.videos]
        if options.slides is not None:
            videos.append(write_slides(options.slides, Path(folder) / "slides.mp4"))
        runs = [
            (load, video, mode)
            for video in videos
            for load in options.loads.split(";")
            for mode in options.tft.split(",")
        ]
        best = None
        rows = []
        with progress("starting", len(runs), options.json) as advance:
            advance.total(len(runs))
            for load, video, mode in runs:
                found = run_one(load, video, mode, options)
                if mode == "track":
                    if best is None or best[0] != video:
                        best = video, sweep_all(options, video)
                    found |= compare(found.pop("chosen"), best[1])
                rows.append({"video": video.name, "load": load, "tft": mode} | found)
                advance(f"{video.name} {load} {mode}", 1)
    about = {**describe_machine(), "model": Path(options.model).name, "quality": options.quality}
    if options.json:
        print(json.dumps({**about, "rows": rows}))
        return
    names = list(dict.fromkeys(name for row in rows for name in row if name != "chosen"))
    table = Table(*names)
    for row in rows:
        table.add_row(*(shown(row.get(name, "")) for name in names))
    out = Console(highlight=False, width=170)
    out.print(table)
    out.print(about)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?")
    parser.add_argument("videos", nargs="*")
    parser.add_argument("--slides", type=Path, help="folder of images for a film of slides")
    parser.add_argument("--loads", default=";".join(LOADS), help=f"of: {'; '.join(LOADS)}")
    parser.add_argument("--tft", default="off,track", help=f"of: {','.join(SWEEPS)}")
    parser.add_argument("--quality", default="balanced")
    parser.add_argument("--evaluations", type=float, help="fixed, instead of the time left")
    parser.add_argument("--method", default="gradcam")
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--threads", type=int, help="of the engine")
    parser.add_argument("--spin", action="store_true", help="let idle threads wait in a loop")
    parser.add_argument("--frames", type=int, help="of each video")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    return parser.parse_args()


def run_one(load: str, video: Path, mode: str, options: argparse.Namespace) -> dict[str, Any]:
    """Measure one run in a process of its own, on its cores, beside its neighbours."""
    cores, neighbours = LOADS[load]
    chosen = sorted(os.sched_getaffinity(0))[:cores]
    settings = vars(options) | {"video": str(video), "mode": mode, "slides": None, "one": None}
    command = [sys.executable, __file__, "--one", json.dumps(settings)]
    with busy(chosen, neighbours):
        before = os.getloadavg()[0]
        done = subprocess.run(
            command,
            check=True,
            capture_output=True,
            text=True,
            preexec_fn=partial(os.sched_setaffinity, 0, chosen),
        )
    return json.loads(done.stdout.splitlines()[-1]) | {"load before": before}


@contextmanager
def busy(cores: list[int], processes: int) -> Iterator[None]:
    """Compute on these cores all the time while the block runs."""
    pin = partial(os.sched_setaffinity, 0, cores)
    started = [
        subprocess.Popen([sys.executable, "-c", "while True: pass"], preexec_fn=pin)
        for _ in range(processes)
    ]
    try:
        yield
    finally:
        for one in started:
            one.kill()
            one.wait()


def measure(settings: dict[str, Any]) -> dict[str, Any]:
    """Explain, draw and write a video."""
    explainer = whycam.load(
        settings["model"], settings["engine"], settings["threads"], spin=settings["spin"]
    )
    chosen: list[tuple[int, int, float | None]] = []
    reused: list[str | None] = []
    evaluations = 0
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "why.mp4"
        used, begun = processor_seconds(), time.perf_counter()
        with whycam.stream(
            explainer,
            settings["video"],
            tft=settings["mode"],
            method=settings["method"],
            quality=settings["quality"],
            evaluations=settings["evaluations"],
            limit=settings["frames"],
        ) as running:
            rate = running.fps
            with VideoFile(path, rate) as video:
                for frame in running:
                    video.write(frame.image, frame.seconds)
                    explanation = frame.explanation
                    chosen.append((frame.index, explanation.index, explanation.threshold))
                    reused.append(frame.reused)
                    evaluations += frame.timing.evaluations
        took, used = time.perf_counter() - begun, processor_seconds() - used
        written = count_frames(path)
    count = len(chosen)
    return {
        "source fps": rate,
        "fps": count / took,
        "written": f"{written} of {count}",
        "cpu ms": 1e3 * used / count,
        "evaluations": evaluations / count,
        "held": reused.count("threshold") / count,
        "repeated": reused.count("explanation") / count,
        "unchanged": reused.count("unchanged") / count,
        "chosen": chosen,
    }


def processor_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def count_frames(path: Path) -> int:
    capture = cv2.VideoCapture(str(path))
    count = 0
    while capture.grab():
        count += 1
    capture.release()
    return count


def sweep_all(options: argparse.Namespace, video: Path) -> dict[int, tuple[Any, ...]]:
    """Evaluate all thresholds of each frame: class, map, rpi [T]."""
    explainer = whycam.load(options.model, options.engine, options.threads)
    model = explainer.model
    plan = plan_request(explainer.manifest, options.method, TFT, sweep_outside=True)
    reader = Reader(find_source(str(video)), drop=False)
    found: dict[int, tuple[Any, ...]] = {}
    content = -1
    last: tuple[Any, ...] = ()
    for frame in reader.frames:
        if options.frames is not None and len(found) >= options.frames:
            break
        if frame.content != content:
            prepared = pipeline.prepare([frame.image], explainer.manifest)
            inference = pipeline.infer(model, prepared.inputs, [[-1]], plan)
            (one,) = pipeline.map(model, inference, plan)
            run = partial(pipeline.classify, model)
            (masked,) = masked_probabilities(run, [one], TFT, explainer.batch)
            rpi = np.maximum(masked - one.probability, 0) / one.probability
            last, content = (one.target, one.map, rpi), frame.content
        found[frame.index] = last
    reader.close()
    return found


def compare(
    chosen: list[tuple[int, int, float | None]], best: dict[int, tuple[Any, ...]]
) -> dict[str, float]:
    """Compare the thresholds that a stream chose with the best ones."""
    kept, most, shared = [], [], []
    for index, target, threshold in chosen:
        swept_target, values, rpi = best[index]
        step = int(rpi.argmax())
        limit = TFT.taus[step] if rpi[step] > 1e-5 else 0.0
        most.append(rpi[step])
        ours = 0.0 if threshold is None else rpi[TFT.taus.index(threshold)]
        kept.append(ours if target == swept_target else 0.0)
        one, other = (values > 0) & (values >= (threshold or 0.0)), (values > 0) & (values >= limit)
        union = np.count_nonzero(one | other)
        shared.append(np.count_nonzero(one & other) / union if union else 1.0)
    return {
        "rpi kept": float(np.mean(kept) / np.mean(most)) if np.any(most) else 1.0,
        "IoU": float(np.mean(shared)),
    }


def write_slides(folder: Path, path: Path) -> Path:
    """Write a film of a folder's images, each shown for ``SLIDE_FRAMES`` frames."""
    # Lossless, as recordings of screens are: other encoders change every frame a little.
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=SLIDE_FPS, options=LOSSLESS)
        stream.height, stream.width = SLIDE_SIZE
        stream.pix_fmt = "yuv420p"
        for file in list_images(folder)[:SLIDES]:
            image = read_image(file)
            scale = max(SLIDE_SIZE[0] / image.shape[0], SLIDE_SIZE[1] / image.shape[1])
            size = [
                max(round(scale * side), least)
                for side, least in zip(image.shape[:2], SLIDE_SIZE, strict=True)
            ]
            large = cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA)
            top, left = ((side - shown) // 2 for side, shown in zip(size, SLIDE_SIZE, strict=True))
            slide = large[top : top + SLIDE_SIZE[0], left : left + SLIDE_SIZE[1]]
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(slide), format="rgb24")
            for _ in range(SLIDE_FRAMES):
                frame.pts = None
                container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def shown(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
