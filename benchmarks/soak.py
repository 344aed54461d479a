"""A looped video, explained, drawn and written for minutes: memory and threads must not grow.

    python benchmarks/soak.py lite0.onnx bikes.mp4 --minutes 30

The file written is begun anew every minute, so that the disk does not fill. Exit code 1 if memory
at the end is more than 10 % above that after the first minute, or if a thread or a file is left.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import threading
import time
from pathlib import Path

import whycam
from whycam.runtime.live.video import VideoFile


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("video")
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--tft", default="track")
    parser.add_argument("--live", action="store_true", help="play it at its own speed, as a camera")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    explainer = whycam.load(options.model, threads=options.threads, spin=False)
    before = threading.active_count()
    points = [{"minute": 0.0, "frames": 0, "mib": resident(), "threads": before}]
    frames = 0
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        with whycam.stream(
            explainer, options.video, tft=options.tft, loop=True, drop=options.live
        ) as running:
            while (minute := (time.monotonic() - begun) / 60) < options.minutes:
                until = min(minute + 1, options.minutes)
                path = Path(folder) / f"{len(points)}.mp4"
                with VideoFile(path, running.fps) as video:
                    for frame in running:
                        video.write(frame.image, frame.seconds)
                        frames += 1
                        if (time.monotonic() - begun) / 60 >= until:
                            break
                path.unlink()  # which fails if it was not written
                points.append(
                    {
                        "minute": round((time.monotonic() - begun) / 60, 2),
                        "frames": frames,
                        "dropped": running.dropped,
                        "latency ms": round(1e3 * frame.timing.latency),
                        "mib": round(resident(), 1),
                        "threads": threading.active_count(),
                    }
                )
                if not options.json:
                    print(*(f"{name} {value}" for name, value in points[-1].items()), sep="  ")
        left = os.listdir(folder)
    after = threading.active_count()
    grown = points[-1]["mib"] / points[1]["mib"] - 1
    if options.json:
        print(json.dumps({"points": points, "grown": grown, "threads left": after - before}))
    else:
        print(f"memory {grown:+.1%} since the first minute; {after - before} threads left")
    sys.exit(int(grown > 0.1 or after != before or bool(left)))


def resident() -> float:
    """Memory in use, MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


if __name__ == "__main__":
    main()
