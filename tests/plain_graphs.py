"""PyTorch's exporter, asked once for each network: it takes most of the time of small exports."""

from __future__ import annotations

import contextlib
import hashlib
import sys
from collections.abc import Callable
from functools import cache
from typing import Any

import onnx
import onnx_ir as ir
import torch

OWN = set(vars(torch.nn.Module()))  # what every module has


def ask_once() -> None:
    """Let ``torch.onnx.export`` remember what it made of networks of named classes.

    It is PyTorch's function alone that remembers: everything that whycam does runs each time.
    """
    with contextlib.suppress(ImportError, AttributeError):
        remember_translations()
    export = torch.onnx.export
    made: dict[str, bytes] = {}

    def remembering(
        model: torch.nn.Module, args: tuple[Any, ...], *path: Any, **options: Any
    ) -> Any:
        key = None if path or "f" in options else description(model, args, options)
        if key is None:
            return export(model, args, *path, **options)
        if key not in made:
            program = export(model, args, **options)
            made[key] = ir.to_proto(program.model).SerializeToString()
        graph = ir.from_proto(onnx.ModelProto.FromString(made[key]))
        return torch.onnx.ONNXProgram(graph, None)

    torch.onnx.export = remembering


def remember_translations() -> None:
    """Keep the exporter's table of operators, which it builds for each export anew."""
    from torch.onnx._internal.exporter import _registration

    registry = _registration.ONNXRegistry
    build: Callable[..., Any] = registry.from_torchlib
    registry.from_torchlib = staticmethod(cache(build))


def description(
    model: torch.nn.Module, args: tuple[Any, ...], options: dict[str, Any]
) -> str | None:
    """Digest of all that decides what is exported; None where that is not known."""
    digest = hashlib.sha256(repr([each.shape for each in args]).encode())
    digest.update(repr(sorted(options.items())).encode())
    for name, module in model.named_modules():
        if not is_named(type(module)) or module._forward_hooks or module._forward_pre_hooks:
            return None
        # With `repr` alone some settings would be missing: ceil_mode of AvgPool2d, for one.
        settings = repr(sorted((k, v) for k, v in vars(module).items() if k not in OWN))
        if " at 0x" in settings:  # an address says nothing of what lies there
            return None
        digest.update(repr([name, type(module), settings]).encode())
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        digest.update(repr([name, tensor.dtype, tensor.shape]).encode())
        digest.update(tensor.detach().cpu().numpy().tobytes())
    return digest.hexdigest()


def is_named(kind: type) -> bool:
    """Whether a class is the one that its module has under its name: not made on the way."""
    place: Any = sys.modules.get(kind.__module__)
    for name in kind.__qualname__.split("."):
        place = getattr(place, name, None)
    return place is kind
