"""Heads of many kinds: the right layer, its activations, and gradients as autograd has them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import whycam
from whycam.export import ExportResult, Overrides, list_layers, to_onnx

SIDE, CHANNELS, CLASSES = 24, 8, 5
SMALL = Overrides(image_size=SIDE, preprocess="zero-one")


class Network(nn.Module):
    """Two convolutions and a head; the activations are what ``last`` returns, [N, 8, 9, 9]."""

    def __init__(self, last: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 5, 2), nn.BatchNorm2d(6), nn.ReLU())
        self.conv = nn.Conv2d(6, CHANNELS, 2)
        self.last, self.head = last, head

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.last(self.conv(self.stem(x))))


class Flat(nn.Module):
    """A pooling layer whose result is [N, K]."""

    def __init__(self, pool: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.pool = pool

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.pool(x).flatten(1)


class GeneralisedMean(nn.Module):
    """GeM pooling (Radenovic et al. 2018)."""

    def __init__(self) -> None:
        super().__init__()
        self.power = nn.Parameter(torch.tensor([3.0]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.clamp(min=1e-6).pow(self.power).mean((2, 3)).pow(1 / self.power)


class BestPlaces(nn.Module):
    """The mean of each class's four highest scores of a place (Durand et al. 2017)."""

    def __init__(self) -> None:
        super().__init__()
        self.classify = nn.Conv2d(CHANNELS, CLASSES, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classify(x).flatten(2).topk(4, -1)[0].mean(-1)


class Experts(nn.Module):
    """Two of four linear classifiers, which the network chooses for each image."""

    def __init__(self) -> None:
        super().__init__()
        self.experts, self.gate = nn.Linear(CHANNELS, 4 * CLASSES), nn.Linear(CHANNELS, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.mean((2, 3))
        best, chosen = self.gate(x).topk(2, -1)
        gate = torch.full((x.shape[0], 4), -torch.inf, dtype=x.dtype).scatter(-1, chosen, best)
        return (self.experts(x).reshape(-1, 4, CLASSES) * gate.softmax(-1)[..., None]).sum(1)


class SecondOrder(nn.Module):
    """Bilinear pooling with a signed root (Lin et al. 2015)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.flatten(2)
        x = (x @ x.transpose(1, 2) / x.shape[2]).flatten(1)
        return F.normalize(x.sign() * (x.abs() + 1e-10).sqrt())


class Cosine(nn.Module):
    """A classifier by angles, as ArcFace has it, times 64."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(CLASSES, CHANNELS))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 64 * F.linear(F.normalize(x), F.normalize(self.weight))


class MemoryEfficientSwish(torch.autograd.Function):
    """x * sigmoid(x) with a derivative written by hand, as older EfficientNets have it."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x.sigmoid()

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        s = x.sigmoid()
        return gradient * (s * (1 + x * (1 - s)))


class Swish(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return MemoryEfficientSwish.apply(x)


class Unfold(nn.Module):
    """Patches of 3 x 3 as vectors, weighed by a linear layer, then averaged."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(9 * CHANNELS, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.mix(F.unfold(x, 3, stride=3).transpose(1, 2)).relu().mean(1)


class ChannelAttention(nn.Module):
    """ECA: a convolution along the channels' averages weighs the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(1, 1, 3, padding=1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(x.mean((2, 3)).unsqueeze(1)).squeeze(1)
        return x * y.sigmoid()[:, :, None, None]


class Upsampled(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)


class Squeezed(nn.Module):
    """The end of a head for ``Upsampled``, with a curve, so that the resizing plays a part."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.linear = nn.Conv2d(CHANNELS, 6, 3), nn.Linear(6, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(F.silu(self.conv(x)).mean((2, 3)))


def average(x: torch.Tensor) -> torch.Tensor:
    return F.adaptive_avg_pool2d(x, 1)


def average_and_maximum(x: torch.Tensor) -> torch.Tensor:
    """fastai's AdaptiveConcatPool2d."""
    return torch.cat([F.adaptive_max_pool2d(x, 1), F.adaptive_avg_pool2d(x, 1)], 1)


def select(kind: str) -> nn.Module:
    timm = pytest.importorskip("timm.layers")
    return timm.SelectAdaptivePool2d(pool_type=kind, flatten=True)


def linear(width: int = CHANNELS) -> nn.Module:
    return nn.Linear(width, CLASSES)


weight_norm = nn.utils.parametrizations.weight_norm
# The module whose output is to be explained, and what comes after it.
HEADS: dict[str, Callable[[], tuple[nn.Module, list[nn.Module]]]] = {
    "average and maximum": lambda: (nn.ReLU(), [Flat(average_and_maximum), linear(16)]),
    "catavgmax of timm": lambda: (nn.ReLU(), [select("catavgmax"), linear(16)]),
    "avgmax of timm": lambda: (nn.ReLU(), [select("avgmax"), linear()]),
    "max of timm": lambda: (nn.ReLU(), [select("max"), linear()]),
    "generalised mean": lambda: (nn.SiLU(), [GeneralisedMean(), linear()]),
    "best places": lambda: (nn.ReLU(), [BestPlaces()]),
    "experts": lambda: (nn.ReLU(), [Experts()]),
    "second order": lambda: (nn.SiLU(), [SecondOrder(), linear(CHANNELS**2)]),
    "cosine": lambda: (nn.ReLU(), [Flat(average), Cosine()]),
    "weight norm": lambda: (nn.ReLU(), [Flat(average), weight_norm(linear())]),
    "batch norm after pooling": lambda: (
        nn.ReLU(),
        [Flat(average), nn.BatchNorm1d(CHANNELS), linear()],
    ),
    "swish with its own derivative": lambda: (
        Swish(),
        [nn.Flatten(), nn.Linear(CHANNELS * 81, 6), Swish(), linear(6)],
    ),
    "channel attention": lambda: (nn.ReLU(), [ChannelAttention(), Flat(average), linear()]),
    "bilinear upsampling": lambda: (
        nn.ReLU(),
        [Upsampled(), Flat(average_and_maximum), linear(16)],
    ),
    "two linear layers": lambda: (
        nn.ReLU(),
        [Flat(average), nn.Linear(CHANNELS, 6), nn.ReLU(), nn.Dropout(), linear(6)],
    ),
}


def network(last: nn.Module, *head: nn.Module) -> Network:
    """With statistics of its own, and classes that differ."""
    model = Network(last, nn.Sequential(*head))
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.running_mean.uniform_(-0.3, 0.3, generator=generator)
            module.running_var.uniform_(0.2, 2.0, generator=generator)
    return model.eval()


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def explain(model: nn.Module, folder: Path, **options: object) -> ExportResult:
    options.setdefault("outputs", ["raw"])
    return to_onnx(model, folder / "model.onnx", overrides=SMALL, **options)


def autograd(
    model: nn.Module, layer: nn.Module, image: torch.Tensor, scores: Callable, targets: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """A layer's activations and the gradients of the targets' scores there, in float64."""
    double = copy.deepcopy(model).double()
    places = {id(a): b for a, b in zip(model.modules(), double.modules(), strict=True)}
    kept: list[torch.Tensor] = []
    places[id(layer)].register_forward_hook(lambda _m, _i, output: kept.append(output))
    z = scores(double(image.double().requires_grad_()))
    chosen = torch.from_numpy(targets)[:, :1]
    (gradient,) = torch.autograd.grad(z.gather(1, chosen).sum(), kept[-1])
    return kept[-1].detach().numpy(), gradient.numpy()


def check(
    model: nn.Module,
    layer: nn.Module,
    made: ExportResult,
    scores: Callable = lambda logits: logits,
    tolerance: float = 1e-5,
) -> None:
    image = torch.rand(2, 3, SIDE, SIDE)
    engine = whycam.load(made.path, threads=1).engine
    names = ["activations", "gradients", "targets"]
    target = np.array([[-1], [2]])
    found = engine.run({"image": image.numpy(), "target": target}, names)
    activations, gradient = autograd(model, layer, image, scores, found["targets"])
    assert found["activations"].shape == activations.shape
    largest = np.abs(activations).max()
    np.testing.assert_allclose(found["activations"], activations, atol=1e-5 * largest)
    difference = np.linalg.norm(found["gradients"][:, 0] - gradient)
    assert difference <= tolerance * np.linalg.norm(gradient)
    assert np.linalg.norm(gradient) > 0


@pytest.mark.parametrize("name", HEADS)
def test_layer_before_the_head_and_its_gradient_are_autograds(name: str, tmp_path: Path) -> None:
    last, head = HEADS[name]()
    model = network(last, *head)
    made = explain(model, tmp_path)
    assert made.manifest.activations == (CHANNELS, 9, 9)
    check(model, last, made)


class BoundedMean(nn.Module):
    """GeM pooling as it is written in image retrieval, with a window of the whole map."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.avg_pool2d(x.clamp(min=1e-6).pow(3.0), x.shape[2:]).pow(1 / 3).flatten(1)


class DeadProducts(nn.Module):
    """Second-order pooling of which PyTorch's exporter drops the 1e-10, with roots of zero."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return SecondOrder()(x.mean((2, 3), keepdim=True))


@pytest.mark.parametrize("head", [BoundedMean, DeadProducts])
def test_channel_that_is_zero_everywhere_disturbs_no_gradient(
    head: Callable[[], nn.Module], tmp_path: Path
) -> None:
    last = nn.ReLU()
    model = network(last, head(), linear(CHANNELS if head is BoundedMean else CHANNELS**2))
    with torch.no_grad():
        model.conv.bias[2] = -100.0
    made = explain(model, tmp_path)
    image = torch.rand(2, 3, SIDE, SIDE)
    engine = whycam.load(made.path, threads=1).engine
    feeds = {"image": image.numpy(), "target": np.array([[1], [2]])}
    found = engine.run(feeds, ["gradients"])["gradients"][:, 0]
    activations, expected = autograd(model, last, image, lambda z: z, feeds["target"])
    alive = activations.max((2, 3)) > 0
    assert not alive[:, 2].any()
    np.testing.assert_allclose(found[alive], expected[alive], atol=1e-5, rtol=1e-3)
    assert np.isfinite(found).all()


def test_gradient_through_channel_attention_and_upsampling(tmp_path: Path) -> None:
    """An earlier layer is named, behind which there is another convolution."""
    last = nn.ReLU()
    model = network(last, ChannelAttention(), Upsampled(), Squeezed())
    check(model, last, explain(model, tmp_path, target_layer="last"))


def test_patches_as_vectors_are_a_convolution(tmp_path: Path) -> None:
    """The linear layer that weighs them is the last one at places; an earlier one is named."""
    last = nn.ReLU()
    model = network(last, Unfold(), linear(6))
    check(model, last, explain(model, tmp_path, target_layer="last"))
    layers, (chosen,) = list_layers(model, overrides=SMALL)
    assert chosen in layers
    assert chosen.shape == (6, 3, 3)


@pytest.mark.parametrize("kind", ["softmax", "log-softmax", "sigmoid", "one sigmoid"])
def test_activation_inside_the_model_is_no_part_of_the_score(kind: str, tmp_path: Path) -> None:
    classes = 1 if kind == "one sigmoid" else CLASSES
    end = {"softmax": nn.Softmax(1), "log-softmax": nn.LogSoftmax(1)}.get(kind, nn.Sigmoid())
    last = nn.ReLU()
    model = network(last, Flat(average), nn.Linear(CHANNELS, classes), end)
    made = explain(model, tmp_path)
    tasks = {"softmax": "softmax", "log-softmax": "softmax", "sigmoid": "sigmoid"}
    assert made.manifest.task == tasks.get(kind, "binary")
    image = torch.rand(2, 3, SIDE, SIDE)
    engine = whycam.load(made.path, threads=1).engine
    found = engine.run(
        {"image": image.numpy(), "target": np.array([[-1], [-1]])}, ["probabilities"]
    )
    with torch.no_grad():
        said = model(image)
    if kind == "log-softmax":
        said = said.exp()
    elif kind == "one sigmoid":
        said = torch.cat([1 - said, said], 1)
    np.testing.assert_allclose(found["probabilities"], said.numpy(), atol=1e-6)
    bare = copy.deepcopy(model)
    bare.head[-1] = nn.Identity()
    if kind == "one sigmoid":
        target = np.array([[1], [0]])
        names = ["gradients"]
        (gradients,) = engine.run({"image": image.numpy(), "target": target}, names).values()
        weight = bare.head[1].weight.detach().numpy()[0][:, None, None] / 2 / 81
        expected = np.stack([np.broadcast_to(sign * weight, (8, 9, 9)) for sign in (1, -1)])
        np.testing.assert_allclose(gradients[:, 0], expected, rtol=1e-5)
    else:
        check(bare, bare.last, made)


class FunctionalSoftmax(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.softmax(x, 1)


def test_softmax_that_is_no_module_is_no_part_of_the_score(tmp_path: Path) -> None:
    last = nn.ReLU()
    model = network(last, Flat(average), linear(), FunctionalSoftmax())
    made = explain(model, tmp_path)
    assert made.manifest.task == "softmax"
    bare = copy.deepcopy(model)
    bare.head[-1] = nn.Identity()
    check(bare, bare.last, made)
