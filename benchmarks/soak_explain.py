"""Many explains of varied images by one explainer: memory must not grow.

    python benchmarks/soak_explain.py lite0.onnx --explains 100000

Sizes, kinds of source, methods, targets and batches vary, TFT comes now and then, and every
hundredth call is a request that must be refused. Memory is taken as it is and, where the C library
is glibc, once more after that has given back what it only keeps for later: images of varied sizes
leave gaps, which grow for some ten thousand calls although nothing is held. Exit code 1 if what is
held at the end is more than 5 % above that after the first 2 % of the calls, or if a thread or an
open file is left.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import json
import os
import random
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.progress import track
from soak import resident

import whycam

WARM, ALLOWED, POINTS = 0.02, 0.05, 50
ENDINGS = (".png", ".jpg", ".webp", ".bmp", ".tif", ".gif")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--explains", type=int, default=100_000)
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    explainer = whycam.load(options.model, options.engine, options.threads)
    warm = max(1, int(WARM * options.explains))
    every = max(1, options.explains // POINTS)
    points: list[dict[str, Any]] = []
    before = threading.active_count()
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        chance = random.Random(options.seed)
        files = stored(Path(folder), chance)
        calls = range(1, options.explains + 1)
        for call in track(calls, "explaining", disable=not sys.stderr.isatty()):
            explain(explainer, files, chance)
            if call in (warm, options.explains) or call % every == 0:
                points.append(
                    {
                        "explains": call,
                        "seconds": round(time.monotonic() - begun, 1),
                        "mib": round(resident(), 1),
                        "held": round(held(), 1),
                        "threads": threading.active_count(),
                        "files": open_files(),
                    }
                )
                if not options.json:
                    print(*(f"{k} {v}" for k, v in points[-1].items()), sep="  ", flush=True)
    start = next(point for point in points if point["explains"] == warm)
    end = points[-1]
    grown = end["held"] / start["held"] - 1
    left = end["threads"] - before
    opened = end["files"] - start["files"]
    if options.json:
        about = {"engine": explainer.engine.description, "points": points}
        print(json.dumps({**about, "grown": grown, "threads left": left, "files left": opened}))
    else:
        print(explainer.engine.description)
        print(f"memory held {grown:+.1%} since the first {WARM:.0%} of the calls")
        print(f"left: {left} threads, {opened} files")
    sys.exit(int(grown > ALLOWED or left > 0 or opened > 0))


def stored(folder: Path, chance: random.Random) -> list[Path]:
    """Images of many sizes in files of every type."""
    files = []
    for number, ending in enumerate(ENDINGS * 4):
        path = folder / f"{number}{ending}"
        Image.fromarray(noise(chance)).save(path)
        files.append(path)
    return files


def noise(chance: random.Random) -> np.ndarray:
    size = chance.randint(1, 300), chance.randint(1, 300), 3
    return np.random.default_rng(chance.getrandbits(32)).integers(0, 256, size, np.uint8)


def explain(explainer: whycam.Explainer, files: list[Path], chance: random.Random) -> None:
    """One call, of some kind."""
    if chance.random() < 0.01:
        try:
            explainer.explain(noise(chance), targets=explainer.manifest.num_classes)
        except whycam.WhyCamError:
            return
        raise SystemExit("a class that does not exist was explained")
    sources = [
        lambda: chance.choice(files),
        lambda: noise(chance),
        lambda: Image.fromarray(noise(chance)),
    ]
    images: Any = chance.choice(sources)()
    if chance.random() < 0.05:
        images = [chance.choice(sources)() for _ in range(chance.randint(2, 3))]
    classes = explainer.manifest.num_classes
    wanted = [None, -1, -2, chance.randrange(classes), [0, -1]]
    found = explainer.explain(
        images,
        None if isinstance(images, list) else chance.choice(wanted),
        # Score-CAM is a forward pass for every channel: it would be most of the time.
        chance.choice([each for each in explainer.manifest.methods if each != "scorecam"]),
        tft=chance.random() < 0.1,
        geometry=chance.choice(["input", "image"]),
    )
    first = found[0] if isinstance(found, list) else found
    assert 0 <= first.map.min() <= first.map.max() <= 1
    if chance.random() < 0.02:
        first.overlay()


def held() -> float:
    """Memory in use, MiB, without what the C library keeps for later."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    return resident()


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


if __name__ == "__main__":
    main()
