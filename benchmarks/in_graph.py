"""What finished maps, the TFT sweep and preprocessing cost inside the graph.

    python benchmarks/in_graph.py --models resnet50,lite0 --rounds 20
    python benchmarks/in_graph.py --models lite0 --images FOLDER

With images: what the graph's own preprocessing does to answers, against Pillow's.
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
from whycam.runtime.images import read_image
from whycam.runtime.preprocess import crop_resized, normalise

FRAME = (720, 1280)
SWEPT = ["probabilities", "targets", "maps", "thresholds", "rpi"]


def measure(name: str, rounds: int, threads: int, folder: Path) -> list[dict[str, list[float]]]:
    """Time one network on one image, and from a video frame on."""
    model = network(name)
    image = np.random.default_rng(0).standard_normal((1, 3, 224, 224)).astype(np.float32)
    frame = np.random.default_rng(0).integers(0, 256, (*FRAME, 3), np.uint8)
    base = session(plain_onnx(model, folder / f"{name}.plain.onnx"), threads)
    feed = base.get_inputs()[0].name
    plain: Contenders = {PLAIN: lambda: base.run(None, {feed: image})}

    def contender(outputs: str, wanted: list[str], given: np.ndarray, **options: object):
        path = folder / f"{name}.{len(list(folder.iterdir()))}.onnx"
        made = to_onnx(
            model,
            path,
            overrides=preprocessing(name),
            outputs=[outputs],
            map_methods=["gradcam"],
            **options,
        )
        engine = whycam.load(path, threads=threads).engine
        feeds = {"image": given, "target": np.full((1, 1), -1, np.int64)}
        return (lambda: engine.run(feeds, wanted)), made.manifest.preprocess

    mapping, spec = contender("map", ["probabilities", "maps"], image)
    sweeping, _ = contender("tft", SWEPT, image)
    ten = np.repeat(image, 10, 0)
    whole = {
        **plain,
        "ten images in one batch": lambda: base.run(None, {feed: ten}),
        "graph with map": mapping,
        "graph with tft (11 passes)": sweeping,
    }
    any_size, _ = contender("map", ["probabilities", "maps"], frame[None], embed_preprocess=True)
    one_size, _ = contender(
        "map", ["probabilities", "maps"], frame[None], embed_preprocess=True, source_size=FRAME
    )
    frames: Contenders = {
        **plain,
        "graph with map": mapping,
        "Pillow and normalise, 1280x720": lambda: normalise(crop_resized(frame, spec)[0], spec),
        "graph from pixels, any size": any_size,
        "graph from pixels, 1280x720 only": one_size,
    }
    return [interleaved(whole, rounds), interleaved(frames, rounds)]


def effect(name: str, images: list[Path], folder: Path) -> dict[str, float]:
    """How far answers move when the graph preprocesses instead of Pillow."""
    model = network(name)
    explainers = []
    for embedded in (False, True):
        path = folder / f"{name}.{embedded}.onnx"
        to_onnx(
            model,
            path,
            overrides=preprocessing(name),
            outputs=["tft"],
            embed_preprocess=embedded,
        )
        explainers.append(whycam.load(path, threads=2))
    rows = []
    for path in images:
        image = read_image(path)
        a, b = (each.explain(image, tft=True) for each in explainers)
        rows.append(
            (
                a.index == b.index,
                abs(a.probability - b.probability),
                np.corrcoef(a.original_map.ravel(), b.original_map.ravel())[0, 1],
                np.abs(a.original_map - b.original_map).max(),
                a.threshold == b.threshold,
            )
        )
    same, probability, correlation, largest, threshold = map(np.array, zip(*rows, strict=True))
    return {
        "images": len(rows),
        "same class": float(same.mean()),
        "largest difference of probability": float(probability.max()),
        "map correlation, median": float(np.median(correlation)),
        "map correlation, least": float(correlation.min()),
        "map difference, median of largest": float(np.median(largest)),
        "same threshold": float(threshold.mean()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default="resnet50,lite0", help=f"of {', '.join(MODELS)}")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--images", type=Path, help="compare answers on these instead")
    parser.add_argument("--json", action="store_true", help="raw samples in seconds")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    results = {}
    out = Console(highlight=False, width=max(120, console.width))
    with tempfile.TemporaryDirectory() as folder:
        for name in options.models.split(","):
            console.print(f"exporting and running {name} ...")
            if options.images is not None:
                files = sorted(options.images.rglob("*.[jJ][pP]*[gG]"))
                out.print_json(json.dumps({name: effect(name, files, Path(folder))}))
                continue
            results[name] = measure(name, options.rounds, options.threads, Path(folder))
    about = environment(options.threads)
    if options.json:
        print(json.dumps({**about, "seconds": results}))
    elif results:
        out.print(report(results, "graph with map"))
        out.print(about)


if __name__ == "__main__":
    main()
