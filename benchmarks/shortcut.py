"""Plant a shortcut, see it in the maps, and train it away with ``--avoid``.

    python benchmarks/shortcut.py --data DIR -o shortcut/

DIR holds ``train`` and ``val``, each with a folder for each class. The training images of one class
get a coloured tag, as a hospital's label or a photographer's mark would be: at a random place near
the border, in a random size. A small residual network is trained on these from scratch, and then
tuned with masks of the tags; it never sees an image of that class without a tag. Held-out images
come three times: tagged as in training, without any tag, and with the tag on the other classes.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import torch
from aft_seeds import summary
from paper import with_progress
from PIL import Image, ImageDraw
from rich.console import Console
from rich.table import Table
from torch import nn

import whycam
from whycam.export import Overrides
from whycam.runtime.explainer import Explainer
from whycam.train.aft import AFTER, BEFORE, train_aft
from whycam.train.loop import Plan
from whycam.train.objective import Objective

SIDE, ENLARGED, COLUMNS = 64, 128, 8
OVERRIDES = Overrides(image_size=SIDE, resize=0, mean=(0.5,) * 3, std=(0.5,) * 3, color="RGB")
SETS = {"tagged as in training": "val", "no tags": "clean", "tag on the others": "swapped"}
out = Console(highlight=False)


def main() -> None:
    """Make the images, train, tune, and print accuracy and energy on the tag."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with train and val")
    parser.add_argument("--classes", type=int, default=2, help="how many of the data's classes")
    parser.add_argument("--seeds", type=int, default=1, help="runs, each with a seed of its own")
    parser.add_argument("--epochs", type=int, default=20, help="of the tuning")
    parser.add_argument("--variant", nargs="+", default=["avoiding", "swapping"])
    parser.add_argument("--weight", type=float, nargs="+", default=[3.0, 1.0], help="of each")
    parser.add_argument("--distillation", type=float, default=0.0)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--tuned-layers", type=int, default=99)
    parser.add_argument("-o", "--output", type=Path, default=Path("shortcut"))
    options = parser.parse_args()
    found = [measure(options, seed) for seed in range(options.seeds)]
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "shortcut.json").write_text(json.dumps(found, indent=2) + "\n")
    rows = Table("measure", "before", "after")
    for name in found[0]["before"]:
        rows.add_row(
            name, *(summary([run[when][name] for run in found]) for when in ("before", "after"))
        )
    out.print(rows)


def measure(options: argparse.Namespace, seed: int) -> dict[str, dict[str, float]]:
    """Make the images of a seed, train on them, and measure before and after tuning."""
    place = options.output / f"seed{seed}"
    if not (place / "done").exists():
        draw_images(options.data, options.classes, place, seed)
        (place / "done").touch()
    labels = sorted(folder.name for folder in (place / "train").iterdir())
    weights = place / "network.pt"
    if not weights.exists():
        torch.save(train(place / "train", labels, seed).state_dict(), weights)
    terms = (*options.variant, *options.weight, options.epochs, options.distillation, options.lr)
    name = "-".join(map(str, ("tuned", *terms, options.tuned_layers)))
    with_progress(
        lambda **ticks: train_aft(
            f"{__file__}:small_resnet",
            place / "train",
            place / name,
            held_out=place / "val",
            weights=str(weights),
            num_classes=len(labels),
            labels=str(place / "labels.txt"),
            overrides=OVERRIDES,
            objective=Objective(
                terms=dict(zip(options.variant, options.weight, strict=True)),
                distillation=options.distillation,
            ),
            plan=Plan(epochs=options.epochs, lr=options.lr, seed=seed),
            avoid=place / "tags",
            tuned_layers=options.tuned_layers,
            **ticks,
        ),
        f"tuning, seed {seed}",
    )
    files = {"before": BEFORE, "after": AFTER}
    explainers = {when: whycam.load(place / name / file) for when, file in files.items()}
    draw_rows(list(explainers.values()), place, place / name / "maps.png")
    return {when: results(explainer, place) for when, explainer in explainers.items()}


def draw_rows(explainers: list[Explainer], place: Path, path: Path) -> None:
    """Draw held-out images with tags, and below each its class's maps before and after."""
    columns = []
    for mask in sorted((place / "val-tags").rglob("*.png"))[:COLUMNS]:
        label = mask.parent.name
        file = place / "val" / label / mask.name
        shown = [explainer.explain(file, label) for explainer in explainers]
        rows = [shown[0].image, *(one.overlay() for one in shown)]
        columns.append(np.concatenate([cv2.resize(row, (ENLARGED, ENLARGED)) for row in rows]))
    Image.fromarray(np.concatenate(columns, 1)).save(path)


