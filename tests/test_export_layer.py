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
from whycam.export import Layer, Overrides, list_layers, to_onnx
from whycam.export.from_torch import to_ir
from whycam.export.layers import Network
from whycam.export.output_meaning import interpret_outputs
from whycam.export.plain_model import to_plain
from whycam.export.subgraph import run
from whycam.runtime.engines import selftest
from whycam.runtime.errors import ExportError, TargetLayerError

slow = pytest.mark.slow
SMALL = Overrides(image_size=32, preprocess="imagenet")


def call_seeded(create: Callable[..., nn.Module], *arguments, **options) -> nn.Module:
    torch.manual_seed(0)
    return create(*arguments, **options).eval()


def torchvision_model(name: str) -> nn.Module:
    # These two spend a minute on drawing truncated normals.
    slow_start = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    return call_seeded(torchvision.models.get_model, name, weights=None, **slow_start)


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


def network_of(model: nn.Module, size: int) -> Network:
    plain = to_plain(to_ir(model, (size, size), 18))
    return Network(plain, interpret_outputs(plain.graph.outputs, plain.shapes)[0].logits)


def activations_of(network: Network, layer: Layer, image: torch.Tensor) -> torch.Tensor:
    """What the graph computes there, as [N, K, h, w]."""
    graph, feeds = network.plain.graph, {network.plain.image: image.numpy()}
    (found,) = run(graph, feeds, [layer.value], network.plain.shapes)
    activations = torch.from_numpy(found).permute(layer.arrangement.order)
    assert tuple(activations.shape[1:]) == layer.shape
    return activations


def logits_from(network: Network, layer: Layer, activations: torch.Tensor) -> torch.Tensor:
    """What the graph makes of activations [N, K, h, w]; of the image it may know the batch only."""
    back = [layer.arrangement.order.index(axis) for axis in range(4)]
    image = network.plain.image
    nothing = np.zeros((len(activations), *network.plain.shapes.dims[image][1:]), np.float32)
    feeds = {image: nothing, layer.value: activations.permute(back).contiguous().numpy()}
    shapes = network.plain.shapes
    return torch.from_numpy(run(network.plain.graph, feeds, [network.logits], shapes)[0])


def check_cut(network: Network, layer: Layer, image: torch.Tensor, model: nn.Module) -> None:
    """The network is head(backbone(x)) there."""
    activations = activations_of(network, layer, image)
    with torch.no_grad():
        expected = model(image)
    found = logits_from(network, layer, activations).reshape(expected.shape)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


# The module whose output is the last feature map, as each architecture's paper has it.
# DenseNet and VGG end in a ReLU that is no module of its own, or that a max-pool follows.
FAMILIES = [
    ("resnet18", 64, "layer4"),
    ("vgg11", 64, "features.19"),
    ("squeezenet1_1", 64, "features"),
    ("mobilenet_v3_small", 64, "features"),
    ("shufflenet_v2_x0_5", 64, "conv5"),
    ("convnext_tiny", 64, "features"),
    ("vgg11_bn", 64, "features.27"),
    ("alexnet", 128, "features.11"),
    ("resnext50_32x4d", 64, "layer4"),
    ("mobilenet_v2", 64, "features"),
    ("googlenet", 64, "inception5b"),
    ("inception_v3", 139, "Mixed_7c"),
    ("mnasnet0_5", 64, "layers"),
    ("efficientnet_b0", 64, "features"),
    ("regnet_y_400mf", 64, "trunk_output"),
]


@slow
@pytest.mark.parametrize(("name", "size", "textbook"), FAMILIES)
def test_target_layer_is_the_textbook_one(name: str, size: int, textbook: str) -> None:
    model = torchvision_model(name)
    network = network_of(model, size)
    layer = network.find()
    image = torch.randn(3, 3, size, size)
    expected = output_of(model, textbook, image)
    found = activations_of(network, layer, image)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    check_cut(network, layer, image, model)


