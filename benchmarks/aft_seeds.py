"""Run one fine-tuning with several seeds, and print the spread of what it gives.

    python benchmarks/aft_seeds.py --seeds 3 -o runs/ -- mine/ voc/ --variant guided,faithful

What follows ``--`` goes to ``whycam train aft``. Each run has a folder, and is not done again.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

MEASURES = (
    "average_increase", "average_drop", "cross_asked_increase", "cross_asked_drop", "coverage",
    "pointing_game", "energy_in_box", "region_iou", "sparsity",
)  # fmt: skip
out = Console(highlight=False)


def main() -> None:
    """Run the seeds, and print means and standard deviations."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3, help="how many runs")
    parser.add_argument("-o", "--output", type=Path, default=Path("runs"), help="folder of runs")
    parser.add_argument("arguments", nargs="+", help="of whycam train aft")
    options = parser.parse_args()
    runs = [run(options.arguments, seed, options.output) for seed in range(options.seeds)]
    rows = Table("measure", "before", "with TFT", "after")
    for name in MEASURES:
        if all(run["rows"]["aft"].get(name) is not None for run in runs):
            columns = ("original", "tft", "aft")
            found = [[run["rows"][column].get(name) for run in runs] for column in columns]
            rows.add_row(name.replace("_", " "), *map(summary, found))
    before, after = ([run[f"accuracy_{when}"] for run in runs] for when in ("before", "after"))
    if before[0] is not None:
        rows.add_row("accuracy", summary(before), "", summary(after))
    out.print(rows)


def run(arguments: list[str], seed: int, folder: Path) -> dict[str, Any]:
    """Tune with one seed."""
    command = ["-m", "whycam", "train", "aft", *arguments, "--seed", str(seed)]
    place = folder / f"seed{seed}"
    done = subprocess.run(
        [sys.executable, *command, "-o", str(place), "--json"], check=True, stdout=subprocess.PIPE
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def summary(values: list[float | None]) -> str:
    """Mean and, of several runs, the standard deviation."""
    known = [value for value in values if value is not None]
    if not known:
        return ""
    spread = f" ± {np.std(known, ddof=1):.3f}" if len(known) > 1 else ""
    return f"{np.mean(known):.3f}{spread}"


if __name__ == "__main__":
    main()
