"""PyTorch models that end in softmax, sigmoid or one number: their meaning and gradients."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from networks import CLASSES, SMALL, network
from torch import nn

import whycam
from whycam.export import references_torch, to_onnx
from whycam.runtime.errors import VerificationError

PIXELS = np.random.default_rng(0).standard_normal((3, 3, 32, 32)).astype(np.float32)


def ending_in(*activation: nn.Module, classes: int = CLASSES) -> nn.Module:
    pooled = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return network(pooled, nn.Linear(8, classes), *activation)


class Functional(nn.Module):
    """A softmax that is no module."""

    def __init__(self) -> None:
        super().__init__()
        self.net = ending_in()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x).softmax(-1)


MODELS: dict[str, tuple[Any, str, str]] = {
    "softmax": (lambda: ending_in(nn.Softmax(-1)), "softmax", "PyTorch in float64"),
    "log-softmax": (lambda: ending_in(nn.LogSoftmax(-1)), "softmax", "PyTorch in float64"),
    "sigmoid": (lambda: ending_in(nn.Sigmoid()), "sigmoid", "PyTorch in float64"),
    "one logit": (lambda: ending_in(classes=1), "binary", "PyTorch in float64"),
    "one sigmoid": (lambda: ending_in(nn.Sigmoid(), classes=1), "binary", "PyTorch in float64"),
    "functional": (Functional, "softmax", "the graph that PyTorch wrote"),
}
FROM_OUTPUT = {
    "softmax": lambda y: y,
    "log-softmax": np.exp,
    "sigmoid": lambda y: y,
    "one logit": lambda y: np.hstack([1 / (1 + np.exp(y)), 1 / (1 + np.exp(-y))]),
    "one sigmoid": lambda y: np.hstack([1 - y, y]),
    "functional": lambda y: y,
}


@pytest.mark.parametrize("name", MODELS)
def test_activation_inside_the_model_is_not_applied_twice(name: str, tmp_path: Path) -> None:
    create, task, against = MODELS[name]
    model = create().eval()
    made = to_onnx(model, tmp_path / "x.onnx", overrides=SMALL, methods=["gradcam", "ablation"])
    assert (made.manifest.task, made.verification.reference) == (task, against)
    assert made.manifest.activations == (8, 12, 12)
    engine = whycam.load(made.path, threads=1).engine
    target = np.zeros((3, 1), np.int64)
    found = engine.run({"image": PIXELS, "target": target}, ["probabilities"])
    with torch.no_grad():
        output = model(torch.from_numpy(PIXELS)).numpy()
    np.testing.assert_allclose(found["probabilities"], FROM_OUTPUT[name](output), atol=1e-6)


def test_gradient_is_that_of_the_logit_before_the_softmax(tmp_path: Path) -> None:
    found = []
    for index, activation in enumerate([[], [nn.Softmax(-1)]]):
        model = ending_in(*activation)
        path = to_onnx(model, tmp_path / f"{index}.onnx", overrides=SMALL).path
        feeds = {"image": PIXELS, "target": np.array([[0], [3], [6]])}
        found.append(whycam.load(path, threads=1).engine.run(feeds, ["gradients"])["gradients"])
    np.testing.assert_allclose(found[0], found[1], rtol=1e-5, atol=1e-8)


def test_graph_that_pytorch_wrote_wrongly_is_found_out_without_a_module_to_hook(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = references_torch.check_translation
    monkeypatch.setattr(
        references_torch,
        "check_translation",
        lambda module, outputs, image: honest(module, [1.01 * each for each in outputs], image),
    )
    with pytest.raises(VerificationError, match="PyTorch's exporter wrote"):
        to_onnx(Functional().eval(), tmp_path / "x.onnx", overrides=SMALL)
    assert list(tmp_path.iterdir()) == []
