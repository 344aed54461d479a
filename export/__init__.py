"""From a PyTorch classifier to an explaining ONNX graph. Needs the extra ``export``."""

from ..runtime.errors import MissingExtraError

try:
    import torch as _torch  # noqa: F401
except ImportError as error:
    raise MissingExtraError("torch", "export", "export") from error

from .layer import Layer
from .onnx import Export, layers, to_onnx
from .source import Overrides
from .verify import Verification

__all__ = ["Export", "Layer", "Overrides", "Verification", "layers", "to_onnx"]
