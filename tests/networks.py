"""Networks small enough to export in a second or two."""

import torch
from torch import nn

from whycam.export import Overrides

CLASSES, SIZE = 7, 32
SMALL = Overrides(image_size=SIZE, preprocess="imagenet")


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


def independent() -> nn.Module:
    """Independent labels: the linear network, whose output is sigmoids."""
    return nn.Sequential(*linear(), nn.Sigmoid()).eval()


def one_logit() -> nn.Module:
    return network(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 1))


def curved() -> nn.Module:
    """A head whose gradient depends on the image."""
    return network(
        nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8 * 36, 9), nn.SiLU(), nn.Linear(9, CLASSES)
    )


class Mixed(nn.Module):
    """What trunks are made of: normalisations before and after, sums, concatenation, gates."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8))
        self.deep = nn.Sequential(nn.Conv2d(8, 8, 3, 1, 1, groups=8), nn.ReLU6())
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 4, 1), nn.Hardswish(), nn.Conv2d(4, 8, 1)
        )
        self.norm = nn.BatchNorm2d(16)
        self.last = nn.Sequential(nn.Conv2d(16, 12, 3, 2, 1), nn.BatchNorm2d(12), nn.ReLU())
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, CLASSES))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = nn.functional.hardswish(self.stem(x))
        y = self.deep(x) * nn.functional.hardsigmoid(self.gate(x))
        return self.head(self.last(nn.functional.relu(self.norm(torch.cat([x, x + y], 1)))))


def mixed() -> nn.Module:
    """A trained network's look: statistics that are its own, and classes that differ."""
    torch.manual_seed(0)
    model = Mixed()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.uniform_(-0.3, 0.3)
                module.running_var.uniform_(0.2, 2.0)
                module.weight.uniform_(0.5, 1.5)
        model.head[-1].weight *= 4
    return model.eval()


class Attending(nn.Module):
    """Pixels that look at each other between two convolutions, by products written as einsum."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=4)
        self.last = nn.Conv2d(8, 8, 3)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x).relu()
        pixels = x.flatten(2)
        looks = torch.einsum("B C I, B C J -> B I J", pixels, pixels).softmax(-1)
        x = torch.einsum("B I J, B C J -> B C I", looks, pixels).reshape(x.shape)
        return self.head(self.last(x).relu().mean((2, 3)))


def attending() -> nn.Module:
    torch.manual_seed(0)
    return Attending().eval()
