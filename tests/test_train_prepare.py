"""What a network is fed in training is what the runtime feeds it."""

from __future__ import annotations

import networks
import numpy as np
import pytest
import torch
from torch import nn

from whycam.calibrate.dataset import Classes, open_dataset
from whycam.runtime.errors import DataError
from whycam.runtime.input_format import Preprocess
from whycam.runtime.preprocess import normalise
from whycam.train.data import check_exclusive, split_data
from whycam.train.labels import list_present, tabulate_labels
from whycam.train.network import TunableNetwork
from whycam.train.prepare import RowComputer, to_input

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


def test_images_with_several_labels_are_refused_where_classes_exclude_each_other(tmp_path):
    table = tmp_path / "list.csv"
    table.write_text("a.png,cat\nb.png,cat;dog\nc.png,cat\n")
    with pytest.raises(DataError, match=r"'b\.png' several labels \(cat, dog\).*--task sigmoid"):
        check_exclusive(split_data(table))


def test_labels_are_known_present_or_absent(tmp_path):
    """A class that no image names, and an image without a statement, are not known."""
    table = tmp_path / "list.csv"
    table.write_text("a.png,cat\nb.png,cat;dog\nc.png,\n")
    lookup = Classes(("bird", "cat", "dog"), 3)
    found = tabulate_labels(open_dataset(table), lookup, 3)
    assert found.tolist() == [[-1, 1, 0], [-1, 1, 1], [-1, -1, -1]]
    assert list_present(found) == [[1], [1, 2], []]
    with pytest.raises(DataError, match=r"no label .* is a class of the network \(as 'cat'\)"):
        tabulate_labels(open_dataset(table), Classes(("Katze", "Hund"), 2), 2)


def test_of_several_labels_the_most_probable_is_explained():
    model = nn.Sequential(networks.linear(), nn.Sigmoid()).eval()
    tunable = TunableNetwork(model, SIZE)
    maker = RowComputer(tunable, SPECS["RGB"], torch.device("cpu"))
    views = np.random.default_rng(0).integers(0, 256, (3, *SIZE, 3), np.uint8)
    rows = maker.rows(views, ["target"], [[1, 4], [], [6]])
    scores = model(to_input(views, SPECS["RGB"], torch.device("cpu"))).detach().numpy()
    assert rows["target"].tolist() == [[1, 4][scores[0, [1, 4]].argmax()], scores[1].argmax(), 6]
    np.testing.assert_allclose(rows["probabilities"], scores, atol=1e-6)
