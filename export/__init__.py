"""From a PyTorch classifier to an explaining ONNX graph, and on to a TensorRT plan.

Reading a PyTorch model needs the extra ``export``; ``build`` and ``half`` need no torch, so what is
named here is imported when it is asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ..runtime.errors import MissingExtraError

if TYPE_CHECKING:
    from .build import Built, to_plan
    from .half import Half, to_half
    from .layer import Layer
    from .onnx import Export, layers, to_onnx
    from .source import Overrides
    from .verify import Verification

__all__ = [
    "Built",
    "Export",
    "Half",
    "Layer",
    "Overrides",
    "Verification",
    "layers",
    "to_half",
    "to_onnx",
    "to_plan",
]

_WITHOUT_TORCH = {"Built": "build", "to_plan": "build", "Half": "half", "to_half": "half"}
_WITH_TORCH = {
    "Export": "onnx",
    "Layer": "layer",
    "Overrides": "source",
    "Verification": "verify",
    "layers": "onnx",
    "to_onnx": "onnx",
}


def require_torch(purpose: str, extra: str = "export") -> None:
    """See that torch is here, before a module that imports it is asked for.

    Raises:
        MissingExtraError: it is not; names ``purpose``, and ``extra`` as what brings it.
    """
    try:
        import torch
    except ImportError as error:
        raise MissingExtraError("torch", extra, purpose) from error
    del torch


def __getattr__(name: str) -> Any:
    if name in _WITH_TORCH:
        require_torch("export")
    elif name not in _WITHOUT_TORCH:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = import_module(f".{(_WITH_TORCH | _WITHOUT_TORCH)[name]}", __name__)
    return getattr(module, name)