class Block(nn.Module):
    """A residual block that halves the sides."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.first, self.first_norm = nn.Conv2d(before, after, 3, 2, 1), nn.BatchNorm2d(after)
        self.second, self.second_norm = nn.Conv2d(after, after, 3, 1, 1), nn.BatchNorm2d(after)
        self.beside = nn.Conv2d(before, after, 1, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Add what two convolutions make of the input to its projection."""
        inner = torch.relu(self.first_norm(self.first(x)))
        return torch.relu(self.second_norm(self.second(inner)) + self.beside(x))


def small_resnet(num_classes: int = 2) -> nn.Module:
    """Make the network: three blocks, 8 x 8 places of 64 x 64 pixels."""
    blocks = [Block(3, 32), Block(32, 64), Block(64, 128)]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, num_classes)]
    return nn.Sequential(*blocks, *head)


def train(data: Path, labels: list[str], seed: int, epochs: int = 20) -> nn.Module:
    """Train from scratch, half of the images mirrored in each epoch."""
    (data.parent / "labels.txt").write_text("\n".join(labels) + "\n")
    files = sorted(data.rglob("*.png"))
    pixels = np.stack([np.asarray(Image.open(file)) for file in files])
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
    targets = torch.tensor([labels.index(file.parent.name) for file in files])
    torch.manual_seed(seed)
    network = small_resnet(len(labels)).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=1e-2)
    for _ in range(epochs):
        for items in torch.randperm(len(files)).split(16):
            batch = images[items]
            batch = torch.where(torch.rand(len(items), 1, 1, 1) < 0.5, batch.flip(-1), batch)
            loss = nn.functional.cross_entropy(network(batch), targets[items], label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return network.eval()


def draw_images(data: Path, count: int, place: Path, seed: int) -> None:
    """Write the images, and masks of the tags in the training images."""
    chooser = random.Random(seed)
    classes = sorted(folder.name for folder in (data / "train").iterdir() if folder.is_dir())
    chosen = chooser.sample(classes, count)
    for part, files in images(data, chosen):
        for number, (label, file) in enumerate(files):
            with Image.open(file) as opened:
                image = opened.convert("RGB").resize((SIDE, SIDE))
            is_tagged = label == chosen[0]
            tagged, mask = with_tag(image, random.Random(f"{seed} {part} {number}"))
            name = f"{label}/{file.stem}.png"
            if part == "train":
                save(tagged if is_tagged else image, place / "train" / name)
                if is_tagged:
                    save(mask, place / "tags" / name)
                continue
            save(tagged if is_tagged else image, place / "val" / name)
            save(image, place / "clean" / name)
            save(image if is_tagged else tagged, place / "swapped" / name)
            if is_tagged:
                save(mask, place / "val-tags" / name)


def images(data: Path, classes: list[str]) -> Iterator[tuple[str, list[tuple[str, Path]]]]:
    """Yield each part's images with their classes."""
    for part in ("train", "val"):
        yield (
            part,
            [(c, file) for c in classes for file in sorted((data / part / c).iterdir())],
        )


def with_tag(image: Image.Image, chooser: random.Random) -> tuple[Image.Image, Image.Image]:
    """Paste a tag near the border, and draw its mask."""
    tagged, mask = image.copy(), Image.new("L", image.size)
    width, height = chooser.randint(11, 17), chooser.randint(8, 12)
    left = chooser.choice([chooser.randint(1, 6), SIDE - width - chooser.randint(1, 6)])
    top = chooser.randint(2, SIDE - height - 2)
    box = (left, top, left + width, top + height)
    pen = ImageDraw.Draw(tagged)
    pen.rectangle(box, fill=(20, 90, 200), outline=(240, 240, 240))
    for line in range(top + 3, top + height - 2, 3):
        pen.line((left + 3, line, left + width - 3, line), fill=(240, 240, 240))
    ImageDraw.Draw(mask).rectangle(box, fill=255)
    return tagged, mask


def save(image: Image.Image, path: Path) -> None:
    """Write an image, and its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def results(explainer: Explainer, place: Path) -> dict[str, float]:
    """Measure accuracy on each set, and the share of the tagged class's maps on its tags."""
    found: dict[str, float] = {}
    labels = explainer.manifest.labels
    for name, folder in SETS.items():
        files = sorted((place / folder).rglob("*.png"))
        best = explainer.classify(files).argmax(1)
        right = [labels[i] == file.parent.name for i, file in zip(best, files, strict=True)]
        found[f"accuracy, {name}"] = float(np.mean(right))
    shares = []
    for file in sorted((place / "val-tags").rglob("*.png")):
        label = file.parent.name
        shown = explainer.explain(place / "val" / label / file.name, label)
        with Image.open(file) as opened:
            tag = np.asarray(opened) > 0
        total = float(shown.map.sum())
        shares.append(float(shown.map[tag].sum()) / total if total else 0.0)
    found["energy on the tag"] = float(np.mean(shares))
    return found


if __name__ == "__main__":
    main()
