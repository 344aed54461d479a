"""Gradients of exported files against float64 autograd through the model's own head."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import whycam
from whycam.export import Overrides, to_onnx

TOLERANCE = 1e-5
K, H, W = 8, 7, 9  # activations of the small networks


class Small(nn.Module):
    """One convolution with ReLU, then the head under test: [N, 3, 15, 19] to [N, C]."""

    SIZE = (15, 19)

    def __init__(self, *head: nn.Module) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, K, 3, stride=2), nn.ReLU())
        self.head = nn.Sequential(*head)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(x))


def gradient_error(
    model: nn.Module,
    head: nn.Module,
    target_layer: str,
    size: tuple[int, int],
    tmp_path: Path,
    score: str = "logit",
    images: np.ndarray | None = None,
) -> float:
    """Export, run three pictures with two classes each, compare with autograd: relative error."""
    to_onnx(
        copy.deepcopy(model),
        tmp_path / "model.onnx",
        overrides=Overrides(image_size=size),
        target_layer=target_layer,
        score=score,
    )
    explainer = whycam.load(tmp_path / "model.onnx", threads=1)
    if images is None:
        images = np.random.default_rng(1).standard_normal((3, 3, *size)).astype(np.float32)
    target = np.array([[0, 1], [2, 1], [-1, -2]])
    found = explainer.engine.run(
        {"image": images, "target": target}, ["activations", "targets", "gradients"]
    )
    head = copy.deepcopy(head).double().eval()
    expected = np.stack(
        [
            autograd(head, found["activations"], found["targets"][:, column], score)
            for column in range(2)
        ],
        axis=1,
    )
    assert np.abs(expected).max() > 0
    return float(np.abs(found["gradients"] - expected).max() / np.abs(expected).max())


def autograd(head: nn.Module, activations: np.ndarray, target: np.ndarray, score: str):
    a = torch.from_numpy(activations).double().requires_grad_(True)
    z = head(a)
    values = z if score == "logit" else torch.softmax(z, -1)
    values[torch.arange(len(a)), torch.from_numpy(target)].sum().backward()
    return a.grad.numpy()


def small_error(tmp_path: Path, *head: nn.Module, **options) -> float:
    model = Small(*head).eval()
    return gradient_error(model, model.head, "features", Small.SIZE, tmp_path, **options)


HEADS = {"linear": lambda: [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(K, 5)]}


@pytest.mark.parametrize("name", HEADS)
def test_x(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    assert small_error(tmp_path, *HEADS[name]()) <= TOLERANCE
