"""Gradients of exported files against float64 autograd through the model's own head."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
import torch.nn.functional as F
import torchvision
from onnx.utils import Extractor
from torch import nn

import whycam
from whycam.export import Overrides, to_onnx

TOLERANCE = 1e-5
K, H, W = 8, 7, 9  # activations of the small networks


class Small(nn.Module):
    """One convolution with ReLU, then the head under test: [N, 3, 15, 19] to [N, C]."""

    SIZE = (15, 19)

    def __init__(self, *head: nn.Module) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, K, 3, stride=2), nn.ReLU())
        self.head = nn.Sequential(*head)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(x))


def gradient_error(
    model: nn.Module,
    head: nn.Module,
    target_layer: str,
    size: tuple[int, int],
    tmp_path: Path,
    score: str = "logit",
    images: np.ndarray | None = None,
) -> float:
    """Export, run three images with two classes each, compare with autograd: relative error."""
    to_onnx(
        copy.deepcopy(model),
        tmp_path / "model.onnx",
        overrides=Overrides(image_size=size, preprocess="imagenet"),
        target_layer=target_layer,
        score=score,
    )
    return error_of_file(tmp_path / "model.onnx", head, size, score, images)


def error_of_file(
    file: Path,
    head: nn.Module,
    size: tuple[int, int],
    score: str = "logit",
    images: np.ndarray | None = None,
) -> float:
    """Largest difference between a file's gradients and autograd's, relative to the largest."""
    explainer = whycam.load(file, threads=1)
    if images is None:
        images = np.random.default_rng(1).standard_normal((3, 3, *size)).astype(np.float32)
    target = np.array([[0, 1], [2, 1], [-1, -2]])
    found = explainer.engine.run(
        {"image": images, "target": target}, ["activations", "targets", "gradients"]
    )
    head = copy.deepcopy(head).double().eval()
    expected = np.stack(
        [
            autograd(head, found["activations"], found["targets"][:, column], score)
            for column in range(2)
        ],
        axis=1,
    )
    assert np.abs(expected).max() > 0
    return float(np.abs(found["gradients"] - expected).max() / np.abs(expected).max())


def autograd(head: nn.Module, activations: np.ndarray, target: np.ndarray, score: str):
    a = torch.from_numpy(activations).double().requires_grad_(True)
    z = head(a)
    values = z if score == "logit" else torch.softmax(z, -1)
    values[torch.arange(len(a)), torch.from_numpy(target)].sum().backward()
    return a.grad.numpy()


def small_error(tmp_path: Path, *head: nn.Module, **options) -> float:
    model = Small(*head).eval()
    return gradient_error(model, model.head, "features", Small.SIZE, tmp_path, **options)


def pooled(*after: nn.Module) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), *after]


def flat(height: int, width: int, channels: int = K) -> list[nn.Module]:
    return [nn.Flatten(), nn.Linear(channels * height * width, 5)]


def two_layers(activation: nn.Module) -> list[nn.Module]:
    return pooled(nn.Linear(K, 6), activation, nn.Linear(6, 5))


class ChannelsLastNorm(nn.Module):
    """ConvNeXt's normalisation: over the channels, at each place."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(K)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Gate(nn.Module):
    """Squeeze and excitation: the activations are used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.weigh = nn.Conv2d(K, K, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.sigmoid(self.weigh(x.mean((2, 3), keepdim=True)))


HEADS = {
    "linear": lambda: pooled(nn.Linear(K, 5)),
    "linear-without-bias": lambda: pooled(nn.Linear(K, 5, bias=False)),
    "linear-without-pooling": lambda: flat(H, W),
    "relu": lambda: two_layers(nn.ReLU()),
    "relu6": lambda: two_layers(nn.ReLU6()),
    "leaky-relu": lambda: two_layers(nn.LeakyReLU()),
    "hardswish": lambda: two_layers(nn.Hardswish()),
    "silu": lambda: two_layers(nn.SiLU()),
    "gelu": lambda: two_layers(nn.GELU()),
    "gelu-tanh": lambda: two_layers(nn.GELU(approximate="tanh")),
    "sigmoid": lambda: two_layers(nn.Sigmoid()),
    "mish": lambda: two_layers(nn.Mish()),
    "dropout": lambda: two_layers(nn.Dropout()),
    "batch-norm": lambda: [nn.BatchNorm2d(K), *pooled(nn.BatchNorm1d(K), nn.Linear(K, 5))],
    "layer-norm": lambda: pooled(nn.LayerNorm(K), nn.Linear(K, 5)),
    "layer-norm-over-channels": lambda: [ChannelsLastNorm(), *pooled(nn.Linear(K, 5))],
    "group-norm": lambda: [nn.GroupNorm(2, K), *flat(H, W)],
    "gate": lambda: [Gate(), *flat(H, W)],
    "average-pool": lambda: [nn.AvgPool2d(2), *flat(3, 4)],
    "average-pool-overlapping": lambda: [nn.AvgPool2d(3, 2), *flat(3, 4)],
    "average-pool-padded": lambda: [nn.AvgPool2d(3, 2, 1), *flat(4, 5)],
    "average-pool-padding-not-counted": lambda: [
        nn.AvgPool2d((3, 2), (2, 1), 1, count_include_pad=False),
        *flat(4, 10),
    ],
    "average-pool-ceil": lambda: [nn.AvgPool2d(2, ceil_mode=True), *flat(4, 5)],
    "average-pool-ceil-padding-not-counted": lambda: [
        nn.AvgPool2d(3, 2, 1, ceil_mode=True, count_include_pad=False),
        *flat(4, 5),
    ],
    "adaptive-pool-dividing-nothing": lambda: [nn.AdaptiveAvgPool2d((3, 4)), *flat(3, 4)],
    "adaptive-pool-to-more-places": lambda: [nn.AdaptiveAvgPool2d((9, 11)), *flat(9, 11)],
    "adaptive-pool-one-axis": lambda: [nn.AdaptiveAvgPool2d((1, None)), *flat(1, W)],
    "max-pool": lambda: [nn.MaxPool2d(2), *flat(3, 4)],
    "max-pool-overlapping": lambda: [nn.MaxPool2d(3, 2), *flat(3, 4)],
    "max-pool-padded": lambda: [nn.MaxPool2d(3, 2, 1), *flat(4, 5)],
    "max-pool-ceil": lambda: [nn.MaxPool2d((2, 3), 2, ceil_mode=True), *flat(4, 4)],
    "max-pool-ceil-padded": lambda: [nn.MaxPool2d(3, 3, 1, ceil_mode=True), *flat(3, 4)],
    # By torch's rule no window begins beyond the input, so the rounding up is taken back.
    "max-pool-dilated": lambda: [nn.MaxPool2d(2, 2, dilation=2), *flat(3, 4)],
    "max-pool-gaps": lambda: [nn.MaxPool2d(2, 3), *flat(2, 3)],
    "convolution": lambda: [nn.Conv2d(K, 6, 3), nn.ReLU(), nn.Conv2d(6, 5, 1), *pooled()],
    "convolution-strided": lambda: [nn.Conv2d(K, 6, 3, 2, 1), nn.SiLU(), *flat(4, 5, 6)],
    "convolution-stride-leaving-a-rest": lambda: [nn.Conv2d(K, 6, (3, 2), (3, 3)), *flat(2, 3, 6)],
    "convolution-grouped-dilated": lambda: [
        nn.Conv2d(K, 6, 3, padding="same", dilation=2, groups=2),
        nn.ReLU(),
        *flat(H, W, 6),
    ],
    "convolution-then-max-pool": lambda: [
        nn.Conv2d(K, 6, 3),
        nn.ReLU(),
        nn.MaxPool2d(2, ceil_mode=True),
        *flat(3, 4, 6),
    ],
}


class Many(nn.Module):
    """All the heads on the same activations."""

    def __init__(self) -> None:
        super().__init__()
        self.features = Small().features
        self.heads = nn.ModuleList(nn.Sequential(*create()) for create in HEADS.values())

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        activations = self.features(x)
        return tuple(head(activations) for head in self.heads)


@pytest.fixture(scope="module")
def many() -> tuple[dict[str, nn.Module], onnx.ModelProto]:
    """Every head by its name, and one graph with all their logits, by PyTorch's exporter."""
    torch.manual_seed(0)
    model = Many().eval()
    program = torch.onnx.export(
        model,
        (torch.zeros(2, 3, *Small.SIZE),),
        dynamo=True,
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        input_names=["image"],
        output_names=[f"head_{name}" for name in HEADS],
        opset_version=18,
        verbose=False,
    )
    return dict(zip(HEADS, model.heads, strict=True)), ir.to_proto(program.model)


