"""Train a small convolutional network and a small transformer to tell four textures apart.

    python benchmarks/textures.py -o textures/

Images are drawn: a round patch of one of four textures on a soft ground, and a plain patch that
says nothing. So where a map should be is known. Writes both networks as explaining ONNX files, and
images that neither has seen. Needs the extra ``dev``; takes a minute of one core.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import cv2
import numpy as np
import timm
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from whycam.export import Overrides, to_onnx

TEXTURES = ("stripes", "checks", "rings", "dots")
SIDE, BATCH = 64, 32
STEPS = {"cnn": 300, "vit": 900}
HELD_OUT = 1_000_000  # seeds of images that no training draws


def main() -> None:
    """Train, export, and draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path, default=Path("textures"), help="folder")
    folder = parser.parse_args().output
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "names.txt").write_text("\n".join(TEXTURES) + "\n")
    for name in STEPS:
        torch.manual_seed(0)
        network = make(name)
        accuracy = train(network, STEPS[name])
        torch.save(network.state_dict(), folder / f"{name}.pt")
        to_onnx(
            f"{__file__}:{name}",
            folder / f"{name}.onnx",
            weights=str(folder / f"{name}.pt"),
            labels=str(folder / "names.txt"),
            overrides=Overrides(
                image_size=SIDE, resize=0, mean=(0.5,) * 3, std=(0.5,) * 3, color="RGB"
            ),
        )
        print(f"{name}: {accuracy:.1%} of 256 images that it has not seen")
    for seed in range(4):
        pixels, label = draw(HELD_OUT + seed)
        Image.fromarray(pixels).save(folder / f"{TEXTURES[label]}.png")


def cnn() -> nn.Module:
    """Make the convolutional network; its last layer has 8 x 8 places."""
    layers: list[nn.Module] = []
    for before, after, stride in ((3, 16, 2), (16, 32, 2), (32, 64, 2), (64, 64, 1)):
        layers += [nn.Conv2d(before, after, 3, stride, 1), nn.BatchNorm2d(after), nn.ReLU()]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, len(TEXTURES))]
    return nn.Sequential(*layers, *head).eval()


def vit() -> nn.Module:
    """Make the transformer: 8 x 8 tokens and a class token."""
    return timm.create_model(
        "vit_tiny_patch16_224", num_classes=len(TEXTURES), img_size=SIDE, patch_size=8,
        embed_dim=64, depth=4, num_heads=4,
    ).eval()  # fmt: skip


def make(name: str) -> nn.Module:
    """Make one of the two networks."""
    return {"cnn": cnn, "vit": vit}[name]()


def draw(seed: int) -> tuple[NDArray[np.uint8], int]:
    """Draw an image and choose its texture: uint8 [SIDE, SIDE, 3], and its index."""
    rng = np.random.default_rng(seed)
    label = seed % len(TEXTURES)
    rows, columns = np.mgrid[:SIDE, :SIDE].astype(np.float32)
    ground = cv2.resize(rng.random((4, 4, 3), np.float32), (SIDE, SIDE), interpolation=2)
    image = 0.35 + 0.3 * ground + 0.04 * rng.standard_normal((SIDE, SIDE, 1), np.float32)
    (row, column), radius = rng.uniform(14, SIDE - 14, 2), rng.uniform(10, 14)
    away = np.hypot(rows - row, columns - column)
    across, along, period = rows - row, columns - column, 2 * np.pi / rng.uniform(5, 7)
    waves = {
        "stripes": np.sin(period * (across + along)),
        "checks": np.sin(period * across) * np.sin(period * along) * 1.6,
        "rings": np.sin(period * away),
        "dots": np.where(
            np.hypot(np.sin(across * period / 2), np.sin(along * period / 2)) < 0.5, 1, -1
        ),
    }
    wave = np.clip(waves[TEXTURES[label]], -1, 1)[..., None]
    colour = rng.uniform(0.3, 0.7, 3)
    plain_row, plain_column = rng.uniform(10, SIDE - 10, 2)
    plain = (np.hypot(rows - plain_row, columns - plain_column) < rng.uniform(8, 12))[..., None]
    image = np.where(plain, rng.uniform(0.1, 0.9, 3), image)
    image = np.where((away < radius)[..., None], colour + 0.3 * wave, image)
    return np.rint(255 * np.clip(image, 0, 1)).astype(np.uint8), label


def draw_batch(seed: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw images as a network takes them, float32 [count, 3, SIDE, SIDE], and their labels."""
    drawn = [draw(seed * count + number) for number in range(count)]
    images = np.stack([pixels for pixels, _ in drawn]).transpose(0, 3, 1, 2)
    labels = torch.tensor([label for _, label in drawn])
    return torch.from_numpy(images.astype(np.float32) / 127.5 - 1), labels


def train(network: nn.Module, steps: int) -> float:
    """Train, and return the accuracy on images that were not seen."""
    optimiser = torch.optim.AdamW(network.parameters(), 2e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-3, total_steps=steps)
    network.train()
    for step in range(steps):
        images, labels = draw_batch(step, BATCH)
        loss = nn.functional.cross_entropy(network(images), labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    network.eval()
    with torch.inference_mode():
        images, labels = draw_batch(HELD_OUT // 256 + 1, 256)
        return float((network(images).argmax(1) == labels).float().mean())


if __name__ == "__main__":
    main()
