"""Which layer is replaced when a network gets other classes, and which networks keep theirs."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from whycam.export.classifier import replace_classifier
from whycam.runtime.errors import ExportError

SIZE = (16, 16)


def stem(*head: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), *head).eval()


def pooled(*head: nn.Module) -> nn.Module:
    return stem(nn.AdaptiveAvgPool2d(1), nn.Flatten(), *head)


class Cosine(nn.Linear):
    """A linear layer's weights, used in another way."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 64 * F.linear(F.normalize(x), F.normalize(self.weight))


class OwnCosine(nn.Module):
    """The same with a weight of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(5, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.normalize(x) @ F.normalize(self.weight).T


class Sum(nn.Module):
    """Two classifiers whose logits are added: neither alone can be replaced."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(8, 5), nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.one(x) + self.two(x)


@pytest.mark.parametrize(
    ("model", "layer"),
    [
        (lambda: pooled(nn.Linear(8, 5)), "4"),
        (lambda: pooled(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 5, bias=False)), "6"),
        (lambda: pooled(nn.utils.parametrizations.weight_norm(nn.Linear(8, 5))), "4"),
        (lambda: pooled(nn.Linear(8, 5), nn.Softmax(1)), "4"),
        (lambda: stem(nn.Conv2d(8, 5, 1), nn.ReLU(), nn.AvgPool2d(14), nn.Flatten()), "2"),
    ],
    ids=["linear", "two layers", "weight norm", "softmax", "convolution, then pooling"],
)
def test_last_layer_is_replaced(model, layer):
    model = model()
    before = model(torch.ones(2, 3, *SIZE))
    assert replace_classifier(model, 3, SIZE) == layer
    assert model(torch.ones(2, 3, *SIZE)).shape == (2, 3)
    assert before.shape == (2, 5)
    assert (model.get_submodule(layer).bias is None) == (layer == "6")


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (lambda: pooled(Cosine(8, 5)), "a Cosine, which has no counterpart"),
        (lambda: pooled(OwnCosine()), "an? OwnCosine, which has no counterpart"),
        (lambda: pooled(), "a Conv2d, which has no counterpart"),
        (lambda: pooled(Sum()), "last layer, 4.two, does not give the network 3 classes"),
        (lambda: nn.Sequential(nn.Flatten()), "does not end in a layer with weights"),
        (lambda: nn.Sequential(nn.Conv2d(1, 2, 1)), r"does not accept .*\(2, 3, 16, 16\)"),
    ],
    ids=["cosine", "own weight", "none", "sum", "no weights", "other channels"],
)
def test_network_that_ends_otherwise_is_refused_and_left_as_it_was(model, reason):
    model = model().eval()
    before = dict(model.named_modules())
    with pytest.raises(ExportError, match=reason):
        replace_classifier(model, 3, SIZE)
    assert dict(model.named_modules()) == before


def test_grey_images():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(4 * 14 * 14, 5)).eval()
    assert replace_classifier(model, 3, SIZE, channels=1) == "2"
