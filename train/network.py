"""Split a classifier for tuning: frozen layers, and those that are tuned."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import fx

from ..runtime.cam import (
    Method,
    Score,
    ablation_weights,
    finest,
    finish,
    fuse,
    raw_map,
    resize,
    signed_map,
)
from ..runtime.errors import ExportError
from ..runtime.manifest_parts import Task
from .ablation import compute_logit_drops, split_head
from .graph import (
    LAYERS,
    capture,
    extract_subgraph,
    find_cut_points,
    find_target_node,
    find_tensor_path,
    insert_activations,
    recorded_shape,
)
from .logits import find_logits
from .target import Target, find_target
from .task_losses import probabilities_of

_SHARPNESS = 8.0


class TunableNetwork(torch.nn.Module):
    """A network in two parts, with the weights w = (w0, w1, w2) of the paper (section 4.2.2).

    ``below`` (w0) is frozen; ``above`` (w1, w2) returns the layers' activations and the logits.
    Batch-norm statistics stay as they are everywhere. ``above`` begins at the last cut point before
    the last ``tuned_layers`` layers with weights that the activations depend on: where one lies on
    a branch (a residual block), before the branch.

    Attributes:
        layers: whose maps are tuned: earlier ones, if maps are fused, and the target layer.
        head: makes logits of the target layer's activations, if they depend on the image through
            these alone.
        feature_shape: of what ``below`` returns for one image.
        size: (H, W) of the image.
        num_classes: C.
        task: what the logits mean, see ``Manifest.task``. One logit z is two: (-z/2, z/2).

    Raises:
        ExportError: the model cannot be taken apart.
        TargetLayerError: there is no such layer.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        size: tuple[int, int],
        target_layer: str | None = None,
        channels: int = 3,
        fused_layers: Sequence[str] = (),
        tuned_layers: int = 1,
        task: Task | None = None,
    ) -> None:
        super().__init__()
        self.size = size
        explained = find_target(model, size, target_layer, channels, fused_layers, task)
        self.layers, self.task = explained.layers, explained.task
        captured = capture(model, size, channels)
        first_path = find_tensor_path(captured.graph)[0]
        nodes = [find_target_node(first_path, layer) for layer in self.layers]
        ends = [
            insert_activations(captured, node, layer.arrangement)
            for node, layer in zip(nodes, self.layers, strict=True)
        ]
        path, image, output = find_tensor_path(captured.graph)
        logits = find_logits(output, explained.activation)
        cut_points = find_cut_points(path)
        # The first layer lies before the others.
        start = _before_last_layers(path, cut_points, ends[0], tuned_layers)
        count = math.prod(int(side) for side in recorded_shape(logits)[1:])
        self.num_classes = 2 if self.task == "binary" else count
        self.feature_shape = tuple(int(side) for side in recorded_shape(start)[1:])
        self.below = extract_subgraph(captured, image, start)
        self.above = extract_subgraph(captured, start, *ends, logits, batch_of=image)
        # The same weights once more, for Ablation-CAM, whole and in parts.
        is_cut = ends[-1] in cut_points and self.target.arrangement.is_feature_map
        self.head = extract_subgraph(captured, ends[-1], logits, batch_of=image) if is_cut else None
        self._parts = None if self.head is None else split_head(self.head)
        self.requires_grad_(False)
        for weight in self.above.parameters():
            weight.requires_grad_(weight.is_floating_point())

    @property
    def target(self) -> Target:
        """The target layer."""
        return self.layers[-1]

    @property
    def map_size(self) -> tuple[int, int]:
        """Return (h, w) of raw maps: of the finest layer."""
        return finest([layer.shape for layer in self.layers])

    @property
    def pooled_linear(self) -> bool:
        """Tell whether the head is global average pooling and one linear layer."""
        return self.target.pooled_linear

    @property
    def has_ablation(self) -> bool:
        """Tell whether all of the network passes through the target layer, a feature map."""
        return self._parts is not None

    def tuned(self) -> dict[str, torch.nn.Parameter]:
        """Return w1 and w2 under their names in the model's own state dict."""
        return {name: p for name, p in self.above.named_parameters() if p.requires_grad}

    def forward(self, features: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor]:
        """Compute each layer's activations [N, K, h, w], and logits [N, C].

        Args:
            features: what ``below`` returns, [N, *feature_shape].
        """
        *activations, logits = self.above(features)
        return activations, self._by_class(logits.reshape(len(logits), -1))

    def _by_class(self, logits: torch.Tensor) -> torch.Tensor:
        """Make two classes of one logit, in the last axis."""
        return torch.cat([-logits / 2, logits / 2], -1) if self.task == "binary" else logits

    def classify(self, image: torch.Tensor) -> torch.Tensor:
        """Compute logits [N, C] of normalised images [N, channels, H, W]."""
        return self(self.below(image))[1]  # type: ignore[no-any-return]

    def raw_maps(
        self,
        method: Method,
        activations: Sequence[torch.Tensor],
        logits: torch.Tensor,
        target: torch.Tensor,
        score: Score | None = None,
        signed: bool = False,
    ) -> torch.Tensor:
        """Compute raw maps [N, h, w] of one class for each image, differentiable in w1 and w2.

        Args:
            method: any but ``scorecam`` and ``legrad``; ``ablation`` only with ``has_ablation``;
                ``layercam`` alone with several layers, whose maps are fused.
            activations: A [N, K, h, w] of each layer, part of autograd's graph.
            logits: of these activations, [N, C].
            target: the class explained, int64 [N].
            score: see ``whycam.export.to_onnx``.
            signed: keep negative values, which the method drops in the end; maps that are fused
                have none.
        """
        if method == "ablation":
            return self._ablation_maps(activations[-1], logits, target, score, signed)
        values = logits if (score or "logit") == "logit" else probabilities_of(self.task, logits)
        chosen = values.gather(1, target[:, None]).sum()
        gradients = torch.autograd.grad(chosen, list(activations), create_graph=True)
        pairs = zip(activations, gradients, strict=True)
        if len(activations) > 1:
            raws = [raw_map(method, a, g[:, None]) for a, g in pairs]
            return fuse(raws)[:, 0]  # type: ignore[no-any-return]
        make = signed_map if signed else raw_map
        ((a, g),) = pairs
        return make(method, a, g[:, None], None)[:, 0]  # type: ignore[no-any-return]

    def _ablation_maps(
        self,
        activations: torch.Tensor,
        logits: torch.Tensor,
        target: torch.Tensor,
        score: Score | None,
        signed: bool,
    ) -> torch.Tensor:
        assert self._parts is not None
        classes = torch.arange(self.num_classes, device=target.device)
        selected = (classes == target[:, None, None]).to(logits.dtype)
        own = 2 * logits[:, 1:] if self.task == "binary" else logits
        drops = self._by_class(compute_logit_drops(self._parts, activations, own))
        independent = self.task == "sigmoid"
        weights = ablation_weights(logits, drops, selected, score or "prob", independent)
        make = signed_map if signed else raw_map
        unused = activations[:, None]
        return make("ablation", activations, unused, weights)[:, 0]  # type: ignore[no-any-return]

    def maps(self, raw: torch.Tensor, size: tuple[int, int] | None = None) -> torch.Tensor:
        """Resize raw maps [N, h, w] to [N, H, W], or another size, and normalise them to [0, 1]."""
        return finish(raw, size or self.size)  # type: ignore[no-any-return]


