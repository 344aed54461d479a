"""The processor time of each stage of a stream, one after the other on one thread.

    python benchmarks/stream_stages.py lite0.onnx cockatoo.mp4 bikes.mp4

Medians in milliseconds of a frame that is decoded, explained, drawn and encoded; beside them one
evaluation of a masked image, and ten in one run of the network. What a frame's interval has beyond
the sum is left for thresholds on one core.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import av
import cv2
import numpy as np
from tables import print_rows

import whycam
from whycam.runtime import pipeline
from whycam.runtime.live.annotate import Overlay
from whycam.runtime.machine import describe_machine
from whycam.runtime.request import plan_request

T = TypeVar("T")
BEYOND = ("one evaluation", "ten together")  # what is no part of a frame without thresholds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("videos", nargs="+")
    parser.add_argument("--method", default="gradcam")
    parser.add_argument("--frames", type=int, default=100)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows = [
        measure_stages(options.model, video, options.method, options.frames)
        for video in options.videos
    ]
    about = {**describe_machine(), "load": os.getloadavg()}
    if options.json:
        print(json.dumps({**about, "rows": rows}))
        return
    print_rows(rows, ".2f")
    print(about)


def measure_stages(model: str, video: str, method: str, frames: int) -> dict[str, Any]:
    """Measure one video; the first frames, in which everything warms up, do not count."""
    explainer = whycam.load(model, threads=1)
    cv2.setNumThreads(1)
    plan = plan_request(explainer.manifest, method, None)
    overlay = Overlay()
    times: dict[str, list[float]] = {}

    def timed(stage: str, work: Callable[[], T]) -> T:
        begun = time.process_time()
        result = work()
        times.setdefault(stage, []).append(1e3 * (time.process_time() - begun))
        return result

    with av.open(video) as source, av.open(os.devnull, "w", format="mp4") as written:
        stream = source.streams.video[0]
        stream.thread_type = "NONE"
        # As ``VideoFile`` writes it.
        options = {"preset": "ultrafast", "crf": "23"}
        encoder = written.add_stream("libx264", rate=25, options=options)
        encoder.height, encoder.width = stream.height // 2 * 2, stream.width // 2 * 2
        encoder.pix_fmt, encoder.codec_context.thread_count = "yuv420p", 1
        decoded = source.decode(stream)
        for _ in range(frames):
            frame = timed("decode", lambda: next(decoded))
            image = timed("to RGB", partial(frame.to_ndarray, format="rgb24"))
            prepared = timed("prepare", partial(pipeline.prepare, [image], explainer.manifest))
            (by_method,) = timed(
                "explain", partial(explainer.explain_prepared, prepared, [[-1]], plan)
            )
            ((explanation,),) = by_method.values()
            drawn = timed("draw", partial(overlay.draw, image, explanation))
            even = np.ascontiguousarray(drawn[: encoder.height, : encoder.width])
            planes = timed("to YUV", partial(cv2.cvtColor, even, cv2.COLOR_RGB2YUV_I420))
            out = timed("copy", partial(av.VideoFrame.from_ndarray, planes, format="yuv420p"))
            packets = timed("encode", partial(encoder.encode, out))
            written.mux(packets)
            ten = np.repeat(prepared.inputs, 10, 0)
            classify = partial(pipeline.classify, explainer.model)
            timed("one evaluation", partial(classify, prepared.inputs))
            timed("ten together", partial(classify, ten))
    medians = {name: statistics.median(values[10:]) for name, values in times.items()}
    total = sum(value for name, value in medians.items() if name not in BEYOND)
    interval = 1e3 / float(stream.average_rate)
    return {"video": Path(video).name, "interval": interval, "frame": total} | medians


if __name__ == "__main__":
    main()
