"""Compute class scores and their gradients in float64, to verify what a graph computes.

Raw scores [M, R] are those of all heads side by side: one number for each class, or one alone for
a binary head.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..runtime.cam import Score
from ..runtime.manifest_parts import OutputHead, Task

Floats = NDArray[np.float64]
Heads = Sequence[OutputHead]


def compute_class_scores(raw: Floats, heads: Heads) -> Floats:
    """Compute logits [M, C] from raw scores [M, R]; two classes from one logit."""
    if all(head.task != "binary" for head in heads):
        return raw
    scores: Floats = raw @ _scores_from_raw(heads)
    return scores


def _scores_from_raw(heads: Heads) -> Floats:
    """Build the matrix [R, C] that makes class scores of raw scores."""
    blocks = [
        np.array([[-0.5, 0.5]]) if head.task == "binary" else np.eye(head.num_classes)
        for head in heads
    ]
    matrix = np.zeros((sum(len(b) for b in blocks), sum(b.shape[1] for b in blocks)))
    row = column = 0
    for block in blocks:
        matrix[row : row + len(block), column : column + block.shape[1]] = block
        row, column = row + len(block), column + block.shape[1]
    return matrix


def _split(scores: Floats, heads: Heads) -> list[Floats]:
    """Split what holds a number for each class, [M, C], by head."""
    ends = np.cumsum([head.num_classes for head in heads])[:-1]
    return np.split(scores, ends, axis=-1)


def compute_probabilities(raw: Floats, heads: Heads) -> Floats:
    """Compute class probabilities [M, C]; the values themselves for the task ``none``."""
    parts = _split(compute_class_scores(raw, heads), heads)
    every = [_probabilities(z, head.task) for z, head in zip(parts, heads, strict=True)]
    return np.concatenate(every, axis=-1)


def _probabilities(logits: Floats, task: Task) -> Floats:
    if task == "none":
        return logits
    if task == "sigmoid":
        return 0.5 * (1.0 + np.tanh(0.5 * logits))
    exponentials = np.exp(logits - logits.max(-1, keepdims=True))
    softmax: Floats = exponentials / exponentials.sum(-1, keepdims=True)
    return softmax


def differentiate_score(
    raw: Floats, targets: NDArray[np.int64], score: Score, heads: Heads
) -> Floats:
    """Differentiate the score of each row's class by the raw scores: raw [M, R], targets [M]."""
    seed = np.eye(sum(head.num_classes for head in heads))[targets]
    if score == "prob":
        parts = []
        every = compute_probabilities(raw, heads)
        for own, p, head in zip(_split(seed, heads), _split(every, heads), heads, strict=True):
            if head.task == "sigmoid":
                parts.append(own * p * (1 - p))
            else:
                parts.append((own * p).sum(-1, keepdims=True) * (own - p))
        seed = np.concatenate(parts, axis=-1)
    gradient: Floats = seed @ _scores_from_raw(heads).T
    return gradient


def compute_relative_drop(
    raw: Floats, without: Floats, targets: NDArray[np.int64], score: Score, heads: Heads
) -> Floats:
    """Compute (y - y_k) / y of each row's class, [M]; in logarithms, as y may be 0."""
    rows = np.arange(len(targets))
    if score == "logit":
        y, other = (compute_class_scores(x, heads)[rows, targets] for x in (raw, without))
        return (y - other) / y
    logs = [_log_probabilities(x, heads)[rows, targets] for x in (raw, without)]
    drop: Floats = -np.expm1(logs[1] - logs[0])
    return drop


def _log_probabilities(raw: Floats, heads: Heads) -> Floats:
    parts = []
    for logits, head in zip(_split(compute_class_scores(raw, heads), heads), heads, strict=True):
        if head.task == "sigmoid":
            parts.append(-np.logaddexp(0.0, -logits))
        else:
            largest = logits.max(-1, keepdims=True)
            total = np.log(np.exp(logits - largest).sum(-1, keepdims=True)) + largest
            parts.append(logits - total)
    return np.concatenate(parts, axis=-1)
