"""A bright patch of a wide image lights its own place, in every layout, alone and in a batch."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import whycam
from whycam.export import Overrides, to_onnx

H, W = 180, 320
ROWS, COLUMNS = 9, 16  # patches of 20 pixels
LAYOUTS = ("NCHW", "NHWC", "tokens", "windows", "any size")


class Bright(nn.Module):
    """Its first channel is the brightness of a patch, and the class 1 its average over patches."""

    def __init__(self, layout: str) -> None:
        super().__init__()
        self.layout = layout
        self.patches = nn.Conv2d(3, 4, 20, 20)
        self.class_token = nn.Parameter(torch.zeros(1, 1, 4))
        self.head = nn.Linear(4, 2)
        nn.init.zeros_(self.patches.weight)
        nn.init.zeros_(self.patches.bias)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        with torch.no_grad():
            self.patches.weight[0] = 1 / 1200
            self.head.weight[1, 0] = 100.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patches(x)
        n = x.shape[0]
        if self.layout == "NCHW":
            return self.head(x.relu().mean((2, 3)))
        x = x.permute(0, 2, 3, 1)
        if self.layout == "NHWC":
            return self.head((x + x.relu()).mean((1, 2)))
        if self.layout == "tokens":
            x = torch.cat([self.class_token.expand(n, -1, -1), x.reshape(n, -1, 4)], 1)
            return self.head((x + x.relu())[:, 1:].mean(1))
        x = x.reshape(n, ROWS // 3, 3, COLUMNS // 4, 4, 4).transpose(2, 3).reshape(-1, 12, 4)
        return self.head((x + x.relu()).reshape(n, -1, 4).mean(1))


@pytest.fixture(scope="module")
def explaining(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Files with all outputs, of each layout, and of NCHW for images of many sizes."""

    @cache
    def export(layout: str) -> Path:
        file = tmp_path_factory.mktemp(layout) / "model.onnx"
        free = {"dynamic_size": (160, 320)} if layout == "any size" else {}
        model = Bright("NCHW" if free else layout).eval()
        overrides = Overrides(image_size=(H, W), preprocess="imagenet")
        to_onnx(model, file, overrides=overrides, outputs=("raw", "map", "tft"), **free)
        return file

    return export


def bright_at(row: int, column: int) -> np.ndarray:
    """An image [1, 3, 180, 320] that is dark but for one patch of 20 pixels."""
    image = np.full((1, 3, H, W), 0.1, np.float32)
    image[:, :, row : row + 20, column : column + 20] = 2.0
    return image


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_bright_patch_at_the_right_edge_lights_the_right_edge(
    layout: str, explaining: Callable[[str], Path]
) -> None:
    explainer = whycam.load(explaining(layout), threads=1)
    assert explainer.manifest.activations == (4, ROWS, COLUMNS)
    image = bright_at(40, W - 20)
    names = ["original_maps", "maps", "activations", "gradients"]
    found = explainer.engine.run({"image": image, "target": np.array([[1]])}, names)
    brightness = image[0].reshape(3, ROWS, 20, COLUMNS, 20).mean((0, 2, 4))
    factor = 1 if layout in ("NCHW", "any size") else 2
    np.testing.assert_allclose(found["activations"][0, 0], factor * brightness, rtol=1e-5)
    assert found["gradients"][0, 0, 0].min() > 0
    for name in ("original_maps", "maps"):
        lit = found[name][0, 0]
        row, column = np.unravel_index(lit.argmax(), lit.shape)
        assert 40 <= row < 60
        assert column >= W - 20
        assert lit[40:60, -20:].mean() > 0.5
        assert lit[:, : W - 40].max() < 0.01


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_images_of_a_batch_are_explained_as_each_alone(
    layout: str, engine: str, explaining: Callable[[str], Path]
) -> None:
    explainer = whycam.load(explaining(layout), engine, threads=1)
    images = [bright_at(row, column) for row, column in ((40, W - 20), (0, 0), (160, 100))]
    names = ["probabilities", "activations", "gradients", "original_maps", "maps", "thresholds"]
    names += ["rpi", *(f"maps_{method}" for method in explainer.manifest.map_methods[1:])]

    def run(batch: np.ndarray) -> dict[str, np.ndarray]:
        target = np.tile([[1, 0]], (len(batch), 1))
        return explainer.engine.run({"image": batch, "target": target}, names)

    together = run(np.concatenate(images))
    for row, image in enumerate(images):
        alone = run(image)
        for name in names:
            np.testing.assert_allclose(
                together[name][row], alone[name][0], 1e-4, 2e-6, err_msg=f"{name} of image {row}"
            )
