"""A folder of images explained by several methods, beside the engine's own classification rate.

    python benchmarks/folder.py lite0.onnx ../shared/data/imagenet-samples

All contenders take turns in each round, so that a machine that changes speed changes it for all;
medians of images a second are what to quote. The engine alone classifies inputs that were prepared
before, in batches as the folder's are; everybody else begins with the image files.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

import whycam
from whycam.runtime.batches import CALLERS, batch_size_for, join_batches, prepared_batches
from whycam.runtime.images import list_images
from whycam.runtime.machine import describe_machine
from whycam.runtime.pipeline import Prepared, classify
from whycam.runtime.timing import measure_seconds, run_interleaved

ENGINE = "engine alone, prepared inputs"
FILES = "classify files"


def contenders(
    explainer: whycam.Explainer, files: list[Path], methods: list[str]
) -> dict[str, Callable[[], Any]]:
    """What takes turns, by name; each goes through all files once."""
    model = explainer.model
    together = batch_size_for(model.batch, model.manifest.batch, CALLERS)
    inputs = [
        join_batches(read for _, read in batch if isinstance(read, Prepared)).inputs
        for batch in prepared_batches(files, lambda file: file, model.manifest, together)
    ]

    def explain(chosen: list[str]) -> None:
        for _ in explainer.iter_explanations(files, method=chosen):
            pass

    def one_by_one() -> None:
        for file in files:
            for method in methods:
                explainer.explain(file, method=method)

    return {
        ENGINE: lambda: [classify(model, batch) for batch in inputs],
        FILES: lambda: explainer.classify(files),
        f"explain, {methods[0]}": partial(explain, methods[:1]),
        f"explain, {len(methods)} methods": partial(explain, methods),
        f"explain file by file, {len(methods)} methods": one_by_one,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="from whycam export")
    parser.add_argument("folder", type=Path, help="of images")
    parser.add_argument("--images", type=int, default=100, help="at most")
    parser.add_argument("--methods", default="gradcam,gradcam++,layercam")
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="raw samples in seconds")
    options = parser.parse_args()
    explainer = whycam.load(options.model, options.engine, options.threads)
    files = list_images(options.folder)[: options.images]
    runs = contenders(explainer, files, options.methods.split(","))
    seconds = run_interleaved(
        {name: partial(measure_seconds, run) for name, run in runs.items()}, options.rounds, 1
    )
    about = {
        **describe_machine(),
        "engine": explainer.engine.description,
        "threads": options.threads,
        "images": len(files),
        "load average": os.getloadavg(),
    }
    if options.json:
        print(json.dumps({**about, "seconds": seconds}))
        return
    rates = {name: len(files) / statistics.median(samples) for name, samples in seconds.items()}
    table = Table(
        "what", "images/s", "slowest to fastest", "/ engine alone", "/ classify the files"
    )
    for name, samples in seconds.items():
        table.add_row(
            name,
            f"{rates[name]:.1f}",
            f"{len(files) / max(samples):.1f} to {len(files) / min(samples):.1f}",
            f"{rates[name] / rates[ENGINE]:.2f}",
            f"{rates[name] / rates[FILES]:.2f}",
        )
    out = Console(highlight=False, width=120)
    out.print(table)
    out.print(about)


if __name__ == "__main__":
    main()
