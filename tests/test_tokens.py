"""Networks whose features are tokens: the layer is proved, its gradients are PyTorch's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
import torch.nn.functional as F
import torchvision
from onnx.reference import ReferenceEvaluator
from torch import nn

import whycam
from whycam.export import Overrides, to_onnx
from whycam.export.from_torch import to_ir
from whycam.export.layers import Network
from whycam.export.output_meaning import interpret_outputs
from whycam.export.places import decode
from whycam.export.plain_model import to_plain
from whycam.runtime.errors import ExportError, TargetLayerError

slow = pytest.mark.slow
H, W = 24, 40
CELLS = (3, 5)


class Block(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, width: int = 16, heads: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 32), nn.GELU(), nn.Linear(32, width))

    def attend(self, x: torch.Tensor) -> torch.Tensor:
        n, t, c = x.shape
        q, k, v = self.qkv(x).reshape(n, t, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        scores = (q @ k.transpose(-2, -1) / (c / self.heads) ** 0.5).softmax(-1)
        return self.proj((scores @ v).transpose(1, 2).reshape(n, t, c))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attend(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Transformer(nn.Module):
    """Patches, tokens of no place before and after them, blocks and a head.

    Args:
        before, after: how many tokens of no place there are on each side.
        pooling: ``class`` (the first token), ``both`` (the average of two heads on the first two,
            as in DeiT distilled), ``mean`` (of the places), ``attention`` (a learned query).
    """

    def __init__(self, before: int, after: int, pooling: str) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 8, 8)
        self.first = nn.Parameter(torch.randn(1, before, 16))
        self.last = nn.Parameter(torch.randn(1, after, 16))
        self.positions = nn.Parameter(torch.randn(1, 15, 16))
        self.blocks = nn.Sequential(Block(), Block())
        self.norm = nn.LayerNorm(16)
        self.query = nn.Parameter(torch.randn(1, 1, 16))
        self.pool = nn.MultiheadAttention(16, 2, batch_first=True)
        self.head, self.head2 = nn.Linear(16, 5), nn.Linear(16, 5)
        self.before, self.pooling = before, pooling

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2) + self.positions
        n = x.shape[0]
        parts = [self.first.expand(n, -1, -1), x, self.last.expand(n, -1, -1)]
        x = self.norm(self.blocks(torch.cat(parts, 1)))
        if self.pooling == "class":
            return self.head(x[:, 0])
        if self.pooling == "both":
            return (self.head(x[:, 0]) + self.head2(x[:, 1])) / 2
        if self.pooling == "mean":
            return self.head(x[:, self.before : self.before + 15].mean(1))
        pooled, _ = self.pool(self.query.expand(n, -1, -1), x, x, need_weights=False)
        return self.head(pooled[:, 0])


class Windows(nn.Module):
    """Channels last, attention in windows that are shifted cyclically, patches merged, pooled."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 4, 4)
        self.blocks = nn.ModuleList([Block(), Block(), Block(32)])
        self.merge = nn.Linear(64, 32)
        self.norm = nn.LayerNorm(32)
        self.head = nn.Linear(32, 5)

    def window(self, block: Block, x: torch.Tensor, shift: int) -> torch.Tensor:
        n, h, w, c = x.shape
        y = torch.roll(block.norm1(x), (-shift, -shift), (1, 2))
        y = y.reshape(n, h // 2, 2, w // 2, 2, c).transpose(2, 3).reshape(-1, 4, c)
        y = block.attend(y).reshape(n, h // 2, w // 2, 2, 2, c).transpose(2, 3)
        y = torch.roll(y.reshape(n, h, w, c), (shift, shift), (1, 2))
        x = x + y
        return x + block.mlp(block.norm2(x))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patches(x).permute(0, 2, 3, 1)
        x = self.window(self.blocks[1], self.window(self.blocks[0], x, 0), 1)
        corners = [x[:, i::2, j::2] for j in (0, 1) for i in (0, 1)]
        x = self.merge(torch.cat(corners, -1))
        x = x + self.blocks[2].mlp(self.blocks[2].norm2(x))
        return self.head(self.norm(x).mean((1, 2)))


class Coarser(nn.Module):
    """A grid that attention makes coarser, for its queries are fewer.

    Args:
        way: ``sampled`` (every second token of every second row asks) or ``convolved`` (the
            queries of each head are convolved with a stride, heads lying in the batch axis).
    """

    def __init__(self, way: str) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 4, 4)
        self.q, self.kv = nn.Linear(16, 16), nn.Linear(16, 32)
        self.pool = nn.Conv2d(8, 8, 3, 2, 1)
        self.block, self.norm = Block(), nn.LayerNorm(16)
        self.head = nn.Linear(16, 5)
        self.way = way

    def queries(self, x: torch.Tensor) -> torch.Tensor:
        n = x.shape[0]
        if self.way == "sampled":
            x = x.reshape(n, 6, 10, 16)[:, ::2, ::2].reshape(n, 15, 16)
            return self.q(x).reshape(n, 15, 2, 8).transpose(1, 2)
        q = self.q(x).reshape(n, 60, 2, 8).permute(0, 2, 3, 1).reshape(n * 2, 8, 6, 10)
        return self.pool(q).reshape(n, 2, 8, 15).transpose(2, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        n = x.shape[0]
        q, (k, v) = self.queries(x), self.kv(x).reshape(n, 60, 2, 2, 8).permute(2, 0, 3, 1, 4)
        x = (q @ k.transpose(-2, -1)).softmax(-1) @ v + q
        x = self.block(x.transpose(1, 2).reshape(n, 15, 16))
        return self.head(self.norm(x).mean(1))


class FoldedWindows(nn.Module):
    """Windows lie along the batch until the last normalisation, and are pooled there."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 4, 4)
        self.block, self.norm = Block(), nn.LayerNorm(16)
        self.head = nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patches(x).permute(0, 2, 3, 1)
        n, h, w, c = x.shape
        x = x.reshape(n, h // 2, 2, w // 2, 2, c).transpose(2, 3).reshape(-1, 4, c)
        x = self.norm(self.block(x))
        return self.head(x.reshape(n, h * w, c).mean(1))


class Mixer(nn.Module):
    """Linear layers over places and over channels in turn."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 8, 8)
        self.norms = nn.ModuleList(nn.LayerNorm(16) for _ in range(4))
        self.places = nn.ModuleList(nn.Linear(15, 15) for _ in range(2))
        self.channels = nn.ModuleList(nn.Linear(16, 16) for _ in range(2))
        self.norm = nn.LayerNorm(16)
        self.head = nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        for i in range(2):
            y = self.norms[2 * i](x).transpose(1, 2)
            x = x + self.places[i](y).relu().transpose(1, 2)
            x = x + self.channels[i](self.norms[2 * i + 1](x)).relu()
        return self.head(self.norm(x).mean(1))


def seeded(create: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return create().eval()


# The network; the layer that is chosen; how many tokens precede the places there.
NETWORKS: dict[str, tuple[Callable[[], nn.Module], str, int]] = {
    "class token": (lambda: Transformer(1, 0, "class"), "blocks.1.norm1", 1),
    "distilled": (lambda: Transformer(2, 0, "both"), "blocks.1.norm1", 2),
    "registers": (lambda: Transformer(5, 0, "class"), "blocks.1.norm1", 5),
    "registers behind": (lambda: Transformer(1, 3, "class"), "blocks.1.norm1", 1),
    "averaged": (lambda: Transformer(0, 0, "mean"), "norm", 0),
    "averaged beside a class token": (lambda: Transformer(1, 0, "mean"), "norm", 1),
    "attention pooling": (lambda: Transformer(0, 0, "attention"), "norm", 0),
    "windows": (Windows, "norm", 0),
    "mixer": (Mixer, "norm", 0),
    "sampled queries": (lambda: Coarser("sampled"), "norm", 0),
    "queries convolved head by head": (lambda: Coarser("convolved"), "norm", 0),
}


def network_of(model: nn.Module, size: tuple[int, int] = (H, W)) -> Network:
    plain = to_plain(to_ir(model, size, 18))
    return Network(plain, interpret_outputs(plain.graph.outputs, plain.shapes)[0].logits)


def arrange(tokens: torch.Tensor, before: int) -> torch.Tensor:
    """[N, T, K] or [N, h, w, K] to [N, K, h, w], as pytorch-grad-cam's reshape_transform."""
    if tokens.ndim == 4:
        return tokens.permute(0, 3, 1, 2)
    cells = tokens[:, before : before + CELLS[0] * CELLS[1]]
    return cells.reshape(len(tokens), *CELLS, -1).permute(0, 3, 1, 2)


def differentiate(
    model: nn.Module, path: str, image: torch.Tensor, classes: list[int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Float64 autograd at a module's output: activations and gradients as the module has them."""
    model = model.double()
    caught: list[torch.Tensor] = []
    handle = model.get_submodule(path).register_forward_hook(
        lambda _module, _inputs, output: caught.append(output)
    )
    scores = model(image.double())
    handle.remove()
    score = scores[range(len(image)), classes].sum()
    (gradient,) = torch.autograd.grad(score, caught[0])
    model.float()
    return caught[0].detach(), gradient


@slow
@pytest.mark.parametrize("name", NETWORKS)
def test_layer_gradients_and_maps_are_those_of_pytorch(name: str, tmp_path: Path) -> None:
    create, layer, before = NETWORKS[name]
    model = seeded(create)
    file = tmp_path / "model.onnx"
    result = to_onnx(model, file, overrides=Overrides(image_size=(H, W), preprocess="imagenet"))
    assert result.manifest.target_layer == layer
    assert result.manifest.activations[1:] == CELLS
    image = np.random.default_rng(1).standard_normal((2, 3, H, W)).astype(np.float32)
    engine = whycam.load(file, threads=1).engine
    names = ["activations", "gradients", "maps", "maps_hirescam"]
    found = engine.run({"image": image, "target": np.array([[2], [4]])}, names)
    a, g = differentiate(model, layer, torch.from_numpy(image), [2, 4])
    for key, expected in (("activations", a), ("gradients", g)):
        expected = arrange(expected, before).numpy()
        actual = found[key].reshape(expected.shape)
        assert np.abs(actual - expected).max() <= 1e-4 * np.abs(expected).max()
    # Each alone is the same as both together.
    for i, target in enumerate((2, 4)):
        feeds = {"image": image[i : i + 1], "target": np.array([[target]])}
        alone = engine.run(feeds, ["gradients", "maps"])
        np.testing.assert_allclose(alone["maps"][0], found["maps"][i], atol=1e-4)
    check_maps(model, layer, before, image, found["maps"])


@slow
def test_windows_that_lie_along_the_batch_are_put_back(tmp_path: Path) -> None:
    model = seeded(FoldedWindows)
    file = tmp_path / "model.onnx"
    result = to_onnx(model, file, overrides=Overrides(image_size=(H, W), preprocess="imagenet"))
    assert (result.manifest.target_layer, result.manifest.activations) == ("norm", (16, 6, 10))
    image = np.random.default_rng(1).standard_normal((2, 3, H, W)).astype(np.float32)
    feeds = {"image": image, "target": np.array([[2], [4]])}
    found = whycam.load(file, threads=1).engine.run(feeds, ["activations", "gradients"])
    both = differentiate(model, "norm", torch.from_numpy(image), [2, 4])
    for key, tensor in zip(("activations", "gradients"), both, strict=True):
        windows = tensor.reshape(2, 3, 5, 2, 2, 16)
        expected = windows.permute(0, 5, 1, 3, 2, 4).reshape(2, 16, 6, 10).numpy()
        actual = found[key].reshape(expected.shape)
        assert np.abs(actual - expected).max() <= 1e-4 * np.abs(expected).max()


def check_maps(
    model: nn.Module, layer: str, before: int, image: np.ndarray, maps: np.ndarray
) -> None:
    """Compare with pytorch-grad-cam, which resizes after it scaled to [0, 1] in float32."""
    grad_cam = pytest.importorskip("pytorch_grad_cam")
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    model = model.double()
    targets = [ClassifierOutputTarget(target) for target in (2, 4)]
    with grad_cam.GradCAM(
        model, [model.get_submodule(layer)], lambda tokens: arrange(tokens, before)
    ) as cam:
        expected = cam(torch.from_numpy(image).double(), targets)
    model.float()
    for ours, theirs in zip(maps[:, 0], expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-4)


@pytest.fixture(scope="module")
def class_token() -> Network:
    return network_of(seeded(lambda: Transformer(1, 0, "class")))


def test_places_without_a_gradient_are_refused_by_reason(class_token: Network) -> None:
    for path in ("blocks.1", "norm", "blocks.1.norm2"):
        with pytest.raises(TargetLayerError, match="no gradient with respect to its places"):
            class_token.find(path)


def test_reason_says_why_the_layer_is_the_last(class_token: Network) -> None:
    layer = class_token.find()
    assert "read no place" in layer.reason
    assert not layer.determines_scores
    assert layer in class_token.layers


@pytest.mark.parametrize("way", ["sampled", "convolved"])
def test_a_grid_that_attention_makes_coarser_is_followed(way: str) -> None:
    layer = network_of(seeded(lambda: Coarser(way))).find()
    assert (layer.name, layer.shape, layer.is_cut_point) == ("norm", (16, *CELLS), True)
    assert layer.arrangement.tokens == tuple(range(15))


class ConvolutionThenAttention(nn.Module):
    """A hybrid: its last convolution is followed by attention over the same places, and a norm.

    Args:
        channels_last: whether the last normalisation ends with a Transpose.
    """

    def __init__(self, channels_last: bool) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1))
        self.block, self.norm = Block(), Norm2d(16) if channels_last else nn.LayerNorm(16)
        self.head = nn.Linear(16, 5)
        self.channels_last = channels_last

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.block(self.stem(x).relu().flatten(2).transpose(1, 2))
        if self.channels_last:
            x = self.norm(x.transpose(1, 2).unflatten(2, CELLS))
            return self.head(x.mean((2, 3)))
        return self.head(self.norm(x).mean(1))


class Norm2d(nn.LayerNorm):
    """Normalisation over the channels of [N, C, H, W]."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


@pytest.mark.parametrize("channels_last", [False, True])
def test_attention_after_the_last_convolution_belongs_to_the_backbone(channels_last: bool) -> None:
    network = network_of(seeded(lambda: ConvolutionThenAttention(channels_last)))
    layer = network.find()
    assert (layer.name, layer.shape) == ("norm", (16, *CELLS))
    assert "all of the network reads it" in layer.reason
    names = [other.name for other in network.layers]
    assert len(names) == len(set(names))


def test_attention_belongs_to_its_queries_where_places_of_keys_are_not_known() -> None:
    class FewerKeys(nn.Module):
        """Keys and values are averages of four tokens in reading order, which are no grid."""

        def __init__(self) -> None:
            super().__init__()
            self.patches, self.norm = nn.Conv2d(3, 16, 8, 8), nn.LayerNorm(16)
            self.q, self.kv, self.head = nn.Linear(16, 16), nn.Linear(16, 32), nn.Linear(16, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.patches(x).flatten(2).transpose(1, 2)
            fewer = F.avg_pool1d(x.transpose(1, 2), 4).transpose(1, 2)
            k, v = self.kv(fewer).chunk(2, -1)
            x = x + (self.q(x) @ k.transpose(1, 2)).softmax(-1) @ v
            return self.head(self.norm(x).mean(1))

    layer = network_of(seeded(FewerKeys)).find()
    assert (layer.name, layer.shape) == ("norm", (16, *CELLS))


def test_pooling_by_attention_belongs_to_the_head() -> None:
    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.features = nn.Sequential(
                nn.Conv2d(3, 16, 8, 8), nn.ReLU(), nn.Conv2d(16, 16, 3, 1, 1)
            )
            self.query = nn.Parameter(torch.randn(1, 1, 16))
            self.pool, self.head = nn.MultiheadAttention(16, 2, batch_first=True), nn.Linear(16, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.features(x).relu().flatten(2).transpose(1, 2)
            pooled, _ = self.pool(self.query.expand(x.shape[0], -1, -1), x, x, need_weights=False)
            return self.head(pooled[:, 0])

    layer = network_of(seeded(Pooled)).find()
    assert layer.shape == (16, *CELLS)
    assert "last convolution" in layer.reason


class Recurrent(nn.Module):
    """A recurrent layer in both directions over rows and columns each, as in Sequencer.

    Args:
        reads: ``all`` (the mean of the places) or ``last`` (the last step of the rows' sequence).
    """

    def __init__(self, reads: str) -> None:
        super().__init__()
        self.patches, self.norm = nn.Conv2d(3, 16, 8, 8), nn.LayerNorm(16)
        self.rows, self.columns = (
            nn.LSTM(16, 8, batch_first=True, bidirectional=True) for _ in range(2)
        )
        self.join, self.head = nn.Linear(32, 16), nn.Linear(16, 5)
        self.reads = reads

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patches(x).permute(0, 2, 3, 1)
        n, h, w, c = x.shape
        along, _ = self.rows(x.reshape(n * h, w, c))
        down, _ = self.columns(x.transpose(1, 2).reshape(n * w, h, c))
        both = [along.reshape(n, h, w, c), down.reshape(n, w, h, c).transpose(1, 2)]
        x = self.norm(x + self.join(torch.cat(both, -1)))
        return self.head(x.mean((1, 2)) if self.reads == "all" else x[:, -1, -1])


def test_places_are_followed_through_recurrent_layers() -> None:
    layer = network_of(seeded(lambda: Recurrent("all"))).find()
    assert (layer.name, layer.shape) == ("norm", (16, *CELLS))
    assert layer.arrangement.order == (0, 3, 1, 2)


def test_a_layer_of_which_one_place_is_read_is_not_the_default() -> None:
    network = network_of(seeded(lambda: Recurrent("last")))
    with pytest.raises(TargetLayerError, match="comes early"):
        network.find()


class PixelBlocks(nn.Module):
    """Blocks of the image in the batch axis, convolved each, whose pixels make one token."""

    def __init__(self) -> None:
        super().__init__()
        self.pixels, self.join = nn.Conv2d(3, 4, 3, 2, 1), nn.Linear(64, 16)
        self.block, self.norm = Block(), nn.LayerNorm(16)
        self.head = nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n = x.shape[0]
        x = x.reshape(n, 3, 3, 8, 5, 8).permute(0, 2, 4, 1, 3, 5).reshape(n * 15, 3, 8, 8)
        x = self.join(self.pixels(x).reshape(n, 15, 64))
        return self.head(self.norm(self.block(x)).mean(1))


def test_blocks_of_the_image_in_the_batch_axis_are_followed() -> None:
    network = network_of(seeded(PixelBlocks))
    layer = network.find()
    assert (layer.name, layer.shape) == ("norm", (16, *CELLS))
    assert layer.arrangement.tokens == tuple(range(15))
    pixels = next(node for node in network.path if node.op_type == "Conv").outputs[0]
    height, width, image, y, x = decode(network.places[pixels][0])
    assert (height.max(), width.max()) == (12, 20)
    # The seventh block is the second row's second.
    assert (image[6, 0, 0, 0], y[6, 0, 1, 0], x[6, 0, 0, 2]) == (0, 5, 6)


class BlockedAttention(nn.Module):
    """Attention within blocks, over five axes, then over all tokens with a bias of positions."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 8, 8)
        self.bias = nn.Parameter(torch.randn(1, 2, 15, 15))
        self.head = nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n = x.shape[0]
        x = self.patches(x).flatten(2).reshape(n, 2, 8, 3, 5).permute(0, 3, 1, 4, 2)
        x = F.scaled_dot_product_attention(x, x, x, scale=0.5).transpose(2, 3)
        x = x.reshape(n, 15, 2, 8).transpose(1, 2)
        x = F.scaled_dot_product_attention(x, x, x, attn_mask=self.bias)
        return self.head(x.transpose(1, 2).reshape(n, 15, 16).mean(1))


def test_attention_in_blocks_and_with_a_bias_is_translated() -> None:
    model = seeded(BlockedAttention)
    proto = ir.to_proto(to_ir(model, (H, W), 18))
    image = torch.randn(3, 3, H, W)
    (found,) = ReferenceEvaluator(proto).run(None, {"image": image.numpy()})
    np.testing.assert_allclose(found, model(image).detach().numpy(), atol=1e-5)


class LastStage(nn.Module):
    """Convolutions, then one block of attention: the last stage of PVT or SegFormer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 16, 4, 4))
        self.block, self.norm = Block(), nn.LayerNorm(16)
        self.head = nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x).flatten(2).transpose(1, 2)
        return self.head(self.norm(self.block(x)).mean(1))


class Ends(nn.Module):
    """The first and the last token are averaged, as Vision-LSTM does."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 8, 8)
        self.blocks, self.norm = nn.Sequential(Block(), Block()), nn.LayerNorm(16)
        self.head = nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.blocks(self.patches(x).flatten(2).transpose(1, 2)))
        return self.head(x[:, [0, -1]].mean(1))


class PooledKeys(nn.Module):
    """Keys of a grid that does not divide the queries' one: windows of several sizes are summed."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 4, 4)
        self.q, self.kv = nn.Linear(16, 16), nn.Linear(16, 32)
        self.block, self.norm = Block(), nn.LayerNorm(16)
        self.head = nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patches(x)
        pooled = F.adaptive_avg_pool2d(x, (4, 4)).flatten(2).transpose(1, 2)
        x = x.flatten(2).transpose(1, 2)
        k, v = self.kv(pooled).chunk(2, -1)
        x = x + (self.q(x) @ k.transpose(-2, -1)).softmax(-1) @ v
        return self.head(self.norm(self.block(x)).mean(1))


@pytest.mark.parametrize(
    ("create", "name", "cells"),
    [
        (LastStage, "norm", CELLS),
        (Ends, "blocks.1.norm1", CELLS),
        (PooledKeys, "norm", (6, 10)),
    ],
)
def test_layer_is_the_last_one_with_a_gradient_at_most_places(
    create: Callable[[], nn.Module], name: str, cells: tuple[int, int]
) -> None:
    network = network_of(seeded(create))
    layer = network.find()
    assert (layer.name, layer.shape) == (name, (16, *cells))
    assert network.gradient_share(layer) == 1
    assert network.gradient_share(network.find("norm")) in (1, 2 / 15)


class Frequencies(nn.Module):
    """Tokens are mixed by a Fourier transform over places and channels, as in FNet."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 8, 8)
        self.norms = nn.ModuleList(nn.LayerNorm(16) for _ in range(3))
        self.mlps = nn.ModuleList(nn.Sequential(nn.Linear(16, 128), nn.GELU(), nn.Linear(128, 16))
                                  for _ in range(3))  # fmt: skip
        self.head = nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        for norm, mlp in zip(self.norms, self.mlps, strict=True):
            x = norm(x)
            x = mlp(x + torch.fft.fft2(x).real)
        return self.head(x.mean(1))


def test_first_block_is_not_explained_where_later_ones_lose_their_places() -> None:
    network = network_of(seeded(Frequencies))
    assert network.find("norms.0").shape == (16, *CELLS)
    with pytest.raises(TargetLayerError, match="no target layer found"):
        network.find()


class Twins(nn.Module):
    """Two images, or an image and its mirror image, through the same convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1),
            nn.BatchNorm2d(16), nn.ReLU(),
        )  # fmt: skip
        self.head = nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        both = [self.features(image).mean((2, 3)) for image in (x, x.flip(-1))]
        return self.head(both[0] + both[1])


def test_half_of_a_network_is_not_explained_for_the_whole() -> None:
    network = network_of(seeded(Twins))
    with pytest.raises(TargetLayerError, match="no target layer found"):
        network.find()


def test_attention_scores_are_no_layer(class_token: Network) -> None:
    softmax = next(node for node in class_token.path if node.op_type == "Softmax")
    assert class_token.layer_at(softmax) is None


def test_ablation_is_refused_before_any_work_where_a_residual_goes_around(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"goes around the layer 'blocks.1.norm1'"):
        to_onnx(
            seeded(lambda: Transformer(1, 0, "class")),
            tmp_path / "model.onnx",
            methods=["ablation"],
            overrides=Overrides(image_size=(H, W), preprocess="imagenet"),
        )


@slow
@pytest.mark.parametrize(
    ("name", "layer", "shape"),
    [
        ("vit_b_16", "encoder.layers.encoder_layer_11.ln_1", (768, 14, 14)),
        ("swin_t", "norm", (768, 7, 7)),
        ("swin_v2_t", "norm", (768, 8, 8)),
        ("maxvit_t", "blocks.3", (512, 7, 7)),
    ],
)
def test_torchvisions_transformers_are_explained_at_their_last_block(
    name: str, layer: str, shape: tuple[int, int, int]
) -> None:
    model = seeded(lambda: torchvision.models.get_model(name, weights=None))
    size = 256 if name == "swin_v2_t" else 224
    found = network_of(model, (size, size)).find()
    assert found.shape == shape
    assert found.name.startswith(layer)
