"""What an explanation costs beside plain classification and beside other tools.

    python benchmarks/overhead.py --models resnet50,lite0 --rounds 30

Every contender runs once a round, in turn, so that a machine that changes speed changes it for
all, each after a pause and one run that is not counted; medians and their ratios are what to
quote. Random weights (Lite0 has real ones): time does not depend on them.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

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
    report,
    session,
)

import whycam
from whycam.export import to_onnx
from whycam.export.layer import capture, find_layer, split
from whycam.runtime import cam
from whycam.runtime.threads import one_blas_thread

EXPLAIN = "whycam gradcam"


def ours(path: Path, image: np.ndarray, method: str, threads: int) -> Contenders:
    """The engine call alone, and the whole way from the normalised image to a finished map."""
    engine = whycam.load(path, threads=threads).engine
    feeds = {"image": image, "target": np.full((1, 1), -1, np.int64)}
    needed = "ablation_weights" if method == "ablation" else "gradients"
    outputs = ["probabilities", "targets", "activations", needed]

    def explain() -> np.ndarray:
        found = engine.run(feeds, outputs)
        with one_blas_thread():  # as the runtime does
            raw = cam.raw_map(
                method, found["activations"], found.get("gradients"), found.get("ablation_weights")
            )
            return cam.finish(raw, (224, 224))

    return {
        f"whycam {method}, engine": lambda: engine.run(feeds, outputs),
        f"whycam {method}": explain,
    }


def peers(model: torch.nn.Module, image: np.ndarray) -> Contenders:
    """Grad-CAM by the other tools, at the layer that whycam chooses; those that are installed."""
    captured = capture(model, (224, 224))
    chosen = split(captured, find_layer(captured))
    x = torch.from_numpy(image)
    found: Contenders = {"torch eager, classification": lambda: _no_grad(model, x)}
    layer = dict(model.named_modules()).get(chosen.layer.name)
    if layer is None:
        console.print(f"no module is called {chosen.layer.name}: peers are left out")
        return found
    try:
        from pytorch_grad_cam import GradCAM

        theirs = GradCAM(model=model, target_layers=[layer])
        found["pytorch-grad-cam gradcam"] = lambda: theirs(input_tensor=x, targets=None)
    except ImportError:
        console.print("pytorch-grad-cam is not installed: left out")
    try:
        from torchcam.methods import GradCAM as TorchGradCAM

        extractor = TorchGradCAM(model, target_layer=layer)

        def torchcam_map() -> Any:
            scores = model(x.clone().requires_grad_(True))
            return extractor(scores.argmax(dim=-1).tolist(), scores)

        found["torchcam gradcam"] = torchcam_map
    except ImportError:
        console.print("torchcam is not installed: left out")
    return found


def _no_grad(model: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(x)


def measure(name: str, rounds: int, threads: int, folder: Path) -> list[dict[str, list[float]]]:
    """Export one network both ways and time everything on one image, in turn.

    In two parts, each with a plain classification of its own to compare with: what runs in ONNX
    Runtime, and what runs in torch. Thread pools that spin in turn would disturb each other.
    """
    model = network(name)
    image = np.random.default_rng(0).standard_normal((1, 3, 224, 224)).astype(np.float32)
    base = session(plain_onnx(model, folder / f"{name}.plain.onnx"), threads)
    given = {base.get_inputs()[0].name: image}
    engines: Contenders = {PLAIN: lambda: base.run(None, given)}
    for method in ("gradcam", "ablation"):
        path = folder / f"{name}.{method}.onnx"
        to_onnx(model, path, methods=[method])
        engines |= ours(path, image, method, threads)
    beside_torch = {PLAIN: engines[PLAIN], EXPLAIN: engines[EXPLAIN], **peers(model, image)}
    return [interleaved(engines, rounds), interleaved(beside_torch, rounds)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default="resnet50,lite0", help=f"of {', '.join(MODELS)}")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", action="store_true", help="raw samples in seconds")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in options.models.split(","):
            console.print(f"exporting and timing {name} ...")
            results[name] = measure(name, options.rounds, options.threads, Path(folder))
    about = environment(options.threads)
    if options.json:
        print(json.dumps({**about, "seconds": results}))
        return
    out = Console(highlight=False, width=max(120, console.width))
    out.print(report(results, EXPLAIN))
    out.print(about)


if __name__ == "__main__":
    main()
