"""Grad-CAM's weights come from sums of gradients that are not computed place by place."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from networks import CLASSES, SMALL, network
from torch import nn

from whycam.export import to_onnx
from whycam.runtime import cam


class _FlatBeforeRelu(nn.Module):
    """Two layers read the activations: their gradients add up."""

    def __init__(self) -> None:
        super().__init__()
        self.pool, self.linear = nn.AdaptiveAvgPool2d(1), nn.Linear(8, CLASSES)
        self.every = nn.Linear(8 * 144, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(self.pool(x).flatten(1)) + self.every(x.flatten(1))


def _flat(places: int) -> list[nn.Module]:
    return [nn.Flatten(), nn.Linear(8 * places, 9), nn.ReLU(), nn.Linear(9, CLASSES)]


_GAP = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, CLASSES)]
# The activations have 12 x 12 places.
_KNOWN: dict[str, Callable[[], list[nn.Module]]] = {
    "global average": lambda: _GAP,
    "global maximum": lambda: [nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(8, CLASSES)],
    "linear": lambda: _flat(144),
    "maximum of blocks": lambda: [nn.MaxPool2d(2), *_flat(36)],
    "maximum of overlapping windows": lambda: [nn.MaxPool2d(3, 2, 1), *_flat(36)],
    "maximum with places left out": lambda: [nn.MaxPool2d(3, 5), *_flat(4)],
    "average of inside": lambda: [
        nn.AvgPool2d(3, 2, 1, count_include_pad=False), *_flat(36)
    ],
    "maximum, then average": lambda: [nn.MaxPool2d(2), *_GAP],
}  # fmt: skip
_UNKNOWN: dict[str, Callable[[], list[nn.Module]]] = {
    "average with padding": lambda: [nn.AvgPool2d(3, 2, 1), *_GAP],
    "two readers": lambda: [_FlatBeforeRelu()],
    "convolution": lambda: [nn.Conv2d(8, 6, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                            nn.Linear(6, CLASSES)],
}  # fmt: skip


def _needed(model: onnx.ModelProto, output: str) -> set[str]:
    """All tensors that an output is computed from."""
    needed = {output}
    for node in reversed(model.graph.node):
        if not needed.isdisjoint(node.output):
            needed.update(node.input)
    return needed


@pytest.mark.parametrize("name", [*_KNOWN, *_UNKNOWN])
def test_weights_from_sums_are_those_from_all_gradients(name, tmp_path):
    head = {**_KNOWN, **_UNKNOWN}[name]()
    path = tmp_path / "model.onnx"
    to_onnx(
        network(*head), path, overrides=SMALL, outputs=["raw", "map"], methods=["gradcam"],
        target_layer="3",
    )  # fmt: skip
    rng = np.random.default_rng(1)
    feeds = {
        "image": rng.standard_normal((3, 3, 32, 32)).astype(np.float32),
        "target": np.array([[0, 5], [6, 1], [2, 2]]),
    }
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = ["activations", "gradients", "maps"]
    activations, gradients, maps = session.run(names, feeds)
    expected = cam.finish(
        cam.raw_map("gradcam", activations.astype(float), gradients.astype(float)), (32, 32)
    )
    np.testing.assert_allclose(maps, expected, atol=2e-5)
    assert maps.max() > 0.9
    assert ("gradients" in _needed(onnx.load(path), "maps")) == (name in _UNKNOWN)


def test_a_large_linear_layer_is_not_read_a_second_time(tmp_path):
    path = tmp_path / "model.onnx"
    to_onnx(network(*_flat(144)), path, overrides=SMALL, outputs=["raw", "map"], target_layer="3")
    model = onnx.load(path)
    weight = next(each.name for each in model.graph.initializer if list(each.dims) == [9, 8 * 144])
    readers = [node for node in model.graph.node if weight in node.input]
    assert len(readers) == 2  # the network, and the gradients
    needed = _needed(model, "maps")
    assert [set(node.output) <= needed for node in readers].count(True) == 1
