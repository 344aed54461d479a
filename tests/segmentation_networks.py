"""Small segmentation networks for tests, with random weights that let places differ."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

CLASSES = 4


class UNet(nn.Module):
    """Two steps down, two up, with shortcuts; no bias at the end, so that places differ."""

    def __init__(self, classes: int = CLASSES, activation: str | None = None) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 16, 3, 2, 1)
        self.bottom = nn.Conv2d(16, 16, 3, 1, 1)
        self.up, self.mixed = nn.ConvTranspose2d(16, 8, 4, 2, 1), nn.Conv2d(16, 8, 3, 1, 1)
        self.scores = nn.Conv2d(8, classes, 1, bias=False)
        self.activation = activation

    def head(self, bottom: torch.Tensor, beside: torch.Tensor) -> torch.Tensor:
        joined = torch.cat([self.up(bottom), beside], 1)
        scores = 8 * self.scores(functional.relu(self.mixed(joined)))
        return functional.interpolate(scores, scale_factor=2, mode="bilinear")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first = functional.relu(self.first(x))
        bottom = functional.relu(self.bottom(functional.relu(self.second(first))))
        scores = self.head(bottom, first)
        if self.activation == "softmax":
            return scores.softmax(1)
        if self.activation == "sigmoid":
            return scores.sigmoid()
        return scores.argmax(1) if self.activation == "argmax" else scores


class Pyramid(nn.Module):
    """Pools its features to 1 x 1 and 2 x 2 places and joins these again, as PSPNet does."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 8, 3, 4, 1), nn.ReLU())
        self.pooled = nn.ModuleList(nn.Conv2d(8, 4, 1) for _ in range(2))
        self.joined, self.scores = nn.Conv2d(16, 8, 3, 1, 1), nn.Conv2d(8, CLASSES, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features = self.features(x)
        parts = [
            functional.interpolate(functional.relu(conv(functional.avg_pool2d(features, side))), 8)
            for conv, side in zip(self.pooled, (8, 4), strict=True)
        ]
        scores = self.scores(functional.relu(self.joined(torch.cat([features, *parts], 1))))
        return functional.interpolate(scores, scale_factor=4, mode="nearest")


def unet() -> nn.Module:
    torch.manual_seed(0)
    return UNet().eval()


def with_activation(name: str, classes: int = CLASSES) -> nn.Module:
    torch.manual_seed(0)
    return UNet(classes, name).eval()


def softmax_unet() -> nn.Module:
    return with_activation("softmax")


def argmax_unet() -> nn.Module:
    return with_activation("argmax")


def sigmoid_unet() -> nn.Module:
    return with_activation("sigmoid")


def binary_unet() -> nn.Module:
    return with_activation("sigmoid", 1)


def pyramid() -> nn.Module:
    torch.manual_seed(0)
    return Pyramid().eval()
