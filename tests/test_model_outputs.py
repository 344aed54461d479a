"""PyTorch models that return dicts, dataclasses, tuples and lists: which tensor is explained."""

from __future__ import annotations

from collections import namedtuple
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from networks import CLASSES, SMALL, network
from torch import nn

from whycam.export import to_onnx
from whycam.export.model_outputs import name_outputs, return_tensors
from whycam.runtime.errors import ExportError

Y, Z = torch.zeros(2, 3), torch.ones(2, 4)
IMAGES = torch.zeros(2, 3, 32, 32)


@dataclass
class Result:
    loss: Any
    logits: torch.Tensor
    features: torch.Tensor | None = None


Pair = namedtuple("Pair", ["first", "second"])


@pytest.mark.parametrize(
    ("returned", "names"),
    [
        (Y, ["logits"]),
        ({"a": Y, "b": None, "c": Z, "scale": 2.0}, ["a", "c"]),
        ({0: Y, 1: Z}, ["output_0", "output_1"]),
        ((Y, Z), ["output_0", "output_1"]),
        ([Y], ["output_0"]),
        (Pair(Y, Z), ["first", "second"]),
        (Result(None, Y), ["logits"]),
        (SimpleNamespace(logits=Y, name="x"), ["logits"]),
        ({"heads": {"age": Y, "x": [Z, (Z, None)]}}, ["heads.age", "heads.x.0", "heads.x.1.0"]),
        ((Y, {"aux": Z}), ["output_0", "output_1.aux"]),
        ({"image": Y}, ["output_image"]),
        ({"1": Y, 1: Z}, ["output_1", "output_1_2"]),
        (None, []),
    ],
)  # fmt: skip
def test_tensors_are_named_by_the_path_to_them(returned: Any, names: list[str]) -> None:
    assert list(name_outputs(returned)) == names


class Returning(nn.Module):
    """Wraps its logits as a function says."""

    def __init__(self, wrap: Any) -> None:
        super().__init__()
        self.net = network(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, CLASSES))
        self.wrap = wrap

    def forward(self, x: torch.Tensor) -> Any:
        return self.wrap(self.net(x))


def test_model_is_left_as_it_is_and_its_copy_returns_a_tuple() -> None:
    model = Returning(lambda z: {"logits": z, "twice": 2 * z, "scale": torch.ones(())}).eval()
    copied, names = return_tensors(model, IMAGES)
    assert names == ("logits", "twice")
    assert isinstance(model(IMAGES), dict)
    first, second = copied(IMAGES)
    assert torch.equal(first, model(IMAGES)["logits"])
    assert torch.equal(second, 2 * first)


@pytest.mark.parametrize("wrap", [lambda _: {"loss": None}, lambda z: {"one": z[0]}, lambda _: [0]])
def test_model_without_a_row_for_each_image_is_refused(wrap: Any) -> None:
    with pytest.raises(ExportError, match=r"without a tensor that has a row for each"):
        return_tensors(Returning(wrap).eval(), IMAGES)


# What a model returns, and from that its probabilities.
ODD: dict[str, tuple[Any, Any]] = {
    "nested two deep": (lambda z: {"out": {"cls": (None, z)}}, lambda y: y["out"]["cls"][1]),
    "one row more": (lambda z: [z[:, None]], lambda y: y[0][:, 0]),
    "temperature": (lambda z: Result(None, z / 0.07), lambda y: y.logits),
    "mean of two": (lambda z: Pair((z + z.tanh()) / 2, None), lambda y: y.first),
    "no NaN": (lambda z: {"y": torch.nan_to_num(z)}, lambda y: y["y"]),
    "logits beside others": (
        lambda z: Result(z.sum(-1), z, z.tanh()),
        lambda y: y.logits,
    ),
}


@pytest.mark.parametrize("name", ODD)
def test_probabilities_are_those_of_the_tensor_returned(name: str, tmp_path: Path) -> None:
    wrap, logits_of = ODD[name]
    model = Returning(wrap).eval()
    made = to_onnx(
        model, tmp_path / "x.onnx", overrides=SMALL, methods=["gradcam"], outputs=["raw"]
    )
    assert made.verification.reference == "PyTorch in float64"
    import onnxruntime

    image = np.random.default_rng(0).standard_normal((2, 3, 32, 32)).astype(np.float32)
    session = onnxruntime.InferenceSession(str(tmp_path / "x.onnx"))
    target = np.array([[1], [2]])
    found = session.run(["probabilities", "gradients"], {"image": image, "target": target})
    with torch.no_grad():
        logits = logits_of(model(torch.from_numpy(image)))
    np.testing.assert_allclose(found[0], logits.softmax(-1), atol=1e-6)
    assert made.manifest.num_classes == CLASSES
    assert np.abs(found[1]).max() > 0
