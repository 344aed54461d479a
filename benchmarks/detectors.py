"""What an explained detection costs beside plain detection, in the same engine.

    python benchmarks/detectors.py --rounds 20
    python benchmarks/detectors.py --size 320 --engines openvino --json

The network has random weights, and shape and size of a small YOLOv8: strides 8, 16 and 32, a path
down and up again, box distances as distributions, 80 classes, 3 million weights; 8400 candidates
of an image of 640 x 640. Time does not depend on the weights. Plain detection is the file before it
was explained, without suppression; all contenders take turns. Load from other work disturbs wall
time, so the processor's time is printed as well.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import torch
from tables import print_rows
from timing import environment, session
from torch import nn

import whycam
from whycam.export import Overrides, to_onnx
from whycam.runtime.detect import detect_prepared, find_boxes
from whycam.runtime.detection_plan import plan_detection
from whycam.runtime.pipeline import prepare
from whycam.runtime.timing import measure_seconds, run_interleaved

CLASSES, BINS, STRIDES, WIDTHS = 80, 16, (8, 16, 32), (64, 128, 256)
ENGINES = ("onnxruntime", "openvino")


def conv(inputs: int, outputs: int, side: int = 3, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, side, stride, side // 2, bias=False),
        nn.BatchNorm2d(outputs),
        nn.SiLU(),
    )


class Stage(nn.Module):
    """Half of the channels go through residual blocks, and all that was on the way is mixed."""

    def __init__(self, inputs: int, outputs: int, blocks: int, adds: bool = True) -> None:
        super().__init__()
        half = outputs // 2
        self.first, self.adds = conv(inputs, outputs, 1), adds
        self.blocks = nn.ModuleList(
            nn.Sequential(conv(half, half), conv(half, half)) for _ in range(blocks)
        )
        self.last = conv(half * (2 + blocks), outputs, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Mix the input, its half and what each block makes of that."""
        parts = list(self.first(x).chunk(2, 1))
        for block in self.blocks:
            new = block(parts[-1])
            parts.append(parts[-1] + new if self.adds else new)
        return self.last(torch.cat(parts, 1))


