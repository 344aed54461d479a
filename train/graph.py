"""Record a model as a PyTorch graph, and cut it into parts that can be trained."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..export.arrangement import Arrangement
from ..export.dims import Size
from ..runtime.errors import ExportError, TargetLayerError, reason_of
from .target import Target

aten = torch.ops.aten

# Operators that multiply by learned weights.
LAYERS = {
    aten.conv2d.default,
    aten.conv2d.padding,
    aten.convolution.default,
    aten.linear.default,
    aten.addmm.default,
    aten.mm.default,
}


def capture(model: torch.nn.Module, size: tuple[int, int], channels: int = 3) -> fx.GraphModule:
    """Record a model as a functional ATen graph with a free batch; weights are the model's own.

    Args:
        model: in eval mode; takes [N, channels, H, W].
        size: (H, W), fixed in the graph.
        channels: of the images.

    Raises:
        ExportError: the model cannot be traced.
    """
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    example = torch.zeros(2, channels, *size, device=device)
    try:
        program = torch.export.export(
            model, (example,), dynamic_shapes=({0: torch.export.Dim("batch")},), strict=False
        ).run_decompositions({})
    except Exception as error:
        raise ExportError(f"torch.export cannot trace this model: {reason_of(error)}") from error
    graph_module = program.module(check_guards=False)
    assert isinstance(graph_module, fx.GraphModule)
    graph_module.graph.eliminate_dead_code()
    return graph_module


def recorded_shape(node: fx.Node) -> tuple[Any, ...]:
    """Return the recorded shape of a node's tensor; empty if it has none."""
    value = node.meta.get("val")
    return tuple(value.shape) if isinstance(value, torch.Tensor) else ()


def find_tensor_path(graph: fx.Graph) -> tuple[list[fx.Node], fx.Node, fx.Node]:
    """Find the nodes on any tensor path from input to output, in order; the input; the output."""
    source = next(node for node in graph.nodes if node.op == "placeholder")
    output = next(node for node in graph.nodes if node.op == "output")
    end = next(iter(output.all_input_nodes))
    after = {source}
    for node in graph.nodes:
        carries_tensor = not isinstance(node.meta.get("val"), torch.SymInt | int)
        if carries_tensor and any(each in after for each in node.all_input_nodes):
            after.add(node)
    before = {end}
    for node in reversed(list(graph.nodes)):
        if any(user in before for user in node.users):
            before.add(node)
    return [node for node in graph.nodes if node in after and node in before], source, end


def find_cut_points(path: Sequence[fx.Node]) -> list[fx.Node]:
    """Find the cut points: nodes that every path from input to output passes."""
    position = {node: index for index, node in enumerate(path)}
    cuts, reach = [], 0
    for index, node in enumerate(path):
        if reach <= index and isinstance(node.meta.get("val"), torch.Tensor):
            cuts.append(node)
        reach = max([reach, *(position[user] for user in node.users if user in position)])
    return cuts


def find_target_node(path: Sequence[fx.Node], target: Target) -> fx.Node:
    """Find the node that returns the target layer's activations.

    That is the output of the module of that path, or else the cut point of that name: names of
    nodes alone, which two exporters chose, prove nothing.

    Raises:
        TargetLayerError: neither returns these activations.
    """
    outputs = _module_outputs(path)
    node = outputs.get(target.name) or next(
        (n for n in find_cut_points(path) if n.name == target.name), None
    )
    if node is None or not _matches(node, target):
        raise TargetLayerError(
            f"no module or node '{target.name}' of PyTorch's graph of the model returns these "
            f"activations ({' x '.join(map(str, target.shape))}): name the module that does with "
            "--target-layer"
        )
    return node


def _matches(node: fx.Node, target: Target) -> bool:
    shape, arrangement = recorded_shape(node), target.arrangement
    if arrangement.is_feature_map:
        return len(shape) == 4 and tuple(shape[i] for i in arrangement.order[1:]) == target.shape
    sides = arrangement.array_shape(1)
    return len(shape) == len(sides) and all(
        isinstance(whole, Size) or own == side
        for own, side, whole in zip(shape, sides, arrangement.dims, strict=True)
    )


def _module_outputs(path: Sequence[fx.Node]) -> Mapping[str, fx.Node]:
    """Find the last node of each module that is called once, by the module's path."""
    calls: dict[str, set[str]] = {}
    last: dict[str, fx.Node] = {}
    for node in path:
        for call, (module, *_) in (node.meta.get("nn_module_stack") or {}).items():
            calls.setdefault(module, set()).add(call)
            last[module] = node
    return {module: node for module, node in last.items() if module and len(calls[module]) == 1}


