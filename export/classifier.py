"""Replace a network's last layer by one for another number of classes."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ..runtime.errors import ExportError, reason_of


def replace_classifier(
    model: nn.Module, num_classes: int, size: tuple[int, int], channels: int = 3
) -> str:
    """Replace the last layer by a new one, initialised as torch does.

    Args:
        model: in eval mode; takes [N, channels, H, W]; changed in place.
        num_classes: of the new layer.
        size: (H, W) of the network's input.
        channels: of the network's input.

    Returns:
        The layer's name.

    Raises:
        ExportError: the network does not end in a linear layer or 1x1 convolution.
    """
    if num_classes < 2:
        raise ExportError(f"a classifier has 2 classes or more, not {num_classes}")
    example = torch.zeros(2, channels, *size)
    name, is_plain = _find_last_layer(model, example)
    old = model.get_submodule(name)
    new: nn.Module
    if isinstance(old, nn.Linear) and is_plain:
        new = nn.Linear(old.in_features, num_classes, bias=old.bias is not None)
    elif isinstance(old, nn.Conv2d) and is_plain:
        new = nn.Conv2d(old.in_channels, num_classes, 1, bias=old.bias is not None)
    else:
        raise ExportError(
            f"the last layer, {name}, is a {type(old).__name__}, which has no counterpart for "
            f"{num_classes} classes: give the network its classes yourself, and train after that"
        )
    model.set_submodule(name, new.eval())
    if not _returns(model, example, num_classes):
        model.set_submodule(name, old)
        raise ExportError(
            f"another number of outputs of its last layer, {name}, does not give the network "
            f"{num_classes} classes: give it its classes yourself, and train after that"
        )
    return name


def _find_last_layer(model: nn.Module, example: torch.Tensor) -> tuple[str, bool]:
    """Find the last layer with a weight matrix that runs; and whether it is plain PyTorch's."""
    last: tuple[nn.Module, bool] | None = None

    def record(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        nonlocal last
        last = module, _multiplies_only(module, inputs[0] if inputs else None, output)

    names = {module: name for name, module in model.named_modules() if _has_matrix(module)}
    hooks = [module.register_forward_hook(record) for module in names]
    try:
        _run(model, example)
    finally:
        for hook in hooks:
            hook.remove()
    if last is None:
        raise ExportError("the network does not end in a layer with weights that could be replaced")
    return names[last[0]], last[1]


def _has_matrix(module: nn.Module) -> bool:
    if isinstance(module, nn.Linear | nn.Conv2d):
        return True
    weights = module.parameters(recurse=False)
    return not list(module.children()) and any(weight.ndim >= 2 for weight in weights)


def _multiplies_only(module: nn.Module, inputs: Any, output: Any) -> bool:
    """Tell whether a layer computes what PyTorch's does; subclasses may normalise or scale."""
    if isinstance(module, nn.Linear):
        plain = F.linear(inputs, module.weight, module.bias)
    elif isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1) and module.groups == 1:
        plain = F.conv2d(inputs, module.weight, module.bias)
    else:
        return False
    return plain.shape == _shape(output) and torch.allclose(plain, output, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def _run(model: nn.Module, example: torch.Tensor) -> Any:
    try:
        return model(example)
    except Exception as error:
        raise ExportError(
            f"the model does not accept a float32 image batch of shape {tuple(example.shape)}: "
            f"{reason_of(error)}"
        ) from error


def _returns(model: nn.Module, example: torch.Tensor, num_classes: int) -> bool:
    try:
        return _shape(_run(model, example)) == (len(example), num_classes)
    except ExportError:
        return False


def _shape(output: Any) -> tuple[int, ...] | str:
    return tuple(output.shape) if isinstance(output, torch.Tensor) else type(output).__name__
