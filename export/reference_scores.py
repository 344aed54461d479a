"""Compute class scores and their gradients in float64, to verify what a graph computes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..runtime.cam import Score
from ..runtime.manifest import Task

Floats = NDArray[np.float64]


def compute_class_scores(raw: Floats, task: Task) -> Floats:
    """Compute logits [M, C] from raw scores; two classes from one logit."""
    return np.concatenate([-raw / 2, raw / 2], axis=-1) if task == "binary" else raw


def compute_probabilities(raw: Floats, task: Task) -> Floats:
    """Compute class probabilities [M, C]; the values themselves for the task ``none``."""
    logits = compute_class_scores(raw, task)
    if task == "none":
        return logits
    if task == "sigmoid":
        return 0.5 * (1.0 + np.tanh(0.5 * logits))
    exponentials = np.exp(logits - logits.max(-1, keepdims=True))
    softmax: Floats = exponentials / exponentials.sum(-1, keepdims=True)
    return softmax


def differentiate_score(
    raw: Floats, targets: NDArray[np.int64], score: Score, task: Task
) -> Floats:
    """Differentiate the score of each row's class by the raw scores: raw [M, .], targets [M]."""
    logits = compute_class_scores(raw, task)
    seed = np.eye(logits.shape[-1])[targets]
    if score == "prob":
        p = compute_probabilities(raw, task)
        if task == "sigmoid":
            seed = seed * p * (1 - p)
        else:
            seed = (seed * p).sum(-1, keepdims=True) * (seed - p)
    return seed @ np.array([[-0.5], [0.5]]) if task == "binary" else seed


def compute_relative_drop(
    raw: Floats, without: Floats, targets: NDArray[np.int64], score: Score, task: Task
) -> Floats:
    """Compute (y - y_k) / y of each row's class, [M]; in logarithms, as y may be 0."""
    rows = np.arange(len(targets))
    if score == "logit":
        y, other = (compute_class_scores(x, task)[rows, targets] for x in (raw, without))
        return (y - other) / y
    logs = []
    for raw_scores in (raw, without):
        logits = compute_class_scores(raw_scores, task)
        chosen = logits[rows, targets]
        if task == "sigmoid":
            logs.append(-np.logaddexp(0.0, -chosen))
        else:
            largest = logits.max(-1)
            total = np.log(np.exp(logits - largest[:, None]).sum(-1)) + largest
            logs.append(chosen - total)
    drop: Floats = -np.expm1(logs[1] - logs[0])
    return drop
