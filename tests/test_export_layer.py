"""Where export cuts a network, and what it says where it cannot."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

import whycam
from whycam.export import Overrides, layers, to_onnx
from whycam.export.layer import capture, find_layer, list_layers, split
from whycam.runtime.engines import selftest
from whycam.runtime.errors import ExportError, TargetLayerError, WhyCamError

slow = pytest.mark.slow


def seeded(create: Callable[..., nn.Module], *arguments, **options) -> nn.Module:
    torch.manual_seed(0)
    return create(*arguments, **options).eval()


def torchvision_model(name: str) -> nn.Module:
    # These two spend a minute on drawing truncated normals.
    slow_start = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    return seeded(torchvision.models.get_model, name, weights=None, **slow_start)


def output_of(model: nn.Module, path: str, image: torch.Tensor) -> torch.Tensor:
    """What the module at ``path`` returns while the model classifies ``image``."""
    caught = []
    handle = model.get_submodule(path).register_forward_hook(
        lambda _module, _inputs, output: caught.append(output.clone())
    )
    with torch.no_grad():
        model(image)
    handle.remove()
    return caught[-1]


# The module whose output is the last feature map, as each architecture's paper has it.
# DenseNet and VGG end in a ReLU that is no module of its own, or that a max-pool follows.
FAMILIES = [
    ("resnet18", 64, "layer4"),
    ("vgg11", 64, "features.19"),
    ("vgg11_bn", 64, "features.27"),
    ("alexnet", 64, "features.11"),
    ("squeezenet1_1", 64, "features"),
    ("mobilenet_v3_small", 64, "features"),
    ("shufflenet_v2_x0_5", 64, "conv5"),
    pytest.param("resnext50_32x4d", 64, "layer4", marks=slow),
    pytest.param("mobilenet_v2", 64, "features", marks=slow),
    pytest.param("googlenet", 64, "inception5b", marks=slow),
    pytest.param("inception_v3", 139, "Mixed_7c", marks=slow),
    pytest.param("mnasnet0_5", 64, "layers", marks=slow),
    pytest.param("efficientnet_b0", 64, "features", marks=slow),
    pytest.param("regnet_y_400mf", 64, "trunk_output", marks=slow),
    pytest.param("convnext_tiny", 64, "features", marks=slow),
]


@pytest.mark.parametrize(("name", "size", "textbook"), FAMILIES)
def test_target_layer_is_the_textbook_one(name: str, size: int, textbook: str) -> None:
    model = torchvision_model(name)
    captured = capture(model, (size, size))
    parts = split(captured, find_layer(captured))
    image = torch.randn(3, 3, size, size)
    with torch.no_grad():
        activations = parts.trunk(image)
        torch.testing.assert_close(activations, output_of(model, textbook, image))
        torch.testing.assert_close(parts.head(activations), model(image))
    assert parts.layer.shape == tuple(activations.shape[1:])
    assert parts.num_classes == 1000


@slow
def test_target_layer_of_densenet_comes_after_its_last_normalisation_and_relu() -> None:
    model = torchvision_model("densenet121")
    captured = capture(model, (64, 64))
    parts = split(captured, find_layer(captured))
    image = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = F.relu(output_of(model, "features", image))
        torch.testing.assert_close(parts.trunk(image), expected)


def test_one_by_one_convolutions_after_the_pooling_are_no_target() -> None:
    timm = pytest.importorskip("timm")
    model = seeded(timm.create_model, "mobilenetv3_small_050", pretrained=False)
    captured = capture(model, (96, 96))
    layer = find_layer(captured)
    image = torch.randn(2, 3, 96, 96)
    with torch.no_grad():
        expected = output_of(model, "blocks", image)
        torch.testing.assert_close(split(captured, layer).trunk(image), expected)
    assert layer.shape[1] > 1


def test_convolution_that_is_the_classifier_is_no_target() -> None:
    model = seeded(
        lambda: nn.Sequential(
            nn.Conv2d(3, 8, 3),
            nn.ReLU(),
            nn.Conv2d(8, 12, 3),
            nn.ReLU(),
            nn.Conv2d(12, 7, 3),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
    )
    layer = find_layer(capture(model, (16, 16)))
    assert (layer.name, layer.shape) == ("3", (12, 12, 12))


class Disguised(nn.Module):
    """A ResNet-18 whose modules bear misleading names."""

    def __init__(self) -> None:
        super().__init__()
        names = ["fc", "head", "classifier", "avgpool", "layer4", "conv1", "features", "norm"]
        parts = list(torchvision.models.resnet18().children())
        self.names = names
        for name, part in zip(names, parts[:-2], strict=True):
            self.add_module(name, part)
        self.stem = parts[-1]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for name in self.names:
            x = self.get_submodule(name)(x)
        return self.stem(x.mean((2, 3)))


def test_module_names_play_no_part() -> None:
    model = seeded(Disguised)
    captured = capture(model, (64, 64))
    layer = find_layer(captured)
    assert layer.shape == (512, 2, 2)
    image = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = output_of(model, "norm", image)
        torch.testing.assert_close(split(captured, layer).trunk(image), expected)


@pytest.fixture(scope="module")
def resnet() -> tuple[nn.Module, torch.fx.GraphModule]:
    model = torchvision_model("resnet18")
    return model, capture(model, (64, 64))


def test_layer_is_named_after_a_module_that_other_tools_can_hook(resnet) -> None:
    """A residual block calls its one ReLU twice: hooked, it would give another layer as well."""
    model, captured = resnet
    modules = dict(model.named_modules())
    image = torch.randn(2, 3, 64, 64)
    for layer in list_layers(captured):
        if layer.name not in modules:
            continue
        seen: list[torch.Tensor] = []

        def keep(module: nn.Module, given: object, made: torch.Tensor, seen: list = seen) -> None:
            seen.append(made.clone())  # what follows may work in place

        hook = modules[layer.name].register_forward_hook(keep)
        with torch.no_grad():
            model(image)
            activations = split(captured, layer).trunk(image)
        hook.remove()
        assert len(seen) == 1
        torch.testing.assert_close(activations, seen[0])
    assert find_layer(captured).name == "layer4.1"


@pytest.mark.parametrize("path", ["layer4", "layer3", "layer2.1", "layer1.0.relu", "maxpool"])
def test_named_module_becomes_the_target_layer(resnet, path: str) -> None:
    model, captured = resnet
    parts = split(captured, find_layer(captured, path))
    image = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        activations = parts.trunk(image)
        torch.testing.assert_close(activations, output_of(model, path, image))
        torch.testing.assert_close(parts.head(activations), model(image))


def test_layers_lists_the_cuts_from_image_to_logits_and_the_choice() -> None:
    found, chosen = layers("torchvision/resnet18", overrides=Overrides(image_size=64))
    shapes = [layer.shape for layer in found]
    assert shapes[0] == (64, 32, 32)
    assert shapes[-1] == (512, 2, 2)
    assert chosen == found[-1]


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("layer5", "no layer 'layer5'"),
        ("Layer4", "no layer 'Layer4'"),
        ("layer4.1.conv2", "goes around it"),
        ("layer4.1.bn2", "goes around it"),
        ("avgpool", "no spatial extent"),
        ("fc", "no spatial extent"),
    ],
)
def test_unusable_named_layer_is_refused_with_those_that_can_be_named(
    resnet, path: str, reason: str
) -> None:
    with pytest.raises(TargetLayerError) as caught:
        find_layer(resnet[1], path)
    assert reason in str(caught.value)
    assert f"'{path}'" in str(caught.value)
    assert "layer4.1 (relu, 512 x 2 x 2)" in str(caught.value)


class Branches(nn.Module):
    """Its last convolutions run side by side and meet only after pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2)
        self.left, self.right = nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 1)
        self.fc = nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        pooled = [branch(x).relu().mean((2, 3)) for branch in (self.left, self.right)]
        return self.fc(torch.cat(pooled, 1))


