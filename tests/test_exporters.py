"""One network, written by PyTorch's exporters at many opsets: the same maps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from test_heads import CHANNELS, SIDE, Flat, Network, average_and_maximum, explain, linear, network
from torch import nn

import whycam
from whycam.export import ExportResult


@pytest.fixture(scope="module")
def plain_network() -> Network:
    torch.manual_seed(0)
    return network(
        nn.ReLU(), Flat(average_and_maximum), nn.Linear(16, 6), nn.Hardswish(), linear(6)
    )


@pytest.fixture(scope="module")
def expected(
    plain_network: Network, tmp_path_factory: pytest.TempPathFactory
) -> tuple[torch.Tensor, dict[str, np.ndarray]]:
    made = explain(plain_network, tmp_path_factory.mktemp("direct"), outputs=["raw", "map"])
    image = torch.rand(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(2))
    return image, answers(made, image)


def answers(made: ExportResult, image: torch.Tensor) -> dict[str, np.ndarray]:
    engine = whycam.load(made.path, threads=1).engine
    names = ["probabilities", "activations", "gradients", "maps", "maps_layercam"]
    target = np.array([[-1, 0], [-1, 3]])
    return engine.run({"image": image.numpy(), "target": target}, names)


@pytest.mark.parametrize("opset", [11, 13, 17, 18, 20])
@pytest.mark.parametrize("exporter", ["TorchScript", "dynamo"])
def test_every_exporter_and_opset_gives_the_same_maps(
    exporter: str,
    opset: int,
    plain_network: Network,
    expected: tuple[torch.Tensor, dict[str, np.ndarray]],
    tmp_path: Path,
) -> None:
    image, wanted = expected
    file = tmp_path / "theirs.onnx"
    example = (torch.zeros(2, 3, SIDE, SIDE),)
    if exporter == "dynamo":
        free = ({0: torch.export.Dim("batch")},)
        torch.onnx.export(
            plain_network, example, file, dynamo=True, dynamic_shapes=free, opset_version=opset,
            verbose=False,
        )  # fmt: skip
    else:
        torch.onnx.export(
            plain_network, example, file, dynamo=False, opset_version=opset,
            input_names=["image"], dynamic_axes={"image": {0: "batch"}},
        )  # fmt: skip
    made = explain(file, tmp_path, outputs=["raw", "map"])
    assert made.manifest.activations == (CHANNELS, 9, 9)
    found = answers(made, image)
    for name, array in wanted.items():
        scale = np.abs(array).max()
        np.testing.assert_allclose(found[name], array, atol=2e-5 * scale, err_msg=name)
