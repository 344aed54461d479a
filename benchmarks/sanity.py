"""Do maps depend on the network at all? Its layers are given random weights, from the last on.

    python benchmarks/sanity.py --model torchvision/resnet18 IMAGES -o sanity/
    python benchmarks/sanity.py --model examples/efficientnet_lite0.py:model IMAGES --count 20

Cascading randomisation (Adebayo et al., NeurIPS 2018): maps of the class that the untouched network
predicts, after the last layers with weights, one more each time, have been initialised anew. A
method whose maps stay alike shows edges of the image, not what the network learned. Reported is the
mean Pearson correlation with the maps of the untouched network, and its standard error.
"""

from __future__ import annotations

import argparse
import copy
import json
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from timing import console

import whycam
from whycam.cli.progress import progress
from whycam.export import Overrides, to_onnx
from whycam.export.resolve import resolve
from whycam.runtime.images import list_images
from whycam.runtime.similarity import pearson


def layers_with_weights(model: torch.nn.Module) -> list[str]:
    """Names of the layers that can be initialised anew, the last first."""
    return [
        name
        for name, module in reversed(list(model.named_modules()))
        if hasattr(module, "reset_parameters") and list(module.parameters(recurse=False))
    ]


def randomised(model: torch.nn.Module, names: Sequence[str], seed: int = 0) -> torch.nn.Module:
    """A copy with new weights in some layers."""
    torch.manual_seed(seed)
    other = copy.deepcopy(model)
    for name in names:
        other.get_submodule(name).reset_parameters()
    return other.eval()


def explain(
    path: Path, images: Sequence[Path], methods: Sequence[str], targets: Sequence[int] | None
) -> tuple[dict[str, list[np.ndarray]], list[int]]:
    """Maps of each method, of the targets or the predicted classes; and these classes."""
    explainer = whycam.load(path, "onnxruntime", threads=2)
    found: dict[str, list[np.ndarray]] = {method: [] for method in methods}
    classes = []
    for index, image in enumerate(images):
        target = -1 if targets is None else targets[index]
        by_method = explainer.explain(image, target, list(methods))
        for method, one in by_method.items():
            found[method].append(one.original_map)
        classes.append(by_method[methods[0]].index)
    return found, classes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("images", type=Path, help="a folder")
    parser.add_argument("--model", default="torchvision/resnet18")
    parser.add_argument("--methods", default="gradcam,gradcam++,layercam,xgradcam,hirescam")
    parser.add_argument("--steps", type=int, default=6, help="how many times more is randomised")
    parser.add_argument("--count", type=int, default=20, help="images")
    parser.add_argument("--preprocess", default=None)
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    methods = options.methods.split(",")
    images = list_images(options.images)
    images = images[:: max(1, len(images) // options.count)][: options.count]
    overrides = Overrides(preprocess=options.preprocess)
    source = resolve(options.model, overrides=overrides)
    names = layers_with_weights(source.model)
    steps = np.unique(np.linspace(0, len(names), options.steps + 1).round().astype(int))
    rows = []
    first: dict[str, list[np.ndarray]] = {}
    classes: list[int] | None = None
    with (
        tempfile.TemporaryDirectory() as folder,
        progress("randomising", len(steps), quiet=False) as advance,
    ):
        for step in steps:
            path = Path(folder) / f"{step}.onnx"
            model = randomised(source.model, names[:step])
            to_onnx(replace(source, model=model), path, methods=methods)
            maps, own = explain(path, images, methods, classes)
            classes, first = classes or own, first or maps
            for method in methods:
                alike = [pearson(a, b) for a, b in zip(first[method], maps[method], strict=True)]
                error = float(np.std(alike, ddof=1) / len(alike) ** 0.5) if len(alike) > 1 else 0.0
                rows.append(
                    {"layers": int(step), "from": names[step - 1] if step else "", "method": method,
                     "correlation": float(np.mean(alike)), "standard_error": error}
                )  # fmt: skip
            path.unlink()
            advance(f"{step} of {len(names)} layers", 1)
    table = Table("layers randomised", "down to", *methods)
    for step in steps:
        cells = {row["method"]: row for row in rows if row["layers"] == step}
        table.add_row(
            str(step),
            cells[methods[0]]["from"],
            *(f"{cells[m]['correlation']:.2f} ± {cells[m]['standard_error']:.2f}" for m in methods),
        )
    Console(highlight=False, width=max(120, console.width)).print(table)
    if options.output is not None:
        options.output.mkdir(parents=True, exist_ok=True)
        about = {"model": options.model, "images": len(images), "layers": len(names), "rows": rows}
        (options.output / "sanity.json").write_text(json.dumps(about, indent=2))


if __name__ == "__main__":
    main()