@slow
def test_target_layer_of_densenet_comes_after_its_last_normalisation_and_relu() -> None:
    model = torchvision_model("densenet121")
    network = network_of(model, 64)
    image = torch.randn(2, 3, 64, 64)
    expected = F.relu(output_of(model, "features", image))
    torch.testing.assert_close(activations_of(network, network.find(), image), expected)


# timm's: 1x1 convolutions after the pooling; hybrids, whose last stage is attention; blocks that
# work on [N, h, w, K].
TIMM = [
    ("mobilenetv3_small_050", 64, "blocks", (288, 2, 2), (0, 1, 2, 3)),
    ("mambaout_femto", 64, "stages.3.blocks.2", (288, 2, 2), (0, 3, 1, 2)),
    ("coatnet_nano_rw_224", 224, "stages", (512, 7, 7), (0, 1, 2, 3)),
    ("mobilevit_xxs", 64, "final_conv", (320, 2, 2), (0, 1, 2, 3)),
    ("poolformer_s12", 64, "stages", (512, 2, 2), (0, 1, 2, 3)),
]


@slow
@pytest.mark.parametrize(("name", "size", "textbook", "shape", "order"), TIMM)
def test_target_layer_of_less_common_networks(
    name: str,
    size: int,
    textbook: str,
    shape: tuple[int, int, int],
    order: tuple[int, int, int, int],
) -> None:
    timm = pytest.importorskip("timm")
    model = call_seeded(timm.create_model, name, pretrained=False)
    network = network_of(model, size)
    layer = network.find()
    assert (layer.shape, layer.arrangement.order) == (shape, order)
    image = torch.randn(2, 3, size, size)
    expected = output_of(model, textbook, image).permute(order)
    torch.testing.assert_close(
        activations_of(network, layer, image), expected, rtol=1e-3, atol=1e-4
    )
    check_cut(network, layer, image, model)


