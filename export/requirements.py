"""See that packages are installed before what imports them is."""

from __future__ import annotations

from importlib import import_module

from ..runtime.errors import MissingExtraError


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


def require_onnx(purpose: str) -> None:
    """See that the packages for graph work are installed, before what imports them is.

    Raises:
        MissingExtraError: one is not.
    """
    try:
        import_module("onnx")
        import_module("onnx_ir")
    except ImportError as error:
        package = (error.name or "onnx").partition(".")[0].replace("_", "-")
        raise MissingExtraError(package, "onnx", purpose) from error