def soften(signed: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Make positive maps [N, H, W] of signed ones [N, h, w], which keep a gradient below 0.

    Each is resized, divided by its largest magnitude, and softplus(8 x) / 8 takes the place of the
    method's ReLU: a map that is negative everywhere would have no gradient, and stay empty.
    """
    maps = resize(signed, size)
    largest = maps.detach().abs().amax((-2, -1), keepdim=True).clamp(min=1e-12)
    soft: torch.Tensor = torch.nn.functional.softplus(_SHARPNESS * maps / largest) / _SHARPNESS
    return soft


class Tuner(torch.nn.Module):
    """The paper's tuner (section 4.2.1): 1x1 convolutions K -> 3 -> 1, no nonlinearity."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mix = torch.nn.Conv2d(channels, 3, 1)
        self.merge = torch.nn.Conv2d(3, 1, 1)

    def forward(self, activations: torch.Tensor) -> torch.Tensor:
        """Predict a mask [N, h, w] from activations [N, K, h, w]."""
        return self.merge(self.mix(activations))[:, 0]  # type: ignore[no-any-return]


def _before_last_layers(
    path: list[fx.Node], cut_points: list[fx.Node], target: fx.Node, count: int
) -> fx.Node:
    """Find the last cut point before the last layers with weights that the target depends on."""
    pending, needed = [target], set()
    while pending:
        node = pending.pop()
        if node not in needed:
            needed.add(node)
            pending.extend(node.all_input_nodes)
    layers = [node for node in path if node in needed and node.target in LAYERS]
    if not layers:
        raise ExportError(
            "there is no convolution or linear layer before the target layer that could be tuned"
        )
    position, batch = path.index(layers[-min(count, len(layers))]), recorded_shape(path[0])[0]
    before = [
        cut
        for cut in cut_points
        if path.index(cut) < position and recorded_shape(cut)[:1] == (batch,)
    ]
    return before[-1]
