"""Do our measures give what Quantus gives, where both mean the same?

    pip install quantus scikit-image      # into an environment beside whycam's, with its packages
    python benchmarks/quantus_parity.py
    python benchmarks/quantus_parity.py --json

Maps are Grad-CAM's of a small network with fixed random weights, of scikit-image's photographs in
grey, 64 x 64 pixels: Quantus ranks the values of all channels apart, and pixels are what it ranks
where there is one channel. Each row is one measure of one image by both. The exit status is 1 if a
measure differs that should not.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import quantus
import skimage.data
import torch
from quantus.functions.perturb_func import noisy_linear_imputation
from rich.table import Table
from timing import console
from torch import nn

import whycam
from whycam.calibrate.quality import energy_inside, gini, insertion_deletion, pointing
from whycam.calibrate.road import impute
from whycam.export import Overrides, to_onnx

SIZE, STEPS = 64, 16
BOX = (16.0, 8.0, 48.0, 40.0)  # left, top, right, bottom: some part of each image
PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "rocket")
TOLERANCE = 1e-4


def network() -> nn.Module:
    """Make a small network of grey images with fixed random weights."""
    torch.manual_seed(0)
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 5)]
    model = nn.Sequential(
        nn.Conv2d(1, 8, 5, 2), nn.ReLU(), nn.Conv2d(8, 12, 3, 2), nn.ReLU(), *head
    )
    with torch.no_grad():
        model[-1].weight *= 100  # probabilities that depend on the image
    return model.eval()


def read_photographs() -> Iterator[tuple[str, np.ndarray]]:
    """Yield names and grey images, uint8 [SIZE, SIZE]."""
    for name in PHOTOGRAPHS:
        grey = cv2.cvtColor(getattr(skimage.data, name)(), cv2.COLOR_RGB2GRAY)
        yield name, cv2.resize(grey, (SIZE, SIZE), interpolation=cv2.INTER_AREA)


def ask_quantus(measure: Any, *, model: nn.Module | None = None, **arrays: np.ndarray) -> Any:
    """Return what a measure of Quantus says of one image."""
    given = {f"{name}_batch": value[None] for name, value in arrays.items()}
    given.setdefault("y_batch", np.array([0]))
    return measure(model=model, device="cpu", softmax=True, **given)[0]


def compare(model: nn.Module) -> list[dict[str, Any]]:
    """Measure the maps of each photograph by both."""
    # Grad-CAM has no negative values, so absolute ones are the same.
    settings = {"disable_warnings": True, "normalise": False, "abs": True}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "small.onnx"
        to_onnx(model, file, overrides=Overrides(image_size=SIZE, preprocess="zero-one"))
        explainer = whycam.load(file, "onnxruntime")
        return [
            row
            for name, grey in read_photographs()
            for row in compare_one(explainer, model, name, grey, settings)
        ]


def compare_one(
    explainer: whycam.Explainer,
    model: nn.Module,
    name: str,
    grey: np.ndarray,
    settings: dict[str, Any],
) -> Iterator[dict[str, Any]]:
    """Yield a row for each measure."""
    explanation = explainer.explain(grey, method="gradcam")
    values, target = explanation.original_map, explanation.index
    image = (grey.astype(np.float32) / 255)[None]
    left, top, right, bottom = map(int, BOX)
    inside = np.zeros((1, SIZE, SIZE), np.float32)
    inside[:, top:bottom, left:right] = 1
    arrays = {"x": image, "a": values[None], "s": inside, "y": np.array(target)}

    def row(measure: str, ours: float, theirs: Any) -> dict[str, Any]:
        return {"image": name, "measure": measure, "whycam": float(ours), "quantus": float(theirs)}

    hit = ask_quantus(quantus.PointingGame(**settings), **arrays)
    yield row("pointing game", pointing(values, [BOX]), np.ravel(hit)[0])
    share = ask_quantus(quantus.RelevanceMassAccuracy(**settings), **arrays)
    yield row("energy in box / relevance mass", energy_inside(values, [BOX]), share)
    share = ask_quantus(quantus.AttributionLocalisation(**settings), **arrays)
    yield row("energy in box / attribution localisation", energy_inside(values, [BOX]), share)
    sparse = ask_quantus(quantus.Sparseness(**settings), **arrays)
    yield row("sparsity / sparseness", gini(values), sparse)

    order = np.argsort(-values.reshape(-1), kind="stable")
    removed = np.zeros(order.size, bool)
    removed[order[: order.size // 2]] = True
    ours = impute(image, removed.reshape(SIZE, SIZE))
    theirs = noisy_linear_imputation(image, order[: order.size // 2], noise=0.0)
    yield row("ROAD's imputation, largest difference", np.abs(ours - theirs).max(), 0.0)

    classify = classifier(model)
    _, deletion = insertion_deletion(classify, image, values, target, STEPS)
    flipping = quantus.PixelFlipping(
        features_in_step=order.size // STEPS, perturb_baseline=0.0, **settings
    )
    # Quantus' curve begins after the first step.
    curve = [classify(image[None])[0, target], *ask_quantus(flipping, model=model, **arrays)]
    area = np.trapezoid(curve, dx=1 / STEPS)
    yield row("deletion / pixel flipping", deletion, area)


def classifier(model: nn.Module) -> Callable[[np.ndarray], np.ndarray]:
    """Return what computes probabilities [N, C] of images [N, 1, H, W]."""

    @torch.no_grad()
    def classify(images: np.ndarray) -> np.ndarray:
        return np.asarray(model(torch.from_numpy(np.ascontiguousarray(images))).softmax(-1))

    return classify


def main() -> int:
    """Print the rows, and say whether both agree."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print JSON")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    rows = compare(network())
    if given.json:
        print(json.dumps(rows, indent=1))
    else:
        table = Table("image", "measure", "whycam", "Quantus", "difference")
        for row in rows:
            apart = abs(row["whycam"] - row["quantus"])
            numbers = (f"{row['whycam']:.6f}", f"{row['quantus']:.6f}", f"{apart:.1e}")
            table.add_row(row["image"], row["measure"], *numbers)
        console.print(table)
    return int(any(abs(row["whycam"] - row["quantus"]) > TOLERANCE for row in rows))


if __name__ == "__main__":
    sys.exit(main())
