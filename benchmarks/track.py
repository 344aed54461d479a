"""How close following the threshold of a video stays to sweeping all of them at each frame.

    python benchmarks/track.py lite0.onnx cockatoo.mp4 bikes.mp4 --methods gradcam,layercam

Both choose from the same maps. For each video, method and reading of TFT: evaluations a frame, the
mean rpi beside the full sweep's, and the IoU of what the two masks keep. Accuracy only: a busy
machine does not change the figures.
"""

from __future__ import annotations

import argparse
import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import track
from tables import print_rows

import whycam
from whycam.runtime import pipeline
from whycam.runtime.live.capture_thread import Frame
from whycam.runtime.live.reader import Reader
from whycam.runtime.live.source import find_source
from whycam.runtime.live.track import EVALUATIONS, Allowance, Tracker
from whycam.runtime.machine import describe_machine
from whycam.runtime.request import plan_request
from whycam.runtime.sweep import Choice, sweep
from whycam.runtime.tft import Tft

READINGS = (Tft("binary", "value"), Tft("soft", "rank"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("videos", nargs="+")
    parser.add_argument("--methods", default="gradcam")
    parser.add_argument("--evaluations", default=str(EVALUATIONS), help="a frame: one or several")
    parser.add_argument("--frames", type=int, help="of each video")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    explainer = whycam.load(options.model, threads=options.threads)
    budgets = [float(number) for number in options.evaluations.split(",")]
    rows = [
        row
        for video in options.videos
        for method in options.methods.split(",")
        for reading in READINGS
        for row in measured(explainer, video, method, reading, budgets, options.frames)
    ]
    about = {**describe_machine(), "threads": options.threads}
    if options.json:
        print(json.dumps({**about, "rows": rows}))
        return
    print_rows(rows, ".3f")
    print(about)


def measured(
    explainer: whycam.Explainer,
    video: str,
    method: str,
    reading: Tft,
    budgets: list[float],
    limit: int | None,
) -> list[dict[str, Any]]:
    """Sweep each frame of a video, and follow its threshold with each budget of evaluations."""
    run = partial(pipeline.classify, explainer.model)
    plan = plan_request(explainer.manifest, method, True, sweep_outside=True)
    # Fewer than one evaluation a frame: some frames have none, as in a stream without time.
    allowances = [Allowance(budget, least=int(budget >= 1)) for budget in budgets]
    trackers = [Tracker(run, explainer.batch) for _ in budgets]
    seen: list[list[tuple[int, float, float, float, bool]]] = [[] for _ in budgets]
    indices = []
    for frame in frames_of(video, limit, f"{Path(video).name} {method} {reading.mask}"):
        inputs = pipeline.prepare([frame.image], explainer.manifest).inputs
        inference = pipeline.infer(explainer.model, inputs, [[-1]], plan)
        (request,) = pipeline.map(explainer.model, inference, plan)
        (full,) = sweep(run, [request], reading, explainer.batch)
        for tracker, allowance, rows in zip(trackers, allowances, seen, strict=True):
            followed = tracker.choose(request, reading, allowance)
            rows.append((tracker.evaluations, *compared(full, followed, reading)))
        indices.append(request.target)
    changes = int(np.count_nonzero(np.diff(indices)))
    found = []
    for rows in seen:
        spent, swept, tracked, shared, same = np.array(rows).T
        found.append(
            {
                "video": Path(video).name,
                "method": method,
                "reading": f"{reading.mask}, {reading.thresholds}",
                "frames": len(rows),
                "class changes": changes,
                "evaluations": float(spent.mean()),
                "held": float((spent == 0).mean()),
                "rpi, swept": float(swept.mean()),
                "rpi, tracked": float(tracked.mean()),
                "ratio": float(tracked.mean() / swept.mean()) if swept.any() else 1.0,
                "IoU": float(shared.mean()),
                "same tau": float(same.mean()),
            }
        )
    return found


def compared(full: Choice, followed: Choice, reading: Tft) -> tuple[float, float, float, bool]:
    """Return the best rpi, that of the threshold followed, IoU, and whether they are the same."""
    gained = 0.0
    if followed.improved:  # of this frame, also where the threshold was held from another
        gained = float(full.rpi[reading.taus.index(followed.threshold)])
    same = full.threshold == followed.threshold
    return float(np.nanmax(full.rpi)), gained, overlap(full, followed), same


def frames_of(video: str, limit: int | None, title: str) -> Any:
    reader = Reader(find_source(video), drop=False)
    total = min(n for n in (reader.state.total, limit) if n is not None)
    frame: Frame
    for number, frame in enumerate(
        track(reader.frames, description=title, total=total, transient=True)
    ):
        if limit is not None and number >= limit:
            break
        yield frame
    reader.close()


def overlap(a: Choice, b: Choice) -> float:
    one, other = a.mask > 0, b.mask > 0
    union = np.count_nonzero(one | other)
    return np.count_nonzero(one & other) / union if union else 1.0


if __name__ == "__main__":
    main()
