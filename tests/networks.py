"""Networks small enough to export in a second or two."""

import torch
from torch import nn

from whycam.export import Overrides

CLASSES, SIZE = 7, 32
SMALL = Overrides(image_size=SIZE)


def network(*head: nn.Module) -> nn.Module:
    model = nn.Sequential(
        nn.Conv2d(3, 6, 5, stride=2), nn.ReLU(), nn.Conv2d(6, 8, 3), nn.ReLU(), *head
    ).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weights in model.parameters():
            spread = 1 if weights.ndim == 1 else weights[0].numel() ** -0.5
            weights.normal_(std=spread, generator=generator)
    return model


def linear() -> nn.Module:
    return network(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, CLASSES))


def curved() -> nn.Module:
    """A head whose gradient depends on the picture."""
    return network(
        nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8 * 36, 9), nn.SiLU(), nn.Linear(9, CLASSES)
    )
