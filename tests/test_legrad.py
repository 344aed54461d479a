"""LeGrad: the gradient of attention maps, against torch-cam, float64 autograd and by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
import torchvision
from torch import nn
from torchcam.methods import LeGrad

import whycam
from whycam.export import Overrides, to_onnx
from whycam.runtime import cam
from whycam.runtime.errors import ExportError, RequestError
from whycam.runtime.onnxfile import read_manifest
from whycam.runtime.tft import Tft
from whycam.train.objective import Objective

H, W, CLASSES, WIDTH = 24, 40, 5, 16
SIZE = Overrides(image_size=(H, W), preprocess="imagenet")


class Attention(nn.Module):
    """Attention of two heads, whose maps a hook on ``softmax`` sees.

    Args:
        stride: of the convolution that makes fewer keys; 1: every token is a key.
        joined: whether heads and images are one axis, as in older files of PyTorch.
    """

    def __init__(self, stride: int = 1, joined: bool = False) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.reduce = nn.Conv2d(WIDTH, WIDTH, stride, stride) if stride > 1 else None
        self.softmax = nn.Softmax(-1)
        self.joined = joined

    def split(self, x: torch.Tensor) -> torch.Tensor:
        x = x.reshape(x.shape[0], x.shape[1], 2, -1).transpose(1, 2)
        return x.flatten(0, 1) if self.joined else x

    def forward(self, asking: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        n, t, c = asking.shape
        if self.reduce is not None:
            image = x.transpose(1, 2).reshape(n, c, H // 4, W // 4)
            x = self.reduce(image).flatten(2).transpose(1, 2)
        q, k, v = self.split(self.query(asking)), self.split(self.key(x)), self.split(self.value(x))
        y = self.softmax(q @ k.transpose(-2, -1)) @ v
        return y.reshape(n, 2, t, -1).transpose(1, 2).reshape(n, t, c)


class Transformer(nn.Module):
    """Patches between tokens of no place, two blocks, and a head on one of four poolings."""

    def __init__(
        self, before: int, after: int, pooling: str, patch: int = 8, **attention: Any
    ) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, WIDTH, patch, patch)
        self.first = nn.Parameter(torch.randn(1, before, WIDTH))
        self.last = nn.Parameter(torch.randn(1, after, WIDTH))
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(3))
        self.blocks = nn.ModuleList(Attention(**attention) for _ in range(2))
        self.asking = nn.Parameter(torch.randn(1, 1, WIDTH))
        self.pool = Attention(**attention)
        self.head = nn.Linear(WIDTH, CLASSES)
        self.before, self.pooling = before, pooling

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        n, places = x.shape[0], x.shape[1]
        x = torch.cat([self.first.expand(n, -1, -1), x, self.last.expand(n, -1, -1)], 1)
        for norm, block in zip(self.norms, self.blocks, strict=False):
            y = norm(x)
            x = x + block(y, y)
        x = self.norms[2](x)
        if self.pooling == "class":
            return self.head(x[:, 0])
        if self.pooling == "query":
            return self.head(self.pool(self.asking.expand(n, -1, -1), x)[:, 0])
        return self.head(x[:, self.before : self.before + places].mean(1).tanh())


def seeded(*args: Any, **options: Any) -> Transformer:
    torch.manual_seed(0)
    return Transformer(*args, **options).eval()


def images(count: int) -> np.ndarray:
    return np.random.default_rng(3).standard_normal((count, 3, H, W)).astype(np.float32)


def run(path: Path, batch: np.ndarray, targets: np.ndarray, output: str) -> np.ndarray:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    feeds = {session.get_inputs()[0].name: batch, "target": targets}
    return session.run([output], feeds)[0]


def exact_maps(
    model: Transformer, attention: Attention, batch: np.ndarray, targets: np.ndarray, places: slice
) -> np.ndarray:
    """Raw maps [N, k, keys in places], by autograd in float64."""
    taken: list[torch.Tensor] = []
    handle = attention.softmax.register_forward_hook(lambda _m, _i, out: taken.append(out))
    model = model.double()
    rows = []
    for image, classes in zip(batch, targets, strict=True):
        taken.clear()
        scores = model(torch.from_numpy(image[None]).double())
        (maps,) = taken
        grads = [torch.autograd.grad(scores[0, c], maps, retain_graph=True)[0] for c in classes]
        heads = [grad.reshape(2, *grad.shape[-2:]) for grad in grads]
        rows.append([grad.relu().mean((0, 1))[places].numpy() for grad in heads])
    handle.remove()
    model.float()
    return np.array(rows)


# The network; the keys that are places, and their grid; the attention.
NETWORKS = {
    "class token": ((1, 0, "class"), {}, slice(1, 16), (3, 5), "blocks.1"),
    "registers on both sides": ((2, 3, "class"), {}, slice(2, 17), (3, 5), "blocks.1"),
    "mean of the places": ((0, 0, "mean"), {}, slice(0, 15), (3, 5), "blocks.1"),
    "a learned query": ((1, 2, "query"), {}, slice(1, 16), (3, 5), "pool"),
    "heads in the batch": ((1, 0, "class"), {"joined": True}, slice(1, 16), (3, 5), "blocks.1"),
    "fewer keys": ((0, 0, "mean"), {"patch": 4, "stride": 2}, slice(0, 15), (3, 5), "blocks.1"),
}


@pytest.mark.parametrize(
    "name",
    [
        "class token",
        "fewer keys",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in NETWORKS
            if name not in ("class token", "fewer keys")
        ),
    ],
)
def test_maps_are_those_of_autograd(tmp_path: Path, name: str) -> None:
    args, options, places, grid, layer = NETWORKS[name]
    model = seeded(*args, **options)
    attention = dict(model.named_modules())[layer]
    targets = np.array([[0, 3], [4, 1]])
    expected = exact_maps(model, attention, images(2), targets, places)
    assert min(np.ptp(row) / row.max() for row in expected.reshape(4, -1)) > 0.1

    done = to_onnx(model, tmp_path / "m.onnx", overrides=SIZE, methods=["gradcam", "legrad"])
    assert done.manifest.attention.shape == (2, *grid)
    assert done.manifest.attention.name.startswith(layer)
    assert done.verification.differences["attention"].worst < 1e-4

    found = run(tmp_path / "m.onnx", images(2), targets, "maps_legrad")
    finished = cam.finish(expected.reshape(2, 2, *grid), (H, W))
    np.testing.assert_allclose(found, finished, atol=1e-4)


def test_map_is_that_of_torch_cam(tmp_path: Path) -> None:
    torch.manual_seed(1)
    model = torchvision.models.VisionTransformer(32, 8, 2, 2, 16, 32, num_classes=CLASSES).eval()
    nn.init.normal_(model.heads.head.weight)
    image = torch.randn(1, 3, 32, 32)
    with LeGrad(
        model,
        model.encoder.layers[-1],
        score_projection=lambda tokens: model.heads(model.encoder.ln(tokens)[:, 0]),
    ) as extractor:
        scores = model(image)
        (theirs,) = extractor(3, scores, normalized=False)
    overrides = Overrides(image_size=32, preprocess="imagenet")
    to_onnx(model, tmp_path / "m.onnx", overrides=overrides, methods=["legrad"])
    ours = run(tmp_path / "m.onnx", image.numpy(), np.array([[3]]), "maps")
    expected = cam.finish(theirs.detach().numpy()[:, None], (32, 32))
    np.testing.assert_allclose(ours, expected, atol=1e-4)
    assert np.ptp(expected) > 0.9


def test_relevance_by_hand() -> None:
    # One image, one class, two keys, two heads, two queries: positive parts, averaged over four.
    gradients = np.array([[[[[1.0, -3.0], [2.0, 1.0]], [[-1.0, -1.0], [0.0, -8.0]]]]])
    np.testing.assert_array_equal(cam.attention_relevance(gradients), [[[1.0, 0.0]]])


def test_a_file_of_legrad_alone_is_checked_by_its_own_maps(tmp_path: Path) -> None:
    model = seeded(0, 0, "mean", patch=4, stride=2)  # keys are a coarser grid than activations
    done = to_onnx(
        model, tmp_path / "m.onnx", overrides=SIZE, outputs=("map",), methods=["legrad"],
        map_methods=["legrad"],
    )  # fmt: skip
    manifest = read_manifest(tmp_path / "m.onnx")
    assert manifest.activations[1:] == (6, 10)
    assert manifest.map_shape == (3, 5)
    assert {len(one.raw_map) for one in manifest.references} == {15}
    assert done.manifest.methods == ("legrad",)


@pytest.mark.slow
def test_the_graph_thresholds_a_map_of_legrad(tmp_path: Path) -> None:
    model = seeded(1, 0, "class")
    done = to_onnx(
        model, tmp_path / "m.onnx", overrides=SIZE, outputs=("tft",), map_methods=["legrad"]
    )
    assert done.verification.differences["tft"].worst < 1e-3
    pixels = np.random.default_rng(0).integers(0, 256, (H, W, 3), np.uint8)
    found = whycam.load(tmp_path / "m.onnx", threads=1).explain(pixels, tft=Tft())
    assert found.method == "legrad"


def test_legrad_is_left_out_unless_it_is_asked_for(tmp_path: Path) -> None:
    to_onnx(seeded(1, 0, "class"), tmp_path / "m.onnx", overrides=SIZE)
    manifest = read_manifest(tmp_path / "m.onnx")
    assert "legrad" not in manifest.methods
    assert manifest.attention is None
    with pytest.raises(RequestError, match="exported without it"):
        whycam.load(tmp_path / "m.onnx", threads=1).explain(
            np.zeros((H, W, 3), np.uint8), method="legrad"
        )


class InWindows(nn.Module):
    """Attention among the four tokens of each window."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.attention = nn.Conv2d(3, WIDTH, 4, 4), Attention()
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.patches(x).permute(0, 2, 3, 1))
        n, h, w, c = x.shape
        y = x.reshape(n, h // 2, 2, w // 2, 2, c).transpose(2, 3).reshape(-1, 4, c)
        y = self.attention(y, y).reshape(n, h // 2, w // 2, 2, 2, c).transpose(2, 3)
        return self.head((x + y.reshape(n, h, w, c)).mean((1, 2)))


def test_attention_in_windows_is_refused(tmp_path: Path) -> None:
    torch.manual_seed(0)
    with pytest.raises(ExportError, match="as in windows"):
        to_onnx(InWindows().eval(), tmp_path / "m.onnx", overrides=SIZE, methods=["legrad"])
    assert not list(tmp_path.iterdir())


def test_a_network_without_attention_is_refused(tmp_path: Path) -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, CLASSES)
    )
    with pytest.raises(ExportError, match="no Softmax over elements that are proved"):
        to_onnx(model.eval(), tmp_path / "m.onnx", overrides=SIZE, map_methods=["legrad"])


@pytest.mark.parametrize(
    "options",
    [
        {"outputs": ("raw",), "methods": ["legrad"]},
        {"map_methods": ["gradcam"], "methods": ["gradcam", "legrad"]},
    ],
)
def test_legrad_without_its_finished_map_is_refused(tmp_path: Path, options: Any) -> None:
    with pytest.raises(RequestError, match="no raw outputs"):
        to_onnx(seeded(1, 0, "class"), tmp_path / "m.onnx", overrides=SIZE, **options)


def test_training_for_legrad_is_refused() -> None:
    with pytest.raises(RequestError, match="cannot tune for the method 'legrad'"):
        Objective(method="legrad")
