"""Losses of a classifier by its task: of classes that exclude each other, or independent labels.

Both are negative log-likelihoods. Independent labels are one Bernoulli variable each, so theirs are
sums over the labels.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F

from ..runtime.manifest_parts import Task


def probabilities_of(task: Task, logits: torch.Tensor) -> torch.Tensor:
    """Compute probabilities [N, C]: sigmoids of independent labels, else a softmax."""
    return logits.sigmoid() if task == "sigmoid" else logits.softmax(-1)


def classification_loss(
    task: Task, logits: torch.Tensor, batch: Mapping[str, torch.Tensor]
) -> torch.Tensor:
    """Compute the cross-entropy with the labels, the mean over all images.

    Args:
        task: of the network.
        logits: [N, C].
        batch: ``label`` int64 [N], the class of each image, -1 where it is not known; of
            independent labels ``present`` float [N, C], from ``tabulate_labels``. What is not known
            counts as 0.
    """
    if task == "sigmoid":
        present = batch["present"]
        losses = F.binary_cross_entropy_with_logits(
            logits, present.clamp(min=0).to(logits.dtype), reduction="none"
        )
        return torch.where(present >= 0, losses, 0.0).sum(-1).mean()
    losses = F.cross_entropy(logits, batch["label"].clamp(min=0), reduction="none")
    return torch.where(batch["label"] >= 0, losses, 0.0).mean()


def explained_class_loss(task: Task, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Compute -log of the explained class's probability, the mean over images.

    Args:
        task: of the network.
        logits: [N, C].
        target: the class explained, int64 [N].
    """
    if task == "sigmoid":
        return F.softplus(-logits.gather(1, target[:, None])).mean()
    return F.cross_entropy(logits, target)


def divergence(task: Task, before: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """Compute KL(before || now) of probabilities before, the mean over images.

    Args:
        task: of the network.
        before: probabilities [N, C] of the network before training.
        logits: [N, C] of the network now.
    """
    if task != "sigmoid":
        return F.kl_div(logits.log_softmax(-1), before, reduction="batchmean")
    # Of a Bernoulli variable's two outcomes.
    both = [(before, F.logsigmoid(logits)), (1 - before, F.logsigmoid(-logits))]
    return torch.stack([torch.xlogy(p, p) - p * now for p, now in both]).sum((0, 2)).mean()
