"""Choose the engine that computes masks and evaluations in a training."""

from __future__ import annotations

from pathlib import Path

import torch

from ..runtime.engines import ort_gpu
from ..runtime.engines.ort_options import CUDA
from ..runtime.engines.registry import CHECKED_AT_EXPORT
from ..runtime.explainer import Explainer
from ..runtime.load import load

_ON_GPU = "onnxruntime-cuda"


def open_explainer(path: Path, device: torch.device) -> Explainer:
    """Load a file where the network is trained, if an engine for that is installed.

    On CUDA that is ONNX Runtime's CUDA provider. Everywhere else, and without it, it is ONNX
    Runtime on the CPU, whatever else is installed: its answers do not depend on how images are
    batched, so a run that was resumed or shared among processes finds the same masks.

    Args:
        path: of the ONNX file.
        device: that the network is trained on.
    """
    if device.type == "cuda" and explain_cpu(device) is None:
        return load(path, _ON_GPU, gpu=device.index or 0)
    return load(path, CHECKED_AT_EXPORT)


def explain_cpu(device: torch.device) -> str | None:
    """Say why masks of a training on a GPU are computed on the CPU; None if they are not."""
    if device.type != "cuda":
        return None
    return ort_gpu.problem(CUDA, device.index or 0)
