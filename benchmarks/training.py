"""What the feature cache saves: an epoch of AFT with and without it, in turn.

python benchmarks/training.py --data DATA --images 200 --rounds 3
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from timing import MODELS, console, environment, network

from whycam.calibrate import open_dataset
from whycam.runtime.input_format import Preprocess
from whycam.train.cache import Cache
from whycam.train.data import Batches
from whycam.train.network import TunableNetwork
from whycam.train.objective import AftLosses, Objective
from whycam.train.prepare import RowComputer, layout

BATCH = 16


def epoch(losses: AftLosses, batches: Batches, optimizer: torch.optim.Optimizer, n: int) -> float:
    """Seconds for one pass over the images."""
    begin = time.perf_counter()
    for step, start in enumerate(range(0, n, BATCH)):
        optimizer.zero_grad()
        losses(batches(range(start, min(start + BATCH, n)), step))[0].backward()
        optimizer.step()
    return time.perf_counter() - begin


def measure(name: str, paths: list[Path], variant: str, rounds: int, folder: Path) -> dict:
    """Seconds of each round, with the cache and without."""
    tunable = TunableNetwork(network(name), (224, 224))
    objective = Objective(terms={variant: 1.0})
    maker = RowComputer(tunable, Preprocess(size=(224, 224), resize=(256,)), torch.device("cpu"))
    small = ["target", "probabilities"]
    stores = {
        "cached": Cache(
            folder / f"{name}.cached", len(paths), layout(tunable, [*small, "features"])
        ),
        "not cached": Cache(folder / f"{name}.small", len(paths), layout(tunable, small)),
    }
    size = tunable.target.shape[1:]
    runs = {}
    for kind, store in stores.items():
        maker.fill(store, paths)
        wanted = [*small, "features" if kind == "cached" else "image"]
        batches = Batches(store, maker, paths, [-1] * len(paths), wanted)
        runs[kind] = _with_mask(batches, size)
    losses = AftLosses(tunable, objective)
    optimizer = torch.optim.AdamW(losses.trained().values(), lr=1e-6)
    seconds: dict[str, list[float]] = {kind: [] for kind in runs}
    for turn in range(rounds + 1):
        for kind, batches in runs.items():
            spent = epoch(losses, batches, optimizer, len(paths))
            if turn:  # the first is a warm-up
                seconds[kind].append(spent)
    return seconds


def _with_mask(batches: Batches, size: tuple[int, ...]):
    """Any mask will do: time does not depend on it."""

    def fetch(items: range, step: int) -> dict[str, torch.Tensor]:
        return {**batches(items, step), "mask": torch.full((len(items), *size), 0.5)}

    return fetch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default="lite0", help=f"of {', '.join(MODELS)}")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--variants", default="tuner,aligned")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", action="store_true", help="raw samples in seconds")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    paths = [sample.path for sample in open_dataset(options.data).samples][: options.images]
    table = Table("network", "variant", "cached s", "not cached s", "ratio")
    raw = {}
    for name in options.models.split(","):
        for variant in options.variants.split(","):
            console.print(f"timing {name} {variant} ...")
            with tempfile.TemporaryDirectory() as folder:
                seconds = measure(name, paths, variant, options.rounds, Path(folder))
            raw[f"{name} {variant}"] = seconds
            with_cache, without = (statistics.median(times) for times in seconds.values())
            cells = [f"{with_cache:.2f}", f"{without:.2f}", f"{without / with_cache:.1f}"]
            table.add_row(name, variant, *cells)
    about = {**environment(options.threads), "images": len(paths)}
    if options.json:
        print(json.dumps({**about, "seconds": raw}))
        return
    out = Console(highlight=False)
    out.print(table)
    out.print(about)


if __name__ == "__main__":
    main()