class Returns(nn.Module):
    """Its logits, wrapped in something."""

    def __init__(self, wrap: Callable[[torch.Tensor], object]) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.wrap = wrap

    def forward(self, x: torch.Tensor) -> object:
        return self.wrap(self.net(x))


class Decides(Returns):
    """Looks at the numbers to choose what to do."""

    def __init__(self) -> None:
        super().__init__(lambda z: z if z.sum() > 0 else 2 * z)


def small_vit() -> nn.Module:
    return seeded(
        torchvision.models.VisionTransformer,
        image_size=32,
        patch_size=8,
        num_layers=2,
        num_heads=2,
        hidden_dim=32,
        mlp_dim=64,
        num_classes=6,
    )


def mlp() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 8), nn.ReLU(), nn.Linear(8, 4))


def conv_net(*head: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), *head)


# What fails, with which error, and what the message must tell.
FAILURES = {
    "transformer": (small_vit, TargetLayerError, "transformers are not supported"),
    "no convolution": (mlp, TargetLayerError, "no convolution with spatial extent"),
    "dict": (lambda: Returns(lambda z: {"logits": z}), ExportError, "returned dict"),
    "tuple": (lambda: Returns(lambda z: (z, z)), ExportError, "returned tuple"),
    "list": (lambda: Returns(lambda z: [z]), ExportError, "returned list"),
    "map": (lambda: conv_net(), ExportError, "returned (2, 4, 30, 30)"),
    "no batch": (lambda: Returns(lambda z: z[0]), ExportError, "returned (4,)"),
    "other size": (
        lambda: conv_net(nn.Flatten(), nn.Linear(4 * 62 * 62, 5)),
        ExportError,
        "does not accept a float32 image batch of shape (2, 3, 32, 32)",
    ),
    "other channels": (
        lambda: nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(4 * 900, 5)),
        ExportError,
        "does not accept a float32 image batch of shape (2, 3, 32, 32)",
    ),
    "control flow": (Decides, ExportError, "torch.export cannot trace this model"),
    "fixed batch": (
        lambda: Returns(lambda z: z.reshape(2, 4)),
        ExportError,
        "torch.export cannot trace this model",
    ),
}


