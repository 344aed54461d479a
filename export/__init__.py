"""Export a PyTorch model or an ONNX file as an explaining graph, and build TensorRT plans from it.

Only what reads PyTorch models needs torch (the extra ``export``); ONNX files need the extra
``onnx``. What is named here is imported when it is asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .requirements import require_onnx

if TYPE_CHECKING:
    from ..runtime.comparison import Comparison
    from .build import BuildResult, to_plan
    from .data_flow import Layer
    from .half import HalfResult, to_half
    from .layer_list import list_layers
    from .onnx import ExportResult, to_onnx
    from .preprocessing import Overrides

__all__ = [
    "BuildResult",
    "Comparison",
    "ExportResult",
    "HalfResult",
    "Layer",
    "Overrides",
    "list_layers",
    "to_half",
    "to_onnx",
    "to_plan",
]

_HOMES = {
    "BuildResult": "build",
    "Comparison": ".runtime.comparison",
    "ExportResult": "onnx",
    "HalfResult": "half",
    "Layer": "data_flow",
    "Overrides": "preprocessing",
    "list_layers": "layer_list",
    "to_half": "half",
    "to_onnx": "onnx",
    "to_plan": "build",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if _HOMES[name] in ("onnx", "layer_list"):
        require_onnx("export")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
