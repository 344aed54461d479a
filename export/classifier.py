"""Give a network another number of classes: a new last layer, found from the graph."""

from __future__ import annotations

import torch
from torch import fx, nn

from ..runtime.errors import ExportError
from .layer import capture, tensor_path

aten = torch.ops.aten

_PRODUCTS = {
    aten.linear.default,
    aten.addmm.default,
    aten.mm.default,
    aten.conv2d.default,
    aten.convolution.default,
}


def replace_classifier(model: nn.Module, num_classes: int, size: tuple[int, int]) -> str:
    """Put a new last layer, initialised as torch does, in the place of the old one.

    Args:
        model: in eval mode; changed in place.
        num_classes: of the new layer.
        size: (H, W) of the network's input.

    Returns:
        The layer's name.

    Raises:
        ExportError: the network does not end in one linear layer or 1x1 convolution.
    """
    if num_classes < 2:
        raise ExportError(f"a classifier has 2 classes or more, not {num_classes}")
    name = _last_weight(capture(model, size)).rpartition(".")[0]
    old = model.get_submodule(name)
    new: nn.Module
    if isinstance(old, nn.Linear):
        new = nn.Linear(old.in_features, num_classes, bias=old.bias is not None)
    elif isinstance(old, nn.Conv2d) and old.kernel_size == (1, 1) and old.groups == 1:
        new = nn.Conv2d(old.in_channels, num_classes, 1, bias=old.bias is not None)
    else:
        raise ExportError(
            f"the last layer, {name}, is a {type(old).__name__}, which has no counterpart for "
            f"{num_classes} classes: give the network its classes yourself, and train after that"
        )
    model.set_submodule(name, new.eval())
    return name


def _last_weight(captured: fx.GraphModule) -> str:
    """The weight of the last product before the logits."""
    path, _, _ = tensor_path(captured.graph)
    for node in reversed(path):
        if node.target in _PRODUCTS:
            weights = [
                str(source.target)
                for source in _sources(node)
                if source.op == "get_attr" and str(source.target).endswith("weight")
            ]
            if weights:
                return weights[0]
            break
    raise ExportError("the network does not end in a layer with weights that could be replaced")


def _sources(node: fx.Node) -> list[fx.Node]:
    """What a product reads, through transposes."""
    found = []
    for source in node.all_input_nodes:
        found.append(source)
        found.extend(source.all_input_nodes if source.op == "call_function" else [])
    return found