def insert_activations(owner: fx.GraphModule, node: fx.Node, arrangement: Arrangement) -> fx.Node:
    """Return a node with the activations as [N, K, h, w], from which the graph goes on.

    What is arranged otherwise is arranged there and back: transposed, or taken from its places
    among the tokens and put there again.
    """
    if arrangement.is_plain:
        return node
    readers, value = list(node.users), node.meta["val"]
    with owner.graph.inserting_after(node):
        if arrangement.is_feature_map:
            first = owner.graph.call_function(aten.permute.default, (node, [*arrangement.order]))
        else:
            owner.add_submodule("take_places", _TakePlaces(arrangement))
            first = owner.graph.call_module("take_places", (node,))
    with owner.graph.inserting_after(first):
        if arrangement.is_feature_map:
            back = owner.graph.call_function(aten.permute.default, (first, arrangement.inverse))
        else:
            owner.add_submodule("put_places", _PutPlaces(arrangement))
            back = owner.graph.call_module("put_places", (node, first))
    for reader in readers:
        reader.replace_input_with(node, back)
    image = next(node for node in owner.graph.nodes if node.op == "placeholder")
    first.meta["val"] = value.new_empty((image.meta["val"].shape[0], *arrangement.shape))
    back.meta["val"] = value
    return first


class _Places(torch.nn.Module):
    """Knows the positions of a feature map's elements in a tensor of tokens."""

    def __init__(self, arrangement: Arrangement) -> None:
        super().__init__()
        self.arrangement = arrangement
        self._positions: dict[tuple[int, torch.device], torch.Tensor] = {}

    def positions(self, tokens: torch.Tensor) -> tuple[int, torch.Tensor]:
        """Return how many images there are, and the positions [N K h w] in the flat tensor."""
        images = tokens.numel() // math.prod(self.arrangement.array_shape(1))
        key = images, tokens.device
        if key not in self._positions:
            flat = self.arrangement.positions(images).reshape(-1)
            self._positions = {key: torch.from_numpy(flat).to(tokens.device)}
        return images, self._positions[key]


class _TakePlaces(_Places):
    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Arrange tokens as activations [N, K, h, w]."""
        images, positions = self.positions(tokens)
        return tokens.reshape(-1)[positions].reshape(images, *self.arrangement.shape)


class _PutPlaces(_Places):
    def forward(self, tokens: torch.Tensor, activations: torch.Tensor) -> torch.Tensor:
        """Replace the tokens that have places by activations [N, K, h, w]."""
        _, positions = self.positions(tokens)
        flat = tokens.reshape(-1).index_copy(0, positions, activations.reshape(-1))
        return flat.reshape(tokens.shape)


def extract_subgraph(
    owner: fx.GraphModule, start: fx.Node, *ends: fx.Node, batch_of: fx.Node | None = None
) -> fx.GraphModule:
    """Extract the part of a graph that computes ``ends`` from ``start``, differentiable twice.

    Args:
        owner: of the graph; the part shares its weights.
        start: the part's input.
        ends: what it returns: a tensor, or several as a tuple.
        batch_of: the node off which the graph reads the batch size; the part reads it off its
            own input instead.
    """
    needed: set[fx.Node] = set()
    pending = list(ends)
    while pending:
        node = pending.pop()
        if node in needed or node is start or node is batch_of:
            continue
        needed.add(node)
        pending.extend(node.all_input_nodes)
    graph = fx.Graph()
    source = graph.placeholder("input")
    source.meta = dict(start.meta)
    copies = {start: source}
    if batch_of is not None:
        copies[batch_of] = source
    for node in owner.graph.nodes:
        if node in needed:
            copies[node] = graph.node_copy(node, lambda old: copies[old])
            if node.op == "call_function":
                copies[node].target = _DIFFERENTIABLE.get(node.target, node.target)
    graph.output(copies[ends[0]] if len(ends) == 1 else tuple(copies[end] for end in ends))
    return fx.GraphModule(owner, graph)


def frozen_batch_norm(
    x: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    mean: torch.Tensor,
    variance: torch.Tensor,
    momentum: float,
    eps: float,
) -> tuple[torch.Tensor]:
    """Normalise with fixed batch statistics, and return a tuple as ATen does."""
    return (F.batch_norm(x, mean, variance, weight, bias, False, momentum, eps),)


def attention(*arguments: Any, **options: Any) -> torch.Tensor:
    """Compute scaled dot-product attention by the one kernel that has a second derivative."""
    with sdpa_kernel(SDPBackend.MATH):
        return F.scaled_dot_product_attention(*arguments, **options)


# Recorded for inference; these have no derivative, or no second one, of their own.
_DIFFERENTIABLE: dict[Any, Any] = {
    aten._native_batch_norm_legit_no_training.default: frozen_batch_norm,
    aten.scaled_dot_product_attention.default: attention,
    aten.view.default: aten.reshape.default,
}
