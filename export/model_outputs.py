"""Name the tensors that a PyTorch model returns, in whatever structure it returns them."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import torch

from ..runtime.errors import ExportError, reason_of

IMAGE, LOGITS = "image", "logits"


def name_outputs(returned: Any) -> dict[str, torch.Tensor]:
    """Name the tensors in what a model returned, by the path that leads to each.

    Args:
        returned: a tensor, or tensors in dicts, dataclasses, named tuples, tuples, lists and plain
            objects, nested in any way. Whatever is no tensor, as None, is left out.

    Returns:
        ``logits`` for a single tensor; else keys, fields and positions joined by dots, as
        ``heads.age``; ``output_0`` for the first of a tuple. In the model's order.
    """
    if isinstance(returned, torch.Tensor):
        return {LOGITS: returned}
    named: dict[str, torch.Tensor] = {}
    for path, tensor in _walk(returned):
        name = ".".join(path)
        if path[0].isdecimal():
            name = f"output_{name}"
        if name == IMAGE:  # the input's name
            name = f"output_{name}"
        number = 2
        unique = name
        while unique in named:
            unique, number = f"{name}_{number}", number + 1
        named[unique] = tensor
    return named


def _walk(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], torch.Tensor]]:
    if isinstance(value, torch.Tensor):
        yield path, value
        return
    for key, part in _parts(value):
        yield from _walk(part, (*path, key))


def _parts(value: Any) -> list[tuple[str, Any]]:
    """List the named parts of a container; none of a number, a text or None."""
    if isinstance(value, Mapping):
        return [(str(key), part) for key, part in value.items()]
    if is_dataclass(value):
        return [(field.name, getattr(value, field.name)) for field in fields(value)]
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return list(zip(value._fields, value, strict=True))
    if isinstance(value, list | tuple):
        return [(str(index), part) for index, part in enumerate(value)]
    if isinstance(value, torch.nn.Module) or not hasattr(value, "__dict__"):
        return []
    return [(name, part) for name, part in vars(value).items() if isinstance(part, torch.Tensor)]


def return_tensors(
    model: torch.nn.Module, example: torch.Tensor
) -> tuple[torch.nn.Module, tuple[str, ...]]:
    """Let a model return its tensors as a plain tuple, as ONNX needs it.

    Args:
        model: in eval mode; shared with the copy that is returned, and not changed.
        example: images [2, C, H, W], float32.

    Returns:
        The model itself if it returns one tensor, else a copy that shares its parts and returns
        the tensors with a row for each image; and their names, see ``name_outputs``.

    Raises:
        ExportError: it does not run on such images, or returns no tensor with a row for each.
    """
    try:
        with torch.no_grad():
            returned = model(example)
    except Exception as error:
        raise ExportError(
            f"the model does not accept a float32 image batch of shape {tuple(example.shape)}: "
            f"{reason_of(error)}"
        ) from error
    if isinstance(returned, torch.Tensor):
        return model, (LOGITS,)
    named = name_outputs(returned)
    kept = tuple(name for name, tensor in named.items() if _has_rows(tensor, len(example)))
    if not kept:
        listed = ", ".join(f"'{name}' {list(t.shape)}" for name, t in named.items())
        raise ExportError(
            f"for {len(example)} images the model returned a {type(returned).__name__} without a "
            f"tensor that has a row for each (there are: {listed or 'no tensors'}): detectors and "
            "segmenters are not classifiers"
        )

    def to_tuple(_module: Any, _inputs: Any, output: Any) -> tuple[torch.Tensor, ...]:
        tensors = name_outputs(output)
        return tuple(tensors[name] for name in kept)

    copied = copy.copy(model)
    copied._forward_hooks = OrderedDict(model._forward_hooks)
    copied.register_forward_hook(to_tuple)
    return copied, kept


def _has_rows(tensor: torch.Tensor, count: int) -> bool:
    return tensor.ndim > 0 and len(tensor) == count and not tensor.is_complex()


def list_tensors(returned: Any) -> Sequence[torch.Tensor]:
    """List the tensors that a model of ``return_tensors`` returned."""
    return (returned,) if isinstance(returned, torch.Tensor) else returned