@pytest.mark.parametrize("name", FAILURES)
def test_model_that_cannot_be_explained_is_refused_and_leaves_no_file(
    name: str, tmp_path: Path
) -> None:
    create, error, message = FAILURES[name]
    with pytest.raises(error) as caught:
        to_onnx(create(), tmp_path / "model.onnx", overrides=Overrides(image_size=32))
    assert message in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("path", ["nowhere", "4"])
def test_unusable_named_layer_leaves_no_file(path: str, tmp_path: Path) -> None:
    model = conv_net(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    with pytest.raises(TargetLayerError):
        to_onnx(
            model,
            tmp_path / "model.onnx",
            overrides=Overrides(image_size=32),
            target_layer=path,
        )
    assert list(tmp_path.iterdir()) == []


def test_failed_export_leaves_an_older_file_as_it_was(tmp_path: Path) -> None:
    older = tmp_path / "model.onnx"
    older.write_bytes(b"older")
    with pytest.raises(TargetLayerError):
        to_onnx(mlp(), older, overrides=Overrides(image_size=32))
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    assert older.read_bytes() == b"older"


@slow
def test_vit_b_16_is_refused_with_the_share_of_work_behind_its_patches(tmp_path: Path) -> None:
    with pytest.raises(TargetLayerError, match=r"conv_proj.*9\d% of its arithmetic") as caught:
        to_onnx("torchvision/vit_b_16", tmp_path / "model.onnx", weights="none")
    assert "--target-layer" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def early(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Path]:
    """A transformer, and its file that explains the layer that cuts patches."""
    file = tmp_path_factory.mktemp("early") / "model.onnx"
    model = small_vit()
    nn.init.normal_(model.heads.head.weight)  # torchvision starts it at zero: no gradients
    to_onnx(model, file, overrides=Overrides(image_size=32), target_layer="conv_proj")
    return model, file


def test_openvino_is_refused_where_its_gradients_are_wrong(early: tuple[nn.Module, Path]) -> None:
    """They were, here, without a word. Where they no longer are, it may load."""
    pytest.importorskip("openvino")
    _, file = early
    unchecked = whycam.load(file, "openvino", check=False)
    found = selftest.check(unchecked.engine, unchecked.manifest)
    if any(agreement.problem() for agreement in found):
        with pytest.raises(WhyCamError, match=r"answers wrongly for .*whycam verify"):
            whycam.load(file, "openvino")
    else:
        whycam.load(file, "openvino")
    assert whycam.load(file).engine.name == "onnxruntime"


def test_early_layer_of_a_transformer_can_be_explained_when_named(
    early: tuple[nn.Module, Path],
) -> None:
    model, file = copy.deepcopy(early[0]), early[1]
    image = np.random.default_rng(0).standard_normal((2, 3, 32, 32)).astype(np.float32)
    found = whycam.load(file, threads=1).engine.run(
        {"image": image, "target": np.array([[2], [4]])}, ["activations", "gradients"]
    )
    a = torch.from_numpy(found["activations"]).double().requires_grad_(True)
    model = model.double()
    model.conv_proj = nn.Identity()
    model.patch_size, model.image_size = 1, 4
    tokens = a.flatten(2).transpose(1, 2)
    tokens = torch.cat([model.class_token.expand(2, -1, -1), tokens], 1)
    z = model.heads(model.encoder(tokens)[:, 0])
    (z[0, 2] + z[1, 4]).backward()
    difference = np.abs(found["gradients"][:, 0] - a.grad.numpy()).max()
    assert difference <= 1e-5 * a.grad.abs().max()


def test_branches_that_meet_after_pooling_are_never_cut_in_one_branch() -> None:
    """Whatever is chosen, head(trunk(x)) must be the whole network."""
    model = seeded(Branches)
    captured = capture(model, (32, 32))
    parts = split(captured, find_layer(captured))
    image = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(parts.trunk(image), output_of(model, "stem", image))
        torch.testing.assert_close(parts.head(parts.trunk(image)), model(image))
