"""The explaining graph: trunk, head, gradient and Ablation-CAM weights as one torch module."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..runtime.cam import Method, Score, ablation_weights
from .ablation import Head, logit_drops
from .adjoint import trace_gradient
from .layer import Split


class ExplainingGraph(torch.nn.Module):
    """(image [N, 3, H, W], target [N, k]) to the outputs of the graph contract.

    The trunk runs once an image. The head runs on one copy of A per explained class, so that
    the recorded gradient needs no batching rules of its own; for one class there is no copy.
    """

    def __init__(
        self, split: Split, head: Head, methods: Sequence[Method], score: Score | None
    ) -> None:
        super().__init__()
        self.split = split
        self.trunk = split.trunk
        example = torch.zeros(2, *split.layer.shape)
        self.gradient = trace_gradient(
            split.head, example, split.num_classes, gradient_score(score)
        )
        self.head = head if "ablation" in methods else None
        self.score = score

    @property
    def output_names(self) -> list[str]:
        """The outputs' names, in the order in which ``forward`` returns them."""
        names = ["probabilities", "targets", "activations", "gradients"]
        return [*names, "ablation_weights"] if self.head is not None else names

    def forward(self, image: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Compute the outputs that ``output_names`` names."""
        activations = self.trunk(image)
        n, k = target.shape
        shape = self.split.layer.shape
        repeated = activations[:, None].expand(n, k, *shape).reshape(-1, *shape)
        logits, targets, gradients = self.gradient(repeated, target.reshape(-1))
        logits = logits.reshape(n, k, -1)[:, 0]
        targets = targets.reshape(n, k)
        outputs = [
            torch.softmax(logits, dim=-1),
            targets,
            activations,
            gradients.reshape(n, k, *shape),
        ]
        if self.head is not None:
            classes = torch.arange(self.split.num_classes, device=logits.device)
            selected = (classes == targets[..., None]).to(logits.dtype)
            drops = logit_drops(self.head, activations, logits)
            outputs.append(ablation_weights(logits, drops, selected, ablation_score(self.score)))
        return tuple(outputs)


def gradient_score(score: Score | None) -> Score:
    """What is differentiated: the logit, as Grad-CAM was published, unless told otherwise."""
    return score or "logit"


def ablation_score(score: Score | None) -> Score:
    """What Ablation-CAM compares: the probability, as the paper has it, unless told otherwise."""
    return score or "prob"
