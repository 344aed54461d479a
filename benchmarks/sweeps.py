"""Searches for a map's threshold, held against trying all ten exactly.

    python benchmarks/sweeps.py lite0.onnx images/ --search 3,4

For each search: evaluations, time beside the exact sweep in the same run, and what is kept of TFT's
gain in average increase and of the mean rpi. The file must hold what ``whycam calibrate
thresholds`` learnt from other images.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from functools import partial

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table
from timing import environment

import whycam
from whycam.calibrate import open_dataset
from whycam.calibrate.dataset import shuffle_samples
from whycam.runtime import pipeline
from whycam.runtime.images import read_image
from whycam.runtime.pipeline import prepare
from whycam.runtime.search import prior_for
from whycam.runtime.sweep import Choice, Request, sweep
from whycam.runtime.tft import Tft

READINGS = (Tft("binary", "value"), Tft("soft", "rank"))
EXACT = "all ten, exact"
Way = Callable[[list[Request]], list[Choice]]


def ways(
    exact: whycam.Explainer,
    evaluations: list[int],
    method: str,
    reading: Tft,
) -> dict[str, tuple[int, Way]]:
    """Name to evaluations, and how."""
    run, batch = partial(pipeline.classify, exact.model), exact.batch
    found: dict[str, tuple[int, Way]] = {EXACT: (10, lambda r: sweep(run, r, reading, batch))}
    for count in evaluations:
        prior = prior_for(exact.manifest.priors, method, reading)
        settings = Tft(reading.mask, reading.thresholds, prior.taus, count)
        found[f"search of {count}"] = (
            count,
            lambda r, s=settings, p=prior: sweep(run, r, s, batch, p),
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("data")
    parser.add_argument("--search", default="4", help="evaluations, as 3,4")
    parser.add_argument("--methods", default="gradcam")
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    exact = whycam.load(options.model, threads=options.threads)
    evaluations = [int(count) for count in options.search.split(",") if count]
    samples = shuffle_samples(open_dataset(options.data).samples)[: options.images]
    rows = []
    for method in options.methods.split(","):
        for reading in READINGS:
            tried = ways(exact, evaluations, method, reading)
            rows += measured(exact, samples, method, reading, tried)
    about = environment(options.threads)
    if options.json:
        print(json.dumps({**about, "rows": rows}))
        return
    out = Console(highlight=False, width=140)
    table = Table(
        "method", "reading", "way", "evaluations", "ms", "/ exact", "of the gain", "of the rpi"
    )
    for row in rows:
        table.add_row(*(f"{v:.3g}" if isinstance(v, float) else str(v) for v in row.values()))
    out.print(table)
    out.print(f"{len(samples)} images of {options.data}; {about}")


def measured(exact, samples, method, reading, tried) -> list[dict]:
    seconds: dict[str, list[float]] = {name: [] for name in tried}
    best: dict[str, list[tuple[bool, float]]] = {name: [] for name in tried}
    originals = []
    for sample in track(samples, description=f"{method} {reading.mask}", transient=True):
        images = prepare([read_image(sample.path)], exact.manifest).inputs
        plan = exact.plan(method)
        (request,) = pipeline.map(
            exact.model, pipeline.infer(exact.model, images, [[-1]], plan), plan
        )
        for name, (_, way) in tried.items():
            begin = time.perf_counter()
            (choice,) = way([request])
            seconds[name].append(time.perf_counter() - begin)
            best[name].append((choice.improved, float(np.nanmax(choice.rpi))))
            if name == EXACT:
                originals.append(bool(choice.rpi[0] > 0))  # tau 0: the map as it is
    original = np.array(originals)
    gain = np.mean(np.array([b for b, _ in best[EXACT]]) | original) - original.mean()
    rpi = np.mean([r for _, r in best[EXACT]])
    exactly = statistics.median(seconds[EXACT])
    return [
        {
            "method": method,
            "reading": f"{reading.mask}, {reading.thresholds}",
            "way": name,
            "evaluations": count,
            "milliseconds": 1e3 * statistics.median(seconds[name]),
            "of exact": statistics.median(seconds[name]) / exactly,
            "gain kept": float(
                (np.mean(np.array([b for b, _ in best[name]]) | original) - original.mean()) / gain
            ),
            "rpi kept": float(np.mean([r for _, r in best[name]]) / rpi),
        }
        for name, (count, _) in tried.items()
    ]


if __name__ == "__main__":
    main()
