"""Class scores in float64, for verification: what the graph computes, written in NumPy."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..runtime.cam import Score
from ..runtime.manifest import Task

Floats = NDArray[np.float64]


def compute_class_scores(raw: Floats, task: Task) -> Floats:
    """Logits [M, C] from a network's raw scores; two classes from one logit."""
    return np.concatenate([-raw / 2, raw / 2], axis=-1) if task == "binary" else raw


def compute_probabilities(raw: Floats, task: Task) -> Floats:
    """Class probabilities [M, C]; the values themselves for the task ``none``."""
    logits = compute_class_scores(raw, task)
    if task == "none":
        return logits
    if task == "sigmoid":
        return 0.5 * (1.0 + np.tanh(0.5 * logits))
    away = np.exp(logits - logits.max(-1, keepdims=True))
    found: Floats = away / away.sum(-1, keepdims=True)
    return found


def differentiate_score(
    raw: Floats, targets: NDArray[np.int64], score: Score, task: Task
) -> Floats:
    """d score_c / d raw scores, [M, raw]: raw [M, .], targets [M]."""
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
    """(y - y_k) / y of each row's class, [M]; in logarithms, for a class may have probability 0."""
    rows = np.arange(len(targets))
    if score == "logit":
        y, other = (compute_class_scores(each, task)[rows, targets] for each in (raw, without))
        return (y - other) / y
    logs = []
    for each in (raw, without):
        logits = compute_class_scores(each, task)
        own = logits[rows, targets]
        if task == "sigmoid":
            logs.append(-np.logaddexp(0.0, -own))
        else:
            largest = logits.max(-1)
            total = np.log(np.exp(logits - largest[:, None]).sum(-1)) + largest
            logs.append(own - total)
    found: Floats = -np.expm1(logs[1] - logs[0])
    return found
