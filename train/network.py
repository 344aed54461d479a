"""Split a classifier for tuning: frozen layers, the stage up to the target layer, the head."""

from __future__ import annotations

import torch
from torch import fx

from ..runtime.cam import Method, Score, ablation_weights, finish, raw_map
from ..runtime.errors import ExportError
from .ablation import compute_logit_drops, split_head
from .graph import (
    CONVOLUTIONS,
    capture,
    extract_subgraph,
    find_cut_points,
    find_target_node,
    find_tensor_path,
    insert_channels_first,
    recorded_shape,
)
from .target import find_target


class TunableNetwork(torch.nn.Module):
    """A network in three parts, with the weights w = (w0, w1, w2) of the paper (section 4.2.2).

    ``below`` (w0) is frozen; ``stage`` (w1) ends in the target layer; ``head`` (w2) makes logits
    of its activations. Batch-norm statistics stay as they are everywhere. Where the last
    convolution lies on a branch (a residual block), ``stage`` begins before the branch, at a cut
    point.

    Attributes:
        target: the target layer.
        feature_shape: (K', h', w') of what ``below`` returns.
        size: (H, W) of the image.
        num_classes: C.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        size: tuple[int, int],
        target_layer: str | None = None,
        channels: int = 3,
    ) -> None:
        super().__init__()
        self.size = size
        self.target = find_target(model, size, target_layer, channels)
        captured = capture(model, size, channels)
        node = find_target_node(find_tensor_path(captured.graph)[0], self.target)
        end = insert_channels_first(captured, node, self.target.order)
        path, image, logits = find_tensor_path(captured.graph)
        start = _before_last_convolution(path, image, end)
        self.num_classes = int(recorded_shape(logits)[1])
        self.feature_shape: tuple[int, int, int] = _shape(start)
        self.below = extract_subgraph(captured, image, start)
        self.stage = extract_subgraph(captured, start, end)
        self.head = extract_subgraph(captured, end, logits, batch_of=image)
        # The same weights once more: the head in parts.
        self._parts = split_head(self.head)
        self.requires_grad_(False)
        for part in (self.stage, self.head):
            for weight in part.parameters():
                weight.requires_grad_(weight.is_floating_point())

    @property
    def pooled_linear(self) -> bool:
        """Tell whether the head is global average pooling and one linear layer."""
        return self.target.pooled_linear

    def tuned(self) -> dict[str, torch.nn.Parameter]:
        """Return w1 and w2 under their names in the model's own state dict."""
        return {name: p for name, p in _named(self) if p.requires_grad}

    def forward(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute, from features [N, K', h', w'], activations [N, K, h, w] and logits [N, C]."""
        activations = self.stage(features)
        return activations, self.head(activations)

    def classify(self, image: torch.Tensor) -> torch.Tensor:
        """Compute logits [N, C] of normalised images [N, channels, H, W]."""
        return self(self.below(image))[1]  # type: ignore[no-any-return]

    def raw_maps(
        self,
        method: Method,
        activations: torch.Tensor,
        logits: torch.Tensor,
        target: torch.Tensor,
        score: Score | None = None,
    ) -> torch.Tensor:
        """Compute raw maps [N, h, w] of one class for each image, differentiable in w1 and w2.

        Args:
            method: any but ``scorecam``.
            activations: A [N, K, h, w], part of autograd's graph.
            logits: of these activations, [N, C].
            target: the class explained, int64 [N].
            score: see ``whycam.export.to_onnx``.
        """
        if method == "ablation":
            classes = torch.arange(self.num_classes, device=target.device)
            selected = (classes == target[:, None, None]).to(logits.dtype)
            drops = compute_logit_drops(self._parts, activations, logits)
            weights = ablation_weights(logits, drops, selected, score or "prob")
            gradients = activations[:, None]  # not used
        else:
            weights = None
            values = logits if (score or "logit") == "logit" else logits.softmax(-1)
            chosen = values.gather(1, target[:, None]).sum()
            (gradient,) = torch.autograd.grad(chosen, activations, create_graph=True)
            gradients = gradient[:, None]
        return raw_map(method, activations, gradients, weights)[:, 0]  # type: ignore[no-any-return]

    def maps(self, raw: torch.Tensor, size: tuple[int, int] | None = None) -> torch.Tensor:
        """Resize raw maps [N, h, w] to [N, H, W], or another size, and normalise them to [0, 1]."""
        return finish(raw, size or self.size)  # type: ignore[no-any-return]


class Tuner(torch.nn.Module):
    """The paper's tuner (section 4.2.1): 1x1 convolutions K -> 3 -> 1, no nonlinearity."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mix = torch.nn.Conv2d(channels, 3, 1)
        self.merge = torch.nn.Conv2d(3, 1, 1)

    def forward(self, activations: torch.Tensor) -> torch.Tensor:
        """Predict a mask [N, h, w] from activations [N, K, h, w]."""
        return self.merge(self.mix(activations))[:, 0]  # type: ignore[no-any-return]


def _before_last_convolution(path: list[fx.Node], image: fx.Node, target: fx.Node) -> fx.Node:
    """Find the last cut point before the last convolution."""
    upto = path[: path.index(target) + 1]
    convolutions = [node for node in upto if node.target in CONVOLUTIONS]
    if not convolutions:
        raise ExportError("there is no convolution before the target layer that could be tuned")
    position = upto.index(convolutions[-1])
    spatial = [cut for cut in find_cut_points(path) if len(recorded_shape(cut)) == 4]
    before = [cut for cut in spatial if cut is image or cut in upto[:position]]
    return before[-1]


def _shape(node: fx.Node) -> tuple[int, int, int]:
    _, channels, height, width = recorded_shape(node)
    return int(channels), int(height), int(width)


def _named(module: TunableNetwork) -> list[tuple[str, torch.nn.Parameter]]:
    parameters: dict[str, torch.nn.Parameter] = {}
    for part in (module.stage, module.head):
        parameters.update(part.named_parameters())
    return list(parameters.items())
