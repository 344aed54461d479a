"""What a finished map costs beside plain classification and beside other tools.

    python benchmarks/overhead.py --models resnet50,lite0 --rounds 30
    python benchmarks/overhead.py --models resnet50,lite0 --engine openvino

Every contender runs once a round, in turn, so that a machine that changes speed changes it for
all, each after a pause and one run that is not counted; medians and their ratios are what to
quote. Plain classification is the same network exported without whycam, in ONNX Runtime; in another
engine it is the explaining file, asked for its probabilities alone. Random weights (Lite0 has real
ones): time does not depend on them.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from timing import (
    MODELS,
    PLAIN,
    Contenders,
    console,
    environment,
    interleaved,
    network,
    plain_onnx,
    preprocessing,
    report,
    session,
)

import whycam
from whycam.export import to_onnx
from whycam.export.baselines import prepare_baselines
from whycam.runtime.bench.bench import BASELINES
from whycam.runtime.errors import RequestError

EXPLAIN = "whycam gradcam"


def ours(path: Path, image: np.ndarray, method: str, engine: str, threads: int) -> Contenders:
    """From the prepared image to a finished map, and probabilities alone, in one engine."""
    run = whycam.load(path, engine, threads=threads).engine.run
    feeds = {"image": image, "target": np.full((1, 1), -1, np.int64)}
    return {
        PLAIN: lambda: run(feeds, ["probabilities"]),
        f"whycam {method}": lambda: run(feeds, ["probabilities", "targets", "maps"]),
    }


def baseline(name: str, model: torch.nn.Module, layer: str, image: np.ndarray) -> Contenders:
    """Another tool's Grad-CAM and torch's classification; nothing if it is not installed."""
    try:
        return prepare_baselines(model, layer, image, [name])
    except RequestError as error:
        console.print(f"left out: {error}")
        return {}


def measure(
    name: str, engine: str, rounds: int, threads: int, folder: Path
) -> list[dict[str, list[float]]]:
    """Export one network both ways and time everything on one image, in turn.

    In two parts, each with a plain classification of its own to compare with: what runs in the
    engine, and what runs in torch. Thread pools that spin in turn would disturb each other.
    """
    model = network(name)
    image = np.random.default_rng(0).standard_normal((1, 3, 224, 224)).astype(np.float32)
    engines: Contenders = {}
    for method in ("gradcam", "ablation"):
        path = folder / f"{name}.{method}.onnx"
        made = to_onnx(model, path, overrides=preprocessing(name), methods=[method])
        engines |= ours(path, image, method, engine, threads)
    if engine == "onnxruntime":
        base = session(plain_onnx(model, folder / f"{name}.plain.onnx"), threads)
        given = {base.get_inputs()[0].name: image}
        engines[PLAIN] = lambda: base.run(None, given)
    beside_torch = {PLAIN: engines[PLAIN], EXPLAIN: engines[EXPLAIN]}
    for tool in BASELINES:
        beside_torch |= baseline(tool, model, made.manifest.target_layer, image)
    return [interleaved(engines, rounds), interleaved(beside_torch, rounds)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default="resnet50,lite0", help=f"of {', '.join(MODELS)}")
    parser.add_argument("--engine", default="onnxruntime", choices=("onnxruntime", "openvino"))
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", action="store_true", help="raw samples in seconds")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in options.models.split(","):
            console.print(f"exporting and timing {name} ...")
            results[name] = measure(
                name, options.engine, options.rounds, options.threads, Path(folder)
            )
    about = {**environment(options.threads), "engine": options.engine}
    if options.json:
        print(json.dumps({**about, "seconds": results}))
        return
    out = Console(highlight=False, width=max(120, console.width))
    out.print(report(results, EXPLAIN))
    out.print(about)


if __name__ == "__main__":
    main()
