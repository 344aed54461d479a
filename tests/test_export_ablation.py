"""Ablation-CAM's short cuts against running the head once per channel in float64."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from whycam.export import ablation
from whycam.export.ablation import logit_drops
from whycam.export.ablation_head import Head, explain_refusal, split_head
from whycam.export.from_torch import to_ir
from whycam.export.layers import Network
from whycam.export.output_meaning import interpret_outputs
from whycam.export.plain_model import to_plain
from whycam.export.recorder import Recorder
from whycam.export.subgraph import run
from whycam.export.tensors import Tensor

K, H, W = 8, 7, 9
SIZE = (15, 19)


def pooled(*after: nn.Module) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), *after]


def flat(count: int) -> list[nn.Module]:
    return [nn.Flatten(), nn.Linear(count, 6), nn.ReLU(), nn.Linear(6, 5)]


class Both(nn.Module):
    """Average and maximum side by side: channels lie twice in the pooled vector."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x.mean((2, 3)), x.amax((2, 3))], 1)


class Gate(nn.Module):
    """Every channel depends on every other."""

    def __init__(self) -> None:
        super().__init__()
        self.weigh = nn.Conv2d(K, K, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.sigmoid(self.weigh(x.mean((2, 3), keepdim=True)))


class Shuffle(nn.Module):
    """Channels change places and places become channels."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n = x.shape[0]
        return x.reshape(n, 2, K // 2, H, W).transpose(1, 2).reshape(n, K, H, W)


class Moments(nn.Module):
    """The activations are used twice."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean = x.mean((2, 3), keepdim=True)
        return torch.cat([mean.flatten(1), ((x - mean) ** 2).mean((2, 3))], 1)


class ScaledByImage(nn.Module):
    """Divided by its own largest value: ablating one channel changes them all."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x / (1e-3 + x.amax((1, 2, 3), keepdim=True))


def shifted_norm(kind: type[nn.Module]) -> nn.Module:
    """Batch-norm that makes something else than zero of a channel of zeros."""
    norm = kind(K)
    for tensor in (norm.bias, norm.running_mean, norm.weight):
        nn.init.uniform_(tensor, 0.2, 1.0)
    return norm


class Cosine(nn.Module):
    """A classifier by angles."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(5, K))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 8 * F.linear(F.normalize(x), F.normalize(self.weight))


class GeneralisedMean(nn.Module):
    """GeM pooling: a channel of zeros becomes its lower bound."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.clamp(min=0.1).pow(3.0).mean((2, 3)).pow(1 / 3)


class Transposed(nn.Module):
    """Places before channels: [N, h, w, K] in memory."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.permute(0, 2, 3, 1)


HEADS: dict[str, Callable[[], list[nn.Module]]] = {
    "pooled linear": lambda: pooled(nn.Linear(K, 5)),
    "pooled linear without bias": lambda: pooled(nn.Linear(K, 5, bias=False)),
    "linear without pooling": lambda: [nn.Flatten(), nn.Linear(K * H * W, 5)],
    "two layers": lambda: flat(K * H * W),
    "two layers, pooled": lambda: pooled(*flat(K)[1:]),
    "dropout": lambda: pooled(nn.Dropout(), nn.Linear(K, 6), nn.Dropout(), nn.Linear(6, 5)),
    "max-pool": lambda: [nn.MaxPool2d(3, 2, 1), *flat(K * 4 * 5)],
    "average-pool": lambda: [nn.AvgPool2d(3, 2, 1), *flat(K * 4 * 5)],
    "sigmoid": lambda: [nn.Sigmoid(), *pooled(nn.Linear(K, 5))],
    "sigmoid, then max-pool": lambda: [nn.Sigmoid(), nn.MaxPool2d(2), *flat(K * 3 * 4)],
    "max-pool, then uneven average": lambda: [
        nn.MaxPool2d(2),
        nn.AdaptiveAvgPool2d((2, 3)),
        *flat(K * 6),
    ],
    "generalised mean": lambda: [nn.Sigmoid(), GeneralisedMean(), nn.Linear(K, 5)],
    "batch-norm": lambda: [shifted_norm(nn.BatchNorm2d), *pooled(nn.Linear(K, 5))],
    "batch-norm after pooling": lambda: pooled(shifted_norm(nn.BatchNorm1d), nn.Linear(K, 5)),
    "hardswish after pooling": lambda: pooled(nn.Hardswish(), nn.Linear(K, 5)),
    "cosine": lambda: pooled(Cosine()),
    "weight norm": lambda: pooled(nn.utils.parametrizations.weight_norm(nn.Linear(K, 5))),
    "layer-norm": lambda: pooled(nn.LayerNorm(K), nn.Linear(K, 5)),
    "group-norm": lambda: [nn.GroupNorm(2, K), *flat(K * H * W)],
    "softmax over channels": lambda: [nn.Softmax(1), *pooled(nn.Linear(K, 5))],
    "softmax after pooling": lambda: pooled(nn.Softmax(1), nn.Linear(K, 5)),
    "gate": lambda: [Gate(), *pooled(nn.Linear(K, 5))],
    "channel shuffle": lambda: [Shuffle(), *flat(K * H * W)],
    "transposed": lambda: [Transposed(), *flat(K * H * W)],
    "average and maximum": lambda: [Both(), nn.Linear(2 * K, 5)],
    "moments": lambda: [Moments(), nn.Linear(2 * K, 5)],
    "scaled by image": lambda: [ScaledByImage(), *pooled(nn.Linear(K, 5))],
    "convolution": lambda: [nn.Conv2d(K, 6, 3), nn.ReLU(), *pooled(nn.Linear(6, 5))],
    "convolution as classifier": lambda: [nn.Conv2d(K, 5, 1), nn.ReLU(), *pooled()],
    "max-pool, then convolution": lambda: [nn.MaxPool2d(2), nn.Conv2d(K, 5, 2), *pooled()],
    "grouped convolution": lambda: [
        nn.Conv2d(K, K, 3, groups=K),
        nn.ReLU(),
        *pooled(nn.Linear(K, 5)),
    ],
}
# Channels stay apart up to a linear layer: no copies of the activations are needed.
SHORT = list(HEADS)[: list(HEADS).index("max-pool, then uneven average")]


@pytest.fixture(autouse=True)
def same_weights() -> None:
    """Of each head; PyTorch's exporter is then asked once for all tests of it."""
    torch.manual_seed(0)


class Case:
    """A network's head as PyTorch has it, and as export takes it apart."""

    def __init__(self, *layers: nn.Module) -> None:
        self.head = nn.Sequential(*layers)
        model = nn.Sequential(nn.Conv2d(3, K, 3, stride=2), nn.ReLU(), self.head).eval()
        plain = to_plain(to_ir(model, SIZE, 18))
        logits = interpret_outputs(plain.graph.outputs, plain.shapes)[0].logits
        self.network = Network(plain, logits)
        self.layer = self.network.find("1")
        self.parts: Head = split_head(self.network, self.layer)

    def record(self) -> ir.Value:
        """Record z - z_k into the graph."""
        plain = self.network.plain
        shapes = plain.shapes
        recorder = Recorder(plain.graph)

        def existing(value: ir.Value) -> Tensor:
            return Tensor(recorder, value, shapes.dims[value], shapes.dtypes[value])

        with recorder.part("ablation"):
            size = recorder.op("Shape", [existing(plain.image)], (4,), ir.DataType.INT64)
            recorder.symbols["N"] = size[0:1]
            logits = existing(self.network.logits)
            return logit_drops(self.network, self.parts, recorder, logits).value

    def run(self, drops: ir.Value, images: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Activations and what was recorded, for some images."""
        rng = np.random.default_rng(0)
        image = rng.normal(size=(images, 3, *SIZE)).astype(np.float32)
        plain = self.network.plain
        outputs = [self.layer.value, drops]
        found = run(plain.graph, {plain.image: image}, outputs, plain.shapes)
        return torch.from_numpy(found[0]), torch.from_numpy(found[1])


def drops_one_by_one(head: nn.Module, activations: torch.Tensor) -> torch.Tensor:
    """z - z_k, [N, K, C], in float64."""
    head = copy.deepcopy(head).double()
    activations = activations.double()
    drops = []
    for channel in range(activations.shape[1]):
        without = activations.clone()
        without[:, channel] = 0
        drops.append(head(activations) - head(without))
    return torch.stack(drops, 1)


@pytest.mark.parametrize("name", HEADS)
@torch.no_grad()
def test_drops_equal_those_of_running_the_head_without_each_channel(name: str) -> None:
    case = Case(*HEADS[name]())
    drops = case.record()
    for images in (1, 3):
        activations, found = case.run(drops, images)
        expected = drops_one_by_one(case.head, activations)
        assert activations.shape == (images, K, H, W)
        assert expected.abs().max() > 0
        assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("name", SHORT)
def test_head_is_not_run_on_copies_where_channels_stay_apart(name: str) -> None:
    case = Case(*HEADS[name]())
    assert case.parts.weight is not None
    case.record()
    assert not [n.name for n in case.network.plain.graph if "whycam/ablation/copies" in str(n.name)]


@pytest.mark.parametrize(
    "name", ["pooled linear", "pooled linear without bias", "linear without pooling", "sigmoid"]
)
def test_one_linear_layer_leaves_nothing_to_run_per_channel(name: str) -> None:
    case = Case(*HEADS[name]())
    case.record()
    assert not [n.name for n in case.network.plain.graph if "whycam/ablation/rest" in str(n.name)]


@pytest.mark.parametrize("name", HEADS)
def test_only_pooling_and_one_linear_layer_count_as_pooled_linear(name: str) -> None:
    is_pooled = name.startswith("pooled linear") or name == "weight norm"
    assert Case(*HEADS[name]()).parts.is_pooled_linear == is_pooled


@pytest.mark.parametrize("name", ["convolution", "gate"])
@torch.no_grad()
def test_copies_run_in_chunks_give_what_they_give_at_once(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def chunks(case: Case) -> set[str]:
        names = [str(node.name) for node in case.network.plain.graph]
        return {n.split("/")[2] for n in names if n.startswith("whycam/ablation/copies")}

    layers = HEADS[name]()
    torch.manual_seed(0)
    at_once = Case(*layers)
    _, expected = at_once.run(at_once.record(), 2)
    assert len(chunks(at_once)) == 1
    torch.manual_seed(0)
    in_chunks = Case(*layers)
    monkeypatch.setattr(ablation, "CHUNK_BYTES", 1)
    _, found = in_chunks.run(in_chunks.record(), 2)
    assert len(chunks(in_chunks)) == K
    torch.testing.assert_close(found, expected)


class ChannelsLast(nn.Module):
    """Features [N, h, w, K] to the end."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.mix = nn.Conv2d(3, K, 3, stride=2), nn.Linear(K, K)
        self.classifier = nn.Linear(K, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x).relu().permute(0, 2, 3, 1)
        return self.classifier(self.mix(x).relu().mean((1, 2)))


def test_ablation_of_channels_last_activations_is_refused_by_reason() -> None:
    plain = to_plain(to_ir(ChannelsLast().eval(), SIZE, 18))
    network = Network(plain, interpret_outputs(plain.graph.outputs, plain.shapes)[0].logits)
    layer = network.find("relu_1")
    assert layer.is_cut_point
    assert layer.arrangement.order == (0, 3, 1, 2)
    why = explain_refusal(layer)
    assert why is not None
    assert "'relu_1' are arranged otherwise" in why
    assert explain_refusal(network.find("relu")) is None
