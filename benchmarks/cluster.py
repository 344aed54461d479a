"""Images a second of one worker and of two on a Ray cluster, and what ten million images take.

    python benchmarks/cluster.py lite0.onnx images/ --figure docs/images/cluster.svg

Each worker has one thread. One worker and two take turns in each round; a round's rate counts from
its first finished part on, so that the start of workers is not in it. Processor time of the workers
is measured as well: it is what clouds charge, and other work on the machine hardly disturbs it.
The plan counts with the processor time of two workers, see docs/cluster.md.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import statistics
import tempfile
import time
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from whycam import Explainer, Tft
from whycam.runtime.distributed.cluster import run_on_workers
from whycam.runtime.distributed.coordinator import ClusterModel, Workers
from whycam.runtime.distributed.explain import Request
from whycam.runtime.distributed.run import Run, begin_run, explain_part
from whycam.runtime.distributed.storage import Storage, open_storage
from whycam.runtime.machine import describe_machine

COUNTS = (1, 2)


@dataclass(frozen=True)
class Sample:
    """One run over the folder.

    Attributes:
        workers: how many shared it.
        rate: images a second, of all together, from the first finished part on.
        cpu_s: processor time of an image.
        start_s: until the first part was finished.
        memory_mb: of the largest worker.
        bytes: of the results of an image.
    """

    workers: int
    rate: float
    cpu_s: float
    start_s: float
    memory_mb: float
    bytes: float


def measured_part(
    explainer: Explainer, part: int, folder: Storage, source: Storage, request: Request
) -> tuple[int, float, float]:
    """Images of a part, processor time in seconds and the process's largest memory in MiB."""
    before = resource.getrusage(resource.RUSAGE_SELF)
    images = explain_part(explainer, part, folder, source, request)
    after = resource.getrusage(resource.RUSAGE_SELF)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return images, spent, after.ru_maxrss / 1024


def measure(
    ray: Any, model: ClusterModel, source: Storage, request: Request, workers: int
) -> Sample:
    with tempfile.TemporaryDirectory() as place:
        folder = open_storage(place)
        run, _ = begin_run(folder, source, Run(model="", source=source.name, settings={}))
        work = partial(measured_part, folder=folder, source=source, request=request)
        arrived, found = [], []
        begun = time.monotonic()
        shared = Workers(workers, 1, 0)
        for result in run_on_workers(ray, model, work, range(run.parts), shared):
            arrived.append(time.monotonic())
            found.append(result)
        size = sum(path.stat().st_size for path in Path(place).glob("part-*.parquet"))
    later = sum(images for images, _, _ in found[1:])
    # A worker's first part has the engine's first runs in it.
    steady = found[workers:]
    return Sample(
        workers,
        later / (arrived[-1] - arrived[0]),
        sum(spent for _, spent, _ in steady) / sum(images for images, _, _ in steady),
        arrived[0] - begun,
        max(memory for _, _, memory in found),
        size / run.images,
    )


def plan(images: int, hours: float, price: float, cpu_s: float, row: float) -> str:
    """Workers, bytes and cost of a job, in one line; docs/cluster.md has the formulas."""
    busy = images * cpu_s / 3600
    return (
        f"{images:,} images in {hours:g} hours: {busy:.0f} processor hours, "
        f"{math.ceil(busy / hours)} workers of one processor each, {images * row / 1e9:.1f} GB of "
        f"results, {busy * price:.2f} at {price:g} a processor hour"
    )


def draw(samples: dict[int, list[Sample]], target: Path, title: str) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 3.2), layout="constrained")
    axis = figure.subplots()
    rates = {count: [one.rate for one in samples[count]] for count in samples}
    first = statistics.median(rates[1])
    axis.plot([0, 2.4], [0, 2.4 * first], color="#9aa0a6", linestyle="--", label="proportional")
    for count, values in rates.items():
        axis.plot([count] * len(values), values, "o", color="#31688e", alpha=0.35)
        axis.plot(count, statistics.median(values), "_", markersize=30, color="#c03a2b")
    axis.set_xticks(list(rates))
    axis.set_xlim(0, 2.4)
    axis.set_ylim(0)
    axis.set_xlabel("workers, one thread each")
    axis.set_ylabel("images a second")
    axis.set_title(title, fontsize=9)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False)
    figure.savefig(target)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="from whycam export")
    parser.add_argument("folder", help="of images, some hundreds")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tft", action="store_true")
    parser.add_argument("--figure", type=Path, help="a .svg or .png file")
    parser.add_argument("--images", type=int, default=10_000_000, help="of the plan")
    parser.add_argument("--hours", type=float, default=8, help="of the plan")
    parser.add_argument("--price", type=float, default=0.05, help="of a processor hour")
    parser.add_argument("--json", action="store_true", help="raw samples")
    options = parser.parse_args()
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray
    import ray.data

    ray.init("local", num_cpus=max(COUNTS), include_dashboard=False, log_to_driver=False)
    model, source = ClusterModel(options.model), open_storage(options.folder)
    request = Request(tft=Tft() if options.tft else None)
    samples: dict[int, list[Sample]] = {count: [] for count in COUNTS}
    load: list[float] = []
    for _ in range(options.rounds):
        for count in COUNTS:
            load.append(os.getloadavg()[0])
            samples[count].append(measure(ray, model, source, request, count))
    ray.shutdown()
    about = {**describe_machine(), "tft": options.tft, "load average before each run": load}
    if options.json:
        print(json.dumps({**about, "samples": [asdict(s) for v in samples.values() for s in v]}))
    one, two = (
        {name: statistics.median(getattr(s, name) for s in samples[count]) for name in FIELDS}
        for count in COUNTS
    )
    table = Table("workers", "images/s", "slowest to fastest", "processor ms", "MiB", "start s")
    for count, median in zip(COUNTS, (one, two), strict=True):
        rates = [sample.rate for sample in samples[count]]
        table.add_row(
            str(count),
            f"{median['rate']:.1f}",
            f"{min(rates):.1f} to {max(rates):.1f}",
            f"{1e3 * median['cpu_s']:.1f}",
            f"{median['memory_mb']:.0f}",
            f"{median['start_s']:.1f}",
        )
    out = Console(highlight=False, width=140, stderr=options.json)
    out.print(table)
    rate, cpu = two["rate"] / one["rate"], 2 * one["cpu_s"] / two["cpu_s"]
    out.print(f"two workers / one: {rate:.2f} by the clock, {cpu:.2f} by processor time")
    out.print(f"{two['bytes']:.0f} bytes an image are written")
    out.print(plan(options.images, options.hours, options.price, two["cpu_s"], two["bytes"]))
    out.print(about)
    if options.figure is not None:
        draw(samples, options.figure, f"{options.model.stem}, {about['processor']}")


FIELDS = ("rate", "cpu_s", "start_s", "memory_mb", "bytes")

if __name__ == "__main__":
    main()