class Detector(nn.Module):
    """Backbone, a path down and up, and a head of two branches at each level."""

    def __init__(self) -> None:
        super().__init__()
        fine, middle, coarse = WIDTHS
        self.stem = nn.Sequential(conv(3, 16, 3, 2), conv(16, 32, 3, 2), Stage(32, 32, 1))
        self.fine = nn.Sequential(conv(32, fine, 3, 2), Stage(fine, fine, 2))
        self.middle = nn.Sequential(conv(fine, middle, 3, 2), Stage(middle, middle, 2))
        self.coarse = nn.Sequential(conv(middle, coarse, 3, 2), Stage(coarse, coarse, 1))
        self.up_middle = Stage(middle + coarse, middle, 1, False)
        self.up_fine = Stage(fine + middle, fine, 1, False)
        self.to_middle, self.to_coarse = conv(fine, fine, 3, 2), conv(middle, middle, 3, 2)
        self.down_middle = Stage(fine + middle, middle, 1, False)
        self.down_coarse = Stage(middle + coarse, coarse, 1, False)
        self.box = nn.ModuleList(_branch(width, 64, 4 * BINS) for width in WIDTHS)
        self.cls = nn.ModuleList(_branch(width, 80, CLASSES) for width in WIDTHS)
        for part in self.modules():
            if isinstance(part, nn.Conv2d):  # values of about the same size in every layer
                nn.init.kaiming_normal_(part.weight)
        for branch in self.cls:  # few candidates score above the least, as in a trained one
            nn.init.constant_(branch[-1].bias, -6.0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return boxes and scores, [N, 4 + C, A], of images [N, 3, H, W]."""
        fine = self.fine(self.stem(x))
        middle = self.middle(fine)
        coarse = self.coarse(middle)
        up = self.up_middle(torch.cat([_twice(coarse), middle], 1))
        fine = self.up_fine(torch.cat([_twice(up), fine], 1))
        middle = self.down_middle(torch.cat([self.to_middle(fine), up], 1))
        coarse = self.down_coarse(torch.cat([self.to_coarse(middle), coarse], 1))
        levels = (fine, middle, coarse)
        heads = zip(levels, self.box, self.cls, strict=True)
        both = [torch.cat([box(level), cls(level)], 1).flatten(2) for level, box, cls in heads]
        boxes, scores = torch.cat(both, 2).split((4 * BINS, CLASSES), 1)
        n, _, count = boxes.shape
        shares = boxes.view(n, 4, BINS, count).softmax(2)
        distances = (shares * torch.arange(BINS).view(1, 1, -1, 1).float()).sum(2)
        points, steps = _cells(levels)
        low, high = points - distances[:, :2], points + distances[:, 2:]
        boxes = torch.cat([(low + high) / 2, high - low], 1) * steps
        return torch.cat([boxes, scores.sigmoid()], 1)


def _branch(inputs: int, width: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(conv(inputs, width), conv(width, width), nn.Conv2d(width, outputs, 1))


def _twice(x: torch.Tensor) -> torch.Tensor:
    return nn.functional.interpolate(x, scale_factor=2.0, mode="nearest")


def _cells(levels: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    """Centres of the cells, [2, A] in cells of their level, and strides, [1, A]."""
    points, steps = [], []
    for level, stride in zip(levels, STRIDES, strict=True):
        height, width = level.shape[2:]
        rows, columns = torch.meshgrid(
            torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij"
        )
        points.append(torch.stack([columns, rows]).reshape(2, -1))
        steps.append(torch.full((1, height * width), float(stride)))
    return torch.cat(points, 1), torch.cat(steps, 1)


def write_files(folder: Path, size: int) -> tuple[Path, Path]:
    """The detector as anyone would export it, and the file that whycam makes of that."""
    torch.manual_seed(0)
    plain, explained = folder / "plain.onnx", folder / "explained.onnx"
    torch.onnx.export(
        Detector().eval(), (torch.zeros(1, 3, size, size),), plain, dynamo=True, verbose=False,
        external_data=False, input_names=["images"], output_names=["output0"],
    )  # fmt: skip
    letterbox = folder / "letterbox.json"
    letterbox.write_text(
        json.dumps({"letterbox": {}, "antialias": False, "mean": [0] * 3, "std": [1] * 3})
    )
    to_onnx(
        str(plain), explained, task="detect", format="yolov8",
        overrides=Overrides(preprocess=str(letterbox)),
    )  # fmt: skip
    return plain, explained


def plain_run(plain: Path, engine: str, threads: int, x: np.ndarray) -> Callable[[], Any]:
    """Plain detection: the file before it was explained."""
    if engine == "onnxruntime":
        opened = session(plain, threads)
        return lambda: opened.run(None, {"images": x})
    settings = {
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
    }
    compiled = openvino.Core().compile_model(str(plain), "CPU", settings)
    return lambda: compiled(x)


def contenders(
    plain: Path, explained: Path, engine: str, threads: int, size: int
) -> dict[str, Callable[[], Any]]:
    explainer = whycam.load(explained, engine, threads=threads)
    model, detector = explainer.model, explainer.manifest.detector
    image = np.random.default_rng(0).integers(0, 256, (size * 9 // 16, size, 3), np.uint8)
    prepared = prepare([image], explainer.manifest)

    def explain(count: int) -> Callable[[], Any]:
        spread = np.linspace(0, detector.candidates - 1, count + 2)[1:-1]
        plan = plan_detection(explainer.manifest, [(int(place), 0) for place in spread])
        return lambda: detect_prepared(model, prepared, plan)

    return {
        "plain detection": plain_run(plain, engine, threads, prepared.inputs),
        "with suppression": lambda: find_boxes(model, prepared.inputs),
        "one detection explained": explain(1),
        "ten detections explained": explain(10),
    }


def measure(run: Callable[[], Any]) -> tuple[float, float]:
    """Seconds of the clock, and of the processor."""
    before = resource.getrusage(resource.RUSAGE_SELF)
    wall = measure_seconds(run)
    after = resource.getrusage(resource.RUSAGE_SELF)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--engines", default=",".join(ENGINES))
    parser.add_argument("--size", type=int, default=640)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    load = os.getloadavg()[0]
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        files = write_files(Path(folder), options.size)
        for engine in options.engines.split(","):
            runs = contenders(*files, engine, options.threads, options.size)
            timed = {name: lambda run=run: measure(run) for name, run in runs.items()}
            samples = run_interleaved(timed, options.rounds)
            medians = {
                name: [statistics.median(values) for values in zip(*pairs, strict=True)]
                for name, pairs in samples.items()
            }
            wall, processor = medians["plain detection"]
            rows += [
                {
                    "engine": engine,
                    "what": name,
                    "median ms": 1e3 * own,
                    "/ plain": own / wall,
                    "processor / plain": cpu / processor,
                }
                for name, (own, cpu) in medians.items()
            ]
    about = {**environment(options.threads), "load before": load, "rounds": options.rounds}
    if options.json:
        print(json.dumps({"about": about, "rows": rows}, indent=1))
        return
    print_rows(rows, ".2f")
    print(f"{about['processor']}, {options.threads} threads, load average before: {load:.1f}")


if __name__ == "__main__":
    main()
