"""Ablation-CAM's short cuts against running the head once per channel in float64."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn

from whycam.export import ablation
from whycam.export.ablation import Head, logit_drops, take_apart
from whycam.export.layer import capture, find_layer, split

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


class ScaledByPicture(nn.Module):
    """Divided by its own largest value: ablating one channel changes them all."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x / (1e-3 + x.amax((1, 2, 3), keepdim=True))


def shifted_norm(kind: type[nn.Module]) -> nn.Module:
    """Batch-norm that makes something else than zero of a channel of zeros."""
    norm = kind(K)
    for tensor in (norm.bias, norm.running_mean, norm.weight):
        nn.init.uniform_(tensor, 0.2, 1.0)
    return norm


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
    "max-pool, then average": lambda: [
        nn.MaxPool2d(2),
        nn.AdaptiveAvgPool2d((2, 3)),
        *flat(K * 6),
    ],
    "average-pool": lambda: [nn.AvgPool2d(3, 2, 1), *flat(K * 4 * 5)],
    "sigmoid": lambda: [nn.Sigmoid(), *pooled(nn.Linear(K, 5))],
    "sigmoid, then max-pool": lambda: [nn.Sigmoid(), nn.MaxPool2d(2), *flat(K * 3 * 4)],
    "batch-norm": lambda: [shifted_norm(nn.BatchNorm2d), *pooled(nn.Linear(K, 5))],
    "batch-norm after pooling": lambda: pooled(shifted_norm(nn.BatchNorm1d), nn.Linear(K, 5)),
    "hardswish after pooling": lambda: pooled(nn.Hardswish(), nn.Linear(K, 5)),
    "layer-norm": lambda: pooled(nn.LayerNorm(K), nn.Linear(K, 5)),
    "group-norm": lambda: [nn.GroupNorm(2, K), *flat(K * H * W)],
    "softmax over channels": lambda: [nn.Softmax(1), *pooled(nn.Linear(K, 5))],
    "softmax after pooling": lambda: pooled(nn.Softmax(1), nn.Linear(K, 5)),
    "gate": lambda: [Gate(), *pooled(nn.Linear(K, 5))],
    "channel shuffle": lambda: [Shuffle(), *flat(K * H * W)],
    "transposed": lambda: [Transposed(), *flat(K * H * W)],
    "average and maximum": lambda: [Both(), nn.Linear(2 * K, 5)],
    "moments": lambda: [Moments(), nn.Linear(2 * K, 5)],
    "scaled by picture": lambda: [ScaledByPicture(), *pooled(nn.Linear(K, 5))],
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
SHORT = list(HEADS)[: list(HEADS).index("batch-norm")]


def head_and_parts(*layers: nn.Module) -> tuple[nn.Module, Head]:
    """A network's head as PyTorch has it and as export takes it apart."""
    head = nn.Sequential(*layers)
    model = nn.Sequential(nn.Conv2d(3, K, 3, stride=2), nn.ReLU(), head).eval()
    captured = capture(model, SIZE)
    parts = split(captured, find_layer(captured, "1"))
    return head, take_apart(parts.head)


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
    torch.manual_seed(0)
    head, parts = head_and_parts(*HEADS[name]())
    activations = torch.randn(3, K, H, W).relu()
    found = logit_drops(parts, activations, head(activations))
    expected = drops_one_by_one(head, activations)
    assert expected.abs().max() > 0
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("name", SHORT)
def test_head_is_not_run_on_copies_where_channels_stay_apart(name: str) -> None:
    _, parts = head_and_parts(*HEADS[name]())
    assert parts.weight is not None


@pytest.mark.parametrize(
    "name", ["pooled linear", "pooled linear without bias", "linear without pooling", "sigmoid"]
)
def test_one_linear_layer_leaves_nothing_to_run_per_channel(name: str) -> None:
    _, parts = head_and_parts(*HEADS[name]())
    assert parts.rest is None


@pytest.mark.parametrize("name", HEADS)
def test_only_pooling_and_one_linear_layer_count_as_pooled_linear(name: str) -> None:
    _, parts = head_and_parts(*HEADS[name]())
    assert parts.is_pooled_linear == name.startswith("pooled linear")


@pytest.mark.parametrize("name", ["convolution", "gate"])
@torch.no_grad()
def test_copies_run_in_chunks_give_what_they_give_at_once(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    head, parts = head_and_parts(*HEADS[name]())
    activations = torch.randn(2, K, H, W).relu()
    logits = head(activations)
    batches: list[int] = []
    assert parts.rest is not None
    parts.rest.register_forward_pre_hook(lambda _, inputs: batches.append(len(inputs[0])))
    at_once = logit_drops(parts, activations, logits)
    assert batches == [2 * K]
    batches.clear()
    monkeypatch.setattr(ablation, "CHUNK_BYTES", 3 * parts.rest_bytes)
    torch.testing.assert_close(logit_drops(parts, activations, logits), at_once)
    assert batches == [2 * 3, 2 * 3, 2 * 2]
