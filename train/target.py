"""Decide which layer of a model is tuned: the one that its export explains."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..export.ablation_head import split_head
from ..export.arrangement import Arrangement
from ..export.from_torch import to_ir
from ..export.layers import Network
from ..export.model_outputs import name_outputs
from ..export.onnx_reading import LEAST_OPSET
from ..export.output_meaning import interpret_outputs
from ..export.plain_model import to_plain
from ..runtime.errors import ExportError
from ..runtime.manifest_parts import Task


@dataclass(frozen=True)
class Target:
    """A target layer, without the ONNX graph in which it was found.

    Attributes:
        name: the module's path, or the node's name where the operation belongs to no module.
        shape: (K, h, w) of the activations.
        arrangement: how the layer's tensor is arranged as [N, K, h, w].
        pooled_linear: whether global average pooling and one linear layer follow the target layer.
    """

    name: str
    shape: tuple[int, int, int]
    arrangement: Arrangement
    pooled_linear: bool


@dataclass(frozen=True)
class Explained:
    """What an export explains of a model.

    Attributes:
        layers: the fused layers in the network's order, and the target layer, which is the last.
        task: what the model's output means.
        activation: the operator between logits and output, ``Softmax``, ``LogSoftmax`` or
            ``Sigmoid``; None if the output holds logits.
    """

    layers: tuple[Target, ...]
    task: Task
    activation: str | None


def find_target(
    model: torch.nn.Module,
    size: tuple[int, int],
    name: str | None = None,
    channels: int = 3,
    fused_layers: Sequence[str] = (),
    task: Task | None = None,
) -> Explained:
    """Find the target layer, and earlier ones, with the code that every export uses.

    Args:
        model: in eval mode; takes [N, channels, H, W] and returns one number a class.
        size: (H, W).
        name: of a module or node; by default the layer is found from the data flow.
        channels: of the images.
        fused_layers: names of earlier layers, whose maps are fused with the target layer's.
        task: what the output means; by default what the graph's last operator says.

    Raises:
        ExportError: the model cannot be translated, or returns no single row of class scores.
        TargetLayerError: there is no usable target layer, or a fused one is not before it.
    """
    if task == "none":
        raise ExportError(
            "training needs probabilities of classes, and outputs of the task none are values: "
            "whycam export explains the model as it is"
        )
    _check_output(model, size, channels)
    plain = to_plain(to_ir(model, size, LEAST_OPSET, channels))
    (meaning,) = interpret_outputs(plain.graph.outputs, plain.shapes, task)
    is_sigmoid = meaning.activation == "Sigmoid"
    if meaning.activation is not None and is_sigmoid != (meaning.task in ("sigmoid", "binary")):
        raise ExportError(
            f"the model ends in {meaning.activation}, and its task cannot be {meaning.task}: leave "
            "the task out"
        )
    network = Network(plain, meaning.logits)
    layer = network.find(name)
    head = split_head(network, layer)
    layers = tuple(
        Target(each.name, each.shape, each.arrangement, head.is_pooled_linear)
        for each in (*network.find_earlier(layer, fused_layers), layer)
    )
    return Explained(layers, meaning.task, meaning.activation)


def _check_output(model: torch.nn.Module, size: tuple[int, int], channels: int) -> None:
    """Refuse, before it is translated, a model that returns several tensors.

    Raises:
        ExportError: it does.
    """
    try:
        with torch.no_grad():
            returned = model(torch.zeros(2, channels, *size))
    except Exception:  # reported when the model is translated
        return
    if not isinstance(returned, torch.Tensor):
        names = ", ".join(map(repr, name_outputs(returned))) or "no tensors"
        raise ExportError(
            f"the model returns a {type(returned).__name__} ({names}), but training needs one "
            "tensor, one number a class: write a factory whose model returns those of one head "
            "alone"
        )
