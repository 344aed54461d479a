"""Another number of classes, and folders of trained models as a source."""

from __future__ import annotations

import inspect
import textwrap

import networks
import pytest
import torch
import torchvision
from torch import nn

from whycam.export.classifier import replace_classifier
from whycam.export.resolve import resolve
from whycam.export.saved_model import SavedModel, read_saved_model, save_model
from whycam.export.source import Overrides
from whycam.runtime.errors import ExportError
from whycam.runtime.manifest import Preprocess

SIZE = (networks.SIZE, networks.SIZE)
FACTORY = f"{networks.__file__}:linear"


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("resnet18", "fc"),
        ("vgg11", "classifier.6"),
        ("squeezenet1_1", "classifier.1"),
        ("mobilenet_v3_small", "classifier.3"),
        ("densenet121", "classifier"),
        ("convnext_tiny", "classifier.2"),
    ],
)
@pytest.mark.slow
def test_last_layer_is_found_and_replaced(name, layer):
    model = torchvision.models.get_model(name, weights=None).eval()
    assert replace_classifier(model, 7, (224, 224)) == layer
    assert model(torch.zeros(2, 3, 224, 224)).shape == (2, 7)


def test_network_that_ends_otherwise_is_refused():
    model = networks.network(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(ExportError, match=r"does not end|last layer"):
        replace_classifier(model, 4, SIZE)


def test_one_class_is_refused():
    with pytest.raises(ExportError, match="2 classes or more"):
        replace_classifier(networks.linear(), 1, SIZE)


def saved(folder, classes=4) -> dict[str, torch.Tensor]:
    model = networks.linear()
    replace_classifier(model, classes, SIZE)
    description = SavedModel(
        model=FACTORY,
        num_classes=classes,
        labels=tuple("abcd"[:classes]),
        preprocess=Preprocess(size=SIZE, resize=(32,), mean=(0.5, 0.5, 0.5)),
    )
    save_model(folder, description, model.state_dict())
    return model.state_dict()


def test_trained_folder_is_a_model(tmp_path):
    state = saved(tmp_path)
    source = resolve(str(tmp_path))
    assert source.labels == ("a", "b", "c", "d")
    assert source.preprocess.mean == (0.5, 0.5, 0.5)
    for name, value in source.model.state_dict().items():
        assert torch.equal(value, state[name])


def test_trained_folder_of_a_grey_network_is_a_model(tmp_path):
    def grey() -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
        )

    (tmp_path / "whycam_test_grey.py").write_text(
        "from torch import nn\n\n\n" + textwrap.dedent(inspect.getsource(grey))
    )
    model = grey().eval()
    replace_classifier(model, 5, SIZE, channels=1)
    description = SavedModel(
        model=f"{tmp_path / 'whycam_test_grey.py'}:grey",
        num_classes=5,
        labels=(),
        preprocess=Preprocess(size=SIZE, resize=SIZE, color="L", mean=(0.5,), std=(0.5,)),
    )
    save_model(tmp_path, description, model.state_dict())
    source = resolve(str(tmp_path))
    assert source.preprocess.color == "L"
    assert source.model(torch.zeros(2, 1, *SIZE)).shape == (2, 5)


def test_user_overrules_what_the_folder_says(tmp_path):
    saved(tmp_path)
    source = resolve(str(tmp_path), labels=["w", "x", "y", "z"], overrides=Overrides(resize=40))
    assert source.labels == ("w", "x", "y", "z")
    assert source.preprocess.resize == (40,)


def test_factory_can_be_given_another_number_of_classes():
    source = resolve(FACTORY, num_classes=3, overrides=networks.SMALL)
    assert source.model(torch.zeros(1, 3, 64, 64)).shape == (1, 3)


@pytest.mark.parametrize("name", ["model.json", "model.safetensors"])
def test_damaged_folder_is_named(tmp_path, name):
    saved(tmp_path)
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:20])
    with pytest.raises(ExportError, match=str(tmp_path)):
        resolve(str(tmp_path))


def test_description_comes_back(tmp_path):
    saved(tmp_path)
    assert read_saved_model(tmp_path).num_classes == 4
