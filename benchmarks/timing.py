"""What the benchmarks share: networks, plain classifiers, and timing in turn."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import onnxruntime
import torch
import torchvision
from rich.console import Console
from rich.table import Table

from whycam.cli.progress import progress
from whycam.export import Overrides
from whycam.runtime.machine import describe_machine
from whycam.runtime.timing import measure_seconds, run_interleaved

ROOT = Path(__file__).parent.parent
MODELS = ("resnet50", "vgg16", "mobilenet_v3_large", "lite0")
PLAIN = "plain classification"
Contenders = dict[str, Callable[[], Any]]
console = Console(stderr=True)


def network(name: str) -> torch.nn.Module:
    """Random weights, but Lite0 has real ones: time does not depend on them."""
    if name == "lite0":
        sys.path.insert(0, str(ROOT / "examples"))
        from efficientnet_lite0 import model

        return model().eval()
    torch.manual_seed(0)
    return torchvision.models.get_model(name, weights=None).eval()


def preprocessing(name: str) -> Overrides | None:
    """What export must be told of a network's images; Lite0 says it itself."""
    return None if name == "lite0" else Overrides(preprocess="imagenet")


def plain_onnx(model: torch.nn.Module, path: Path) -> Path:
    """The classifier alone, as anyone would export it: probabilities out."""
    classifier = torch.nn.Sequential(model, torch.nn.Softmax(dim=-1)).eval()
    torch.onnx.export(
        classifier,
        (torch.zeros(2, 3, 224, 224),),
        path,
        dynamo=True,
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        verbose=False,
        external_data=False,
    )
    return path


def session(path: Path, threads: int) -> onnxruntime.InferenceSession:
    """ONNX Runtime on the CPU, set as whycam sets it."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def interleaved(contenders: Contenders, rounds: int, warm_up: int = 5) -> dict[str, list[float]]:
    """Seconds of each contender in each round."""
    timed = {name: partial(measure_seconds, run) for name, run in contenders.items()}
    with progress("rounds", rounds, quiet=False) as advance:
        advance.total(rounds)
        return run_interleaved(timed, rounds, warm_up, advance)


def report(results: dict[str, list[dict[str, list[float]]]], beside: str) -> Table:
    """Medians, and their ratios to plain classification and to ``beside``."""
    table = Table("network", "what", "median ms", "p10 to p90", "/ plain", f"/ {beside}")
    for name, parts in results.items():
        for samples in parts:
            medians = {what: statistics.median(times) for what, times in samples.items()}
            for what, times in samples.items():
                tenths = statistics.quantiles(times, n=10)
                table.add_row(
                    name,
                    what,
                    f"{medians[what] * 1e3:.2f}",
                    f"{tenths[0] * 1e3:.2f} to {tenths[-1] * 1e3:.2f}",
                    f"{medians[what] / medians[PLAIN]:.3f}",
                    f"{medians[what] / medians[beside]:.2f}" if beside in medians else "",
                )
            table.add_section()
    return table


def environment(threads: int) -> dict[str, Any]:
    """Where and with what a benchmark ran."""
    return {**describe_machine(), "threads": threads}
