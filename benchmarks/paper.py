"""The paper's tables 3, 4 and 5 and its figure 3, for your models and data.

    python benchmarks/paper.py --model torchvision/resnet50 --data imagenet=/data/imagenet -o paper/
    python benchmarks/paper.py --model examples/efficientnet_lite0.py:model --classifier \
        --data imagenette=DIR --data voc=DIR -o paper/

A data set is a folder as ``whycam train`` takes it, best with ``train`` and ``val`` inside. With
``--classifier`` the network is first given the data's classes. A run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from timing import environment

import whycam
from whycam import Tft
from whycam.calibrate import Sample
from whycam.calibrate.quality import drops, increases
from whycam.runtime import pipeline
from whycam.runtime.figure import encode_png
from whycam.runtime.files import write_whole
from whycam.runtime.images import read_image
from whycam.runtime.pipeline import classify, prepare
from whycam.train.aft import AFTER, BEFORE, train_aft
from whycam.train.aft_result import REPORT
from whycam.train.classifier import train_classifier
from whycam.train.data import split_data
from whycam.train.loop import Plan
from whycam.train.objective import WEIGHTS, Objective

METHODS = ("gradcam", "gradcam++", "ablation", "layercam")
console = Console(stderr=True)
out = Console(highlight=False, width=max(120, console.width))

# Table 3 of the paper: average increase and average drop, each original, TFT, AFT.
PAPER = {
    ("ImageNet", "ResNet-50"): {
        "gradcam": ((0.334, 0.439, 0.449), (0.130, 0.117, 0.116)),
        "gradcam++": ((0.342, 0.454, 0.507), (0.136, 0.123, 0.105)),
        "ablation": ((0.342, 0.456, 0.514), (0.137, 0.123, 0.109)),
        "layercam": ((0.340, 0.452, 0.512), (0.128, 0.124, 0.104)),
    },
    ("ImageNet", "VGG-16"): {
        "gradcam": ((0.294, 0.385, 0.561), (0.159, 0.144, 0.124)),
        "gradcam++": ((0.228, 0.322, 0.505), (0.188, 0.174, 0.153)),
        "ablation": ((0.261, 0.352, 0.496), (0.173, 0.159, 0.136)),
        "layercam": ((0.230, 0.325, 0.492), (0.187, 0.172, 0.150)),
    },
    ("Pascal VOC", "ResNet-50"): {
        "gradcam": ((0.546, 0.679, 0.659), (0.055, 0.045, 0.037)),
        "gradcam++": ((0.522, 0.674, 0.618), (0.059, 0.046, 0.041)),
        "ablation": ((0.523, 0.682, 0.666), (0.049, 0.036, 0.033)),
        "layercam": ((0.486, 0.645, 0.620), (0.063, 0.051, 0.042)),
    },
    ("Pascal VOC", "VGG-16"): {
        "gradcam": ((0.569, 0.670, 0.698), (0.054, 0.045, 0.053)),
        "gradcam++": ((0.445, 0.583, 0.618), (0.067, 0.056, 0.062)),
        "ablation": ((0.519, 0.638, 0.674), (0.052, 0.044, 0.050)),
        "layercam": ((0.420, 0.538, 0.562), (0.069, 0.058, 0.059)),
    },
}


def with_progress(run: Callable[..., Any], title: str) -> Any:
    """Run a training under a progress bar."""
    with Progress(console=console, transient=True) as bar:
        task = bar.add_task(title, total=None)

        def tick(text: str, steps: int) -> None:
            bar.update(task, description=f"{title}: {text}", advance=steps)

        return run(tick=tick, total=lambda steps: bar.update(task, total=steps))


def tuned(
    model: str, name: str, data: Path, method: str, variant: str, options: argparse.Namespace
) -> dict[str, Any]:
    """One AFT run, or what it reported when it was done before."""
    folder = options.output / name / f"{method}.{variant}"
    terms = {part: WEIGHTS[part] for part in variant.split("+")}
    if not (folder / REPORT).is_file():
        given = {} if options.epochs is None else {"epochs": options.epochs}
        done = with_progress(
            lambda **ticks: train_aft(
                model,
                data,
                folder,
                objective=Objective(method=method, terms=terms, tft=options.tft),
                labels=options.labels,
                classes=options.classes,
                plan=Plan(**given),
                **ticks,
            ),
            f"{name} {method} {variant}",
        )
        assert done is not None
        return done.to_dict()
    return json.loads((folder / REPORT).read_text())


def table3(runs: dict[tuple[str, str, str], dict[str, Any]]) -> Table:
    """Quality before, under TFT, and after each variant of AFT."""
    variants = list(dict.fromkeys(variant for _, _, variant in runs))
    table = Table("data", "method", "measure", "original", "TFT", title="Table 3, measured here")
    for variant in variants:
        table.add_column(f"AFT {variant}")
    for name, method in dict.fromkeys((name, method) for name, method, _ in runs):
        own = {variant: runs[name, method, variant] for variant in variants}
        first = own[variants[0]]["rows"]
        for field, title in (
            ("average_increase", "avg increase"),
            ("average_drop", "avg drop"),
            ("coverage", "coverage"),
            ("pointing_game", "pointing game"),
            ("energy_in_box", "energy in box"),
        ):
            if field not in first["original"]:
                continue
            base = first["original"][field]
            later = [first["tft"][field], *(own[v]["rows"]["aft"][field] for v in variants)]
            cells = [f"{base:.3f}", *(f"{x:.3f} ({_ratio(field, base, x)})" for x in later)]
            table.add_row(name, method, title, *cells)
        table.add_section()
    return table


def _ratio(field: str, before: float, after: float) -> str:
    above, below = (before, after) if field == "average_drop" else (after, before)
    return f"x{above / below:.2f}" if below else "-"


def table4(runs: dict[tuple[str, str, str], dict[str, Any]]) -> Table:
    """Accuracy before and after."""
    table = Table("data", "method", "variant", "original", "AFT", title="Table 4, measured here")
    for (name, method, variant), run in runs.items():
        values = [run["accuracy_before"], run["accuracy_after"]]
        table.add_row(name, method, variant, *("-" if v is None else f"{v:.4f}" for v in values))
    return table


def table5(explainer: whycam.Explainer, images: Iterable[Sample], settings: Tft) -> Table:
    """Seconds for one map, without and with TFT, in turn."""
    table = Table("method", "map ms", "map and TFT ms", title="Table 5, measured here")
    files = [sample.path for sample in images]
    for method in METHODS:
        times: dict[bool, list[float]] = {False: [], True: []}
        for file in files:
            for tft in (False, True):
                explainer.explain(file, method=method)  # warm
                begin = time.perf_counter()
                explainer.explain(file, method=method, tft=settings if tft else None)
                times[tft].append(time.perf_counter() - begin)
        medians = [statistics.median(times[tft]) * 1e3 for tft in (False, True)]
        table.add_row(method, *(f"{median:.1f}" for median in medians))
    return table


def figure3(explainer: whycam.Explainer, images: list[Sample], folder: Path, tft: Tft) -> None:
    """Image, map, thresholded map and rpi curve for some images."""
    for sample in images[:4]:
        for method in METHODS:
            found = explainer.explain(sample.path, method=method, tft=tft)
            write_whole(
                folder / f"{Path(sample.name).stem}.{method}.png", encode_png(found.figure())
            )


def _mapped(
    explainer: whycam.Explainer, inputs: np.ndarray, target: int, method: str
) -> tuple[np.ndarray, pipeline.ClassMap]:
    """Probabilities [1, C] of one image, and its map."""
    plan = explainer.plan(method)
    inference = pipeline.infer(explainer.model, inputs, [[target]], plan)
    (class_map,) = pipeline.map(explainer.model, inference, plan)
    return inference.probabilities, class_map


def whose_gain(name: str, method: str, folder: Path, images: Iterable[Sample]) -> Table:
    """Maps of one network shown to the other: has the map improved, or what is asked?"""
    before, after = (whycam.load(folder / file, threads=2) for file in (BEFORE, AFTER))
    found: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for sample in images:
        try:
            images = prepare([read_image(sample.path)], before.manifest).inputs
        except whycam.WhyCamError:
            continue
        p, mapped = _mapped(before, images, -1, method)
        index = mapped.target
        q, other = _mapped(after, images, index, method)
        masked = np.concatenate([images * mapped.map, images * other.map])
        for asked, explainer, own in (("before", before, p), ("after", after, q)):
            rows = classify(explainer.model, masked)[:, index]
            for whose, value in zip(("before", "after"), rows, strict=True):
                row = (increases(value, own[0, index]), drops(value, own[0, index]))
                found.setdefault((whose, asked), []).append(row)
    table = Table(
        "data", "method", "map of", "asked", "avg increase", "avg drop", title="Whose gain"
    )
    for (whose, asked), rows in found.items():
        means = np.mean(np.array(rows, float), axis=0)
        table.add_row(name, method, whose, asked, *(f"{value:.3f}" for value in means))
    return table


def paper_table() -> Table:
    """The paper's own figures."""
    table = Table(
        "data", "network", "method", "measure", "original", "TFT", "AFT", title="Table 3, the paper"
    )
    for (data, network), methods in PAPER.items():
        for method, measures in methods.items():
            for title, values in zip(("avg increase", "avg drop"), measures, strict=True):
                field = "average_drop" if title == "avg drop" else "average_increase"
                base, *later = values
                cells = [f"{base:.3f}", *(f"{x:.3f} ({_ratio(field, base, x)})" for x in later)]
                table.add_row(data, network, method, title, *cells)
        table.add_section()
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="as whycam export takes it")
    parser.add_argument("--data", action="append", required=True, help="NAME=DIR, once or more")
    parser.add_argument("--classifier", action="store_true", help="train one on the data first")
    parser.add_argument("--labels", help="imagenet, or a file")
    parser.add_argument("--classes", type=Path, help="CSV: the data's label, the network's class")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--variants", default="faithful", help="as faithful,aligned,tuner")
    parser.add_argument("--mask", default="soft", choices=("soft", "binary"))
    parser.add_argument("--thresholds", default="rank", choices=("rank", "value"))
    parser.add_argument("--epochs", type=int)
    parser.add_argument("-o", "--output", type=Path, required=True)
    options = parser.parse_args()
    options.tft = Tft(mask=options.mask, thresholds=options.thresholds)
    runs: dict[tuple[str, str, str], dict[str, Any]] = {}
    for entry in options.data:
        name, _, place = entry.partition("=")
        model, data = options.model, Path(place)
        if options.classifier:
            model = str(options.output / name / "classifier")
            if not (Path(model) / "model.json").is_file():
                with_progress(
                    lambda data=data, model=model, **ticks: train_classifier(
                        options.model, data, model, **ticks
                    ),
                    f"{name} classifier",
                )
        for method in options.methods.split(","):
            for variant in options.variants.split(","):
                run = tuned(model, name, data, method, variant, options)
                runs[name, method, variant] = run
                folder = options.output / name / f"{method}.{variant}"
                out.print(whose_gain(name, method, folder, split_data(data).held_out.samples))
    out.print(table3(runs))
    out.print(paper_table())
    out.print(table4(runs))
    name, _, place = options.data[0].partition("=")
    exported = options.output / name / "all.onnx"
    if not exported.is_file():
        from whycam.export import to_onnx

        source = str(options.output / name / "classifier") if options.classifier else options.model
        to_onnx(source, exported, labels=options.labels, methods=list(METHODS))
    explainer = whycam.load(exported, threads=2)
    images = list(split_data(place).held_out.samples)
    out.print(table5(explainer, images[:20], options.tft))
    figure3(explainer, images, options.output / "figure3", options.tft)
    out.print(f"figure 3 is in {options.output}/figure3/")
    out.print(environment(2))


if __name__ == "__main__":
    main()
