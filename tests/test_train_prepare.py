"""What a network is fed in training is what the runtime feeds it."""

from __future__ import annotations

import networks
import numpy as np
import pytest
import torch
from torch import nn

from whycam.runtime.errors import DataError
from whycam.runtime.input_format import Preprocess
from whycam.runtime.preprocess import normalise
from whycam.train.data import split_data
from whycam.train.network import TunableNetwork
from whycam.train.prepare import to_input

SIZE = (networks.SIZE, networks.SIZE)
SPECS = {
    "RGB": Preprocess(SIZE, (36,)),
    "BGR": Preprocess(SIZE, (36,), color="BGR", mean=(0.4, 0.45, 0.48), std=(1 / 255,) * 3),
    "L": Preprocess(SIZE, (36,), color="L", mean=(0.5,), std=(0.25,)),
}


@pytest.mark.parametrize("color", SPECS)
def test_input_is_the_runtimes(color):
    spec = SPECS[color]
    views = np.random.default_rng(0).integers(0, 256, (3, *SIZE, 3), np.uint8)
    found = to_input(views, spec, torch.device("cpu"))
    assert found.shape == (3, spec.channels, *SIZE)
    np.testing.assert_allclose(found.numpy(), normalise(views, spec), rtol=1e-5, atol=1e-5)


def test_network_of_grey_images_is_tuned():
    torch.manual_seed(0)
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)]
    model = nn.Sequential(nn.Conv2d(1, 4, 5, stride=2), nn.ReLU(), *head).eval()
    tunable = TunableNetwork(model, SIZE, channels=1)
    image = torch.randn(2, 1, *SIZE)
    torch.testing.assert_close(tunable.classify(image), model(image))
    assert tunable.feature_shape == (1, *SIZE)


def test_images_with_several_labels_are_not_trained(tmp_path):
    table = tmp_path / "list.csv"
    table.write_text("a.png,cat\nb.png,cat;dog\nc.png,dog\n")
    with pytest.raises(
        DataError, match=r"'b\.png' several labels \(cat, dog\).*one label an image"
    ):
        split_data(table)
