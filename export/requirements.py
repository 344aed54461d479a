"""Check that optional packages are installed before modules that need them are imported."""

from __future__ import annotations

from importlib import import_module

from ..runtime.errors import MissingExtraError


def require_torch(purpose: str, extra: str = "export") -> None:
    """Check that torch is installed.

    Raises:
        MissingExtraError: it is not; the message names ``purpose`` and the extra to install.
    """
    try:
        import torch
    except ImportError as error:
        raise MissingExtraError("torch", extra, purpose) from error
    del torch


def require_onnx(purpose: str) -> None:
    """Check that onnx and onnx-ir are installed.

    Raises:
        MissingExtraError: one is not.
    """
    try:
        import_module("onnx")
        import_module("onnx_ir")
    except ImportError as error:
        package = (error.name or "onnx").partition(".")[0].replace("_", "-")
        raise MissingExtraError(package, "onnx", purpose) from error