@pytest.mark.parametrize("name", HEADS)
def test_gradients_through_a_head_equal_autograd(many, name: str, tmp_path: Path) -> None:
    heads, graph = many
    path = tmp_path / "plain.onnx"
    onnx.save(Extractor(graph).extract_model(["image"], [f"head_{name}"]), path)
    activations = next(node.output[0] for node in graph.graph.node if node.op_type == "Relu")
    file = tmp_path / "model.onnx"
    to_onnx(path, file, target_layer=activations, overrides=Overrides(preprocess="imagenet"))
    assert error_of_file(file, heads[name], Small.SIZE) <= TOLERANCE


@pytest.mark.parametrize("name", ["linear", "silu", "max-pool-overlapping", "convolution"])
def test_gradients_of_the_probability_equal_autograd(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    assert small_error(tmp_path, *HEADS[name](), score="prob") <= TOLERANCE


@pytest.mark.parametrize(
    "pool",
    [
        nn.MaxPool2d(2),
        nn.MaxPool2d(3, 2),
        nn.MaxPool2d(3, 1, 1),
        nn.MaxPool2d((4, 3), 2, (2, 1), ceil_mode=True),
    ],
    ids=["2", "3-2", "3-1-1", "ceil"],
)
def test_exact_ties_in_a_max_pool_give_the_gradient_to_the_first_element(
    pool: nn.Module, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    height, width = pool(torch.zeros(1, 1, H, W)).shape[2:]
    model = Small(pool, *flat(height, width)).eval()
    convolution = model.features[0]
    with torch.no_grad():  # sums of small whole numbers: float32 holds them exactly
        convolution.weight.copy_(torch.rand(convolution.weight.shape) < 0.1)
        convolution.bias.fill_(1.0)
    images = np.random.default_rng(2).integers(0, 2, (3, 3, *Small.SIZE)).astype(np.float32)
    with torch.no_grad():
        windows = F.unfold(model.features(torch.from_numpy(images)), 2)
    windows = windows.reshape(3, K, 4, -1)
    assert ((windows == windows.amax(2, keepdim=True)).sum(2) > 1).float().mean() > 0.3
    error = gradient_error(
        model, model.head, "features", Small.SIZE, tmp_path, "logit", images=images
    )
    assert error <= TOLERANCE


def slim(model: nn.Module, inputs: int) -> nn.Module:
    """VGG's and AlexNet's classifier with narrow layers: the same operators, 100 MB less."""
    model.classifier = nn.Sequential(
        nn.Dropout(), nn.Linear(inputs, 64), nn.ReLU(), nn.Dropout(), nn.Linear(64, 10)
    )
    return model


def vgg11() -> tuple[nn.Module, nn.Module, str]:
    model = slim(torchvision.models.vgg11(), 512 * 7 * 7)
    head = nn.Sequential(model.features[-1], model.avgpool, nn.Flatten(), model.classifier)
    return model, head, "features.19"


def alexnet() -> tuple[nn.Module, nn.Module, str]:
    model = slim(torchvision.models.alexnet(), 256 * 6 * 6)
    head = nn.Sequential(model.features[-1], model.avgpool, nn.Flatten(), model.classifier)
    return model, head, "features.11"


def squeezenet() -> tuple[nn.Module, nn.Module, str]:
    model = torchvision.models.squeezenet1_1()
    nn.init.normal_(model.classifier[1].weight, std=0.1)
    return model, nn.Sequential(model.classifier, nn.Flatten()), "features"


def mobilenet() -> tuple[nn.Module, nn.Module, str]:
    model = torchvision.models.mobilenet_v3_small()
    return model, nn.Sequential(model.avgpool, nn.Flatten(), model.classifier), "features"


def convnext() -> tuple[nn.Module, nn.Module, str]:
    model = torchvision.models.convnext_tiny()
    return model, nn.Sequential(model.avgpool, model.classifier), "features"


@pytest.mark.slow
@pytest.mark.parametrize("network", [vgg11, alexnet, squeezenet, mobilenet, convnext])
@pytest.mark.parametrize("score", ["logit", "prob"])
def test_gradients_through_a_torchvision_head_equal_autograd(
    network, score: str, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model, head, layer = network()
    model.eval()
    error = gradient_error(model, head.eval(), layer, (127, 127), tmp_path, score)
    assert error <= TOLERANCE


# What PyTorch's exporter writes otherwise than the model computes: a divisor of its own, and
# windows that begin in the padding, which ONNX Runtime counts otherwise.
@pytest.mark.parametrize(
    "head",
    [
        lambda: [nn.AvgPool2d(2, divisor_override=3), *flat(3, 4)],
        lambda: [nn.MaxPool2d((4, 3), (3, 2), (2, 1), ceil_mode=True), *flat(3, 5)],
    ],
    ids=["divisor", "windows"],
)
def test_pooling_that_onnx_writes_otherwise_is_refused(
    head: Callable[[], list[nn.Module]], tmp_path: Path
) -> None:
    with pytest.raises(whycam.WhyCamError, match=r"probabilities are off|cannot run"):
        to_onnx(
            Small(*head()).eval(),
            tmp_path / "model.onnx",
            overrides=Overrides(image_size=Small.SIZE, preprocess="imagenet"),
            target_layer="features",
        )
    assert list(tmp_path.iterdir()) == []