def test_convolution_that_is_the_classifier_is_no_target() -> None:
    model = call_seeded(
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
    layer = network_of(model, 16).find()
    assert (layer.name, layer.shape) == ("3", (12, 12, 12))


class GeneralisedMean(nn.Module):
    """GeM pooling (Radenovic et al. 2018)."""

    def __init__(self) -> None:
        super().__init__()
        self.power = nn.Parameter(torch.tensor([3.0]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.clamp(min=1e-6).pow(self.power)
        return F.avg_pool2d(x, (x.size(-2), x.size(-1))).pow(1 / self.power).flatten(1)


class Cosine(nn.Module):
    """A classifier by angles, as ArcFace has it: the weights are normalised on the way."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(5, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 64 * F.linear(F.normalize(x), F.normalize(self.weight))


class BothPools(nn.Module):
    """fastai's AdaptiveConcatPool2d."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([F.adaptive_max_pool2d(x, 1), F.adaptive_avg_pool2d(x, 1)], 1).flatten(1)


class Shuffle(nn.Module):
    """Channels in another order, as in ShuffleNet."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, k, h, w = x.shape
        return x.reshape(n, 2, k // 2, h, w).transpose(1, 2).reshape(n, k, h, w)


class ConvNextBlock(nn.Module):
    """A depthwise convolution, and linear layers over [N, h, w, K], around which the input goes."""

    def __init__(self) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.norm, self.wide, self.narrow = nn.LayerNorm(8), nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        return x + self.narrow(F.gelu(self.wide(y))).permute(0, 3, 1, 2)


def backbone(*head: nn.Module) -> nn.Module:
    body = [nn.Conv2d(3, 6, 3, 2), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 8, 3)]
    return nn.Sequential(*body, nn.BatchNorm2d(8), *head)


def pooled(*head: nn.Module) -> nn.Module:
    return backbone(nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), *head)


weight_norm = nn.utils.parametrizations.weight_norm
# The network, and the module whose output is the last feature map.
HEADS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "one linear layer": (lambda: pooled(nn.Linear(8, 5)), "5"),
    "two linear layers": (lambda: pooled(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 5)), "5"),
    "cosine": (lambda: pooled(Cosine()), "5"),
    "weight norm": (lambda: pooled(weight_norm(nn.Linear(8, 5))), "5"),
    "batch norm after pooling": (lambda: pooled(nn.BatchNorm1d(8), nn.Linear(8, 5)), "5"),
    "both pools": (lambda: backbone(nn.ReLU(), BothPools(), nn.Linear(16, 5)), "5"),
    "generalised mean": (lambda: backbone(nn.SiLU(), GeneralisedMean(), nn.Linear(8, 5)), "5"),
    "channel shuffle": (
        lambda: backbone(
            nn.ReLU(), Shuffle(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)
        ),
        "5",
    ),
    "convnext": (
        lambda: backbone(
            nn.GELU(), ConvNextBlock(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)
        ),
        "6",
    ),
}


@pytest.mark.parametrize("name", HEADS)
def test_target_layer_comes_before_the_head_whatever_that_is(name: str) -> None:
    create, expected = HEADS[name]
    model = call_seeded(create)
    network = network_of(model, 32)
    layer = network.find()
    image = torch.randn(2, 3, 32, 32)
    activations = output_of(model, expected, image)
    torch.testing.assert_close(
        activations_of(network, layer, image), activations, rtol=1e-4, atol=1e-5
    )
    check_cut(network, layer, image, model)


class Scale(nn.Module):
    """A learned factor a channel, as LayerScale."""

    def __init__(self) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.linspace(-1, 2, 8).reshape(8, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.gamma


@pytest.mark.parametrize("before", [[], [Scale]], ids=["conv", "scaled"])
def test_lower_bound_of_a_generalised_mean_does_not_swallow_the_relu_before_it(before) -> None:
    model = call_seeded(
        lambda: backbone(
            *(each() for each in before), nn.ReLU(), GeneralisedMean(), nn.Linear(8, 5)
        )
    )
    network = network_of(model, 32)
    image = torch.randn(2, 3, 32, 32)
    activations = activations_of(network, network.find(), image)
    expected = output_of(model, str(5 + len(before)), image)
    torch.testing.assert_close(activations, expected, rtol=1e-4, atol=1e-5)


def small_resnet() -> nn.Module:
    block = torchvision.models.resnet.BasicBlock
    return torchvision.models.ResNet(block, [1, 1, 1, 1], num_classes=5)


class Disguised(nn.Module):
    """A ResNet whose modules bear misleading names."""

    def __init__(self) -> None:
        super().__init__()
        names = ["fc", "head", "classifier", "avgpool", "layer4", "conv1", "features", "norm"]
        parts = list(small_resnet().children())
        self.names = names
        for name, part in zip(names, parts[:-2], strict=True):
            self.add_module(name, part)
        self.stem = parts[-1]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for name in self.names:
            x = self.get_submodule(name)(x)
        return self.stem(x.mean((2, 3)))


@pytest.mark.slow
class _ChannelsLastActivation(nn.Module):
    """A last convolution whose scale, shift and ReLU follow channels last, as Keras writes them."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 12, 3))
        self.scale = nn.Parameter(torch.rand(12) + 0.5)
        self.shift = nn.Parameter(torch.randn(12))
        self.act = nn.ReLU()
        self.head = nn.Linear(12, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features = self.body(x).permute(0, 2, 3, 1) * self.scale + self.shift
        return self.head(self.act(features).mean((1, 2)))


def test_activation_that_follows_the_last_convolution_channels_last_is_the_target() -> None:
    model = call_seeded(_ChannelsLastActivation)
    layer = network_of(model, 24).find()
    assert (layer.name, layer.shape, layer.arrangement.order) == ("act", (12, 20, 20), (0, 3, 1, 2))


def test_transposition_alone_after_the_last_convolution_is_not_the_target() -> None:
    model = call_seeded(
        lambda: nn.Sequential(
            nn.Conv2d(3, 8, 3),
            nn.ReLU(),
            _ToChannelsLast(),
            nn.LayerNorm(8),
            _MeanOfPlaces(),
            nn.Linear(8, 4),
        )
    )
    layer = network_of(model, 16).find()
    assert (layer.name, layer.arrangement.order) == ("1", (0, 1, 2, 3))


class _ToChannelsLast(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.permute(0, 2, 3, 1)


class _MeanOfPlaces(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean((1, 2))


def test_module_names_play_no_part() -> None:
    model = call_seeded(Disguised)
    network = network_of(model, 64)
    layer = network.find()
    assert layer.shape == (512, 2, 2)
    image = torch.randn(2, 3, 64, 64)
    expected = output_of(model, "norm", image)
    found = activations_of(network, layer, image)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


@pytest.fixture(scope="module")
def resnet() -> tuple[nn.Module, Network]:
    model = torchvision_model("resnet18")
    return model, network_of(model, 64)


def test_layer_is_named_after_a_module_that_other_tools_can_hook(resnet) -> None:
    """A residual block calls its one ReLU twice: hooked, it would give another layer as well."""
    model, network = resnet
    modules = dict(model.named_modules())
    image = torch.randn(2, 3, 64, 64)
    named = [layer for layer in network.layers if layer.name in modules]
    assert len(named) >= 9
    for layer in named:
        seen: list[torch.Tensor] = []

        def keep(module: nn.Module, given: object, made: torch.Tensor, seen: list = seen) -> None:
            seen.append(made.clone())  # what follows may work in place

        hook = modules[layer.name].register_forward_hook(keep)
        with torch.no_grad():
            model(image)
        hook.remove()
        assert len(seen) == 1
        found = activations_of(network, layer, image)
        torch.testing.assert_close(found, seen[0], rtol=1e-3, atol=1e-4)
    assert network.find().name == "layer4.1"


@pytest.mark.parametrize("path", ["layer4", "layer3", "layer2.1", "layer1.0.relu", "maxpool"])
def test_named_module_becomes_the_target_layer(resnet, path: str) -> None:
    model, network = resnet
    layer = network.find(path)
    image = torch.randn(2, 3, 64, 64)
    expected = output_of(model, path, image)
    found = activations_of(network, layer, image)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    check_cut(network, layer, image, model)


def test_node_and_tensor_can_be_named_as_well(resnet) -> None:
    network = resnet[1]
    layer = network.find("layer3")
    node = layer.value.producer()
    assert network.find(node.name) == network.find(layer.value.name) == layer


def test_earlier_layers_come_in_the_networks_order(resnet) -> None:
    network = resnet[1]
    target = network.find()
    names = [layer.name for layer in network.find_earlier(target, ["layer3", "layer2"])]
    assert names == ["layer2.1", "layer3.1"]
    with pytest.raises(TargetLayerError, match="not 2 different ones"):
        network.find_earlier(target, ["layer3", "layer3.1"])
    with pytest.raises(TargetLayerError, match=r"'layer4.1' is not before"):
        network.find_earlier(target, ["layer4"])


def test_layers_lists_the_cuts_from_image_to_logits_and_the_choice() -> None:
    found, chosen = list_layers("torchvision/resnet18", overrides=Overrides(image_size=64))
    shapes = [layer.shape for layer in found]
    assert shapes[0] == (64, 32, 32)
    assert shapes[-1] == (512, 2, 2)
    assert chosen == (found[-1],)


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("layer5", "no layer 'layer5'"),
        ("Layer4", "no layer 'Layer4'"),
        ("avgpool", "no spatial extent"),
        ("fc", "no spatial extent"),
    ],
)
def test_unusable_named_layer_is_refused_with_those_that_can_be_named(
    resnet, path: str, reason: str
) -> None:
    with pytest.raises(TargetLayerError) as caught:
        resnet[1].find(path)
    assert reason in str(caught.value)
    assert f"'{path}'" in str(caught.value)
    assert "layer4.1 (Relu, 512 x 2 x 2)" in str(caught.value)


class Branches(nn.Module):
    """Its last convolutions run side by side and meet only after pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 7, 2)
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


class FixedBatch(nn.Module):
    """Spells the batch out."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.reshape(2, 4)


class Decides(Returns):
    """Looks at the numbers to choose what to do."""

    def __init__(self) -> None:
        super().__init__(lambda z: z if z.sum() > 0 else 2 * z)


def small_vit() -> nn.Module:
    return call_seeded(
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
    "no convolution": (mlp, TargetLayerError, "no convolution with spatial extent"),
    "tuple": (lambda: Returns(lambda z: (z, z)), ExportError, "Choose one with --head NAME"),
    "map": (lambda: conv_net(), ExportError, "'logits' has 4 numbers at every place"),
    "no batch": (lambda: Returns(lambda z: z[0]), ExportError, "'logits' [4]"),
    "other size": (
        lambda: conv_net(nn.Flatten(), nn.Linear(4 * 62 * 62, 5)),
        ExportError,
        "does not accept a float32 image batch of shape (2, 3, 32, 32)",
    ),
    "other channels": (
        lambda: nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(4 * 900, 5)),
        ExportError,
        "the network takes 1: pass --mean and --std",
    ),
    "control flow": (Decides, ExportError, "torch.onnx.export cannot translate this model"),
    "fixed batch": (
        lambda: nn.Sequential(conv_net(nn.Flatten(), nn.Linear(3600, 4)), FixedBatch()),
        ExportError,
        "fixes the batch size",
    ),
}


@pytest.mark.parametrize("name", FAILURES)
def test_model_that_cannot_be_explained_is_refused_and_leaves_no_file(
    name: str, tmp_path: Path
) -> None:
    create, error, message = FAILURES[name]
    with pytest.raises(error) as caught:
        to_onnx(create(), tmp_path / "model.onnx", overrides=SMALL)
    assert message in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("path", ["nowhere", "4"])
def test_unusable_named_layer_leaves_no_file(path: str, tmp_path: Path) -> None:
    model = conv_net(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    with pytest.raises(TargetLayerError):
        to_onnx(
            model,
            tmp_path / "model.onnx",
            overrides=SMALL,
            target_layer=path,
        )
    assert list(tmp_path.iterdir()) == []


def test_failed_export_leaves_an_older_file_as_it_was(tmp_path: Path) -> None:
    older = tmp_path / "model.onnx"
    older.write_bytes(b"older")
    with pytest.raises(TargetLayerError):
        to_onnx(mlp(), older, overrides=SMALL)
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    assert older.read_bytes() == b"older"


@pytest.fixture(scope="module")
def early(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Path]:
    """A transformer, and its file that explains the layer that cuts patches."""
    file = tmp_path_factory.mktemp("early") / "model.onnx"
    model = small_vit()
    nn.init.normal_(model.heads.head.weight)  # torchvision starts it at zero: no gradients
    to_onnx(model, file, overrides=SMALL, target_layer="conv_proj")
    return model, file


def test_openvino_explains_an_early_layer_of_a_transformer(early: tuple[nn.Module, Path]) -> None:
    """Its square weights are multiplied by the forward pass, and transposed by the gradient."""
    pytest.importorskip("openvino")
    _, file = early
    explainer = whycam.load(file, "openvino")
    assert not any(each.problems for each in selftest.check(explainer.engine, explainer.manifest))


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
    model = call_seeded(Branches)
    network = network_of(model, 32)
    layer = network.find()
    image = torch.randn(3, 3, 32, 32)
    expected = output_of(model, "stem", image)
    torch.testing.assert_close(activations_of(network, layer, image), expected)
    check_cut(network, layer, image, model)
