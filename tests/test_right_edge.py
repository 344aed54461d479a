"""A bright patch at the right edge of a wide image lights the right edge, in every layout."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import whycam
from whycam.export import Overrides, to_onnx

H, W = 180, 320
ROWS, COLUMNS = 9, 16  # patches of 20 pixels
LAYOUTS = ("NCHW", "NHWC", "tokens", "windows")


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


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_bright_patch_at_the_right_edge_lights_the_right_edge(layout: str, tmp_path: Path) -> None:
    file = tmp_path / "model.onnx"
    overrides = Overrides(image_size=(H, W), preprocess="imagenet")
    model = Bright(layout).eval()
    result = to_onnx(model, file, overrides=overrides, outputs=("raw", "map", "tft"))
    assert result.manifest.activations == (4, ROWS, COLUMNS)
    image = np.full((1, 3, H, W), 0.1, np.float32)
    image[:, :, 40:60, -20:] = 2.0
    names = ["original_maps", "maps", "activations", "gradients"]
    found = whycam.load(file, threads=1).engine.run(
        {"image": image, "target": np.array([[1]])}, names
    )
    brightness = image[0].reshape(3, ROWS, 20, COLUMNS, 20).mean((0, 2, 4))
    factor = 1 if layout == "NCHW" else 2
    np.testing.assert_allclose(found["activations"][0, 0], factor * brightness, rtol=1e-5)
    assert found["gradients"][0, 0, 0].min() > 0
    for name in ("original_maps", "maps"):
        lit = found[name][0, 0]
        row, column = np.unravel_index(lit.argmax(), lit.shape)
        assert 40 <= row < 60
        assert column >= W - 20
        assert lit[40:60, -20:].mean() > 0.5
        assert lit[:, : W - 40].max() < 0.01
