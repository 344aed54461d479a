"""Compute Score-CAM's weights, with one evaluation of the network for each channel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import cam
from .input_format import Layout
from .sweep import Classify, Floats, masked_image
from .threads import one_blas_thread

# Called with (done, total) evaluations of a long computation.
Progress = Callable[[int, int], None]


def score_weights(
    classify: Classify,
    images: NDArray[Any],
    activations: Floats,
    targets: NDArray[np.int64],
    size: tuple[int, int],
    batch: int,
    progress: Progress | None = None,
    layout: Layout = "NCHW",
) -> Floats:
    """Compute Score-CAM's weights (Wang et al. 2020): alpha_k = p_c(x * s(up(A_k))).

    As in its authors' code, the weight is the probability of the masked image. A constant channel,
    whose mask is empty, has weight 0.

    Args:
        classify: the network.
        images: float32 [N, C, H, W] or [N, H, W, C], normalised.
        activations: A, float32 [N, K, h, w].
        targets: the classes explained, [N, k].
        size: (H, W).
        batch: images at most in one run.
        progress: called with (done, total) evaluations.
        layout: of the images.

    Returns:
        float32 [N, k, K].
    """
    n, channels = activations.shape[:2]
    weights = np.zeros((n, targets.shape[1], channels), np.float32)
    done = 0
    for i in range(n):
        for start in range(0, channels, batch):
            part = slice(start, min(start + batch, channels))
            with one_blas_thread():
                masks = cam.finish(activations[i, part], size)
            rows = classify(masked_image(images[i], masks, layout))
            varies = masks.any(axis=(-2, -1))
            weights[i, :, part] = np.where(varies, rows[:, targets[i]].T, 0)
            done += len(rows)
            if progress is not None:
                progress(done, n * channels)
    return weights
