"""A network of a few weights, for whycam export and for runs without a model file."""

import torch
from torch import nn

SIDE, CLASSES = 32, 7


def model() -> nn.Module:
    """Convolutions, batch normalisation, global average pooling, one linear layer."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 12, 3, 2, 1),
        nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, CLASSES),
    ).eval()  # fmt: skip
