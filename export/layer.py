"""Find the target layer in a model's graph and split the model there into trunk and head.

Names and classes play no part: the choice rests on the data flow of the ATen graph that
``torch.export`` records. A *cut* is a node that every tensor path from the image to the logits
passes; only at a cut is the network a composition ``head(trunk(x))``.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from ..runtime.errors import ExportError, TargetLayerError

aten = torch.ops.aten

CONVOLUTIONS = {aten.conv2d.default, aten.conv2d.padding, aten.convolution.default}
# Element-wise, though ATen does not tag them so. Normalisation with frozen statistics is one
# multiply-add per element; getitem takes its first result.
_ELEMENTWISE = {
    aten.hardswish.default,
    aten.hardsigmoid.default,
    aten.mish.default,
    aten._native_batch_norm_legit_no_training.default,
    aten.batch_norm.default,
    aten.dropout.default,
    aten.clone.default,
    aten.alias.default,
    operator.getitem,
}


@dataclass(frozen=True)
class Layer:
    """A place where the network can be cut.

    Attributes:
        name: module path as in ``model.named_modules()``, or the graph node's name where the
            operation belongs to no submodule.
        op: the operation that produces the activations.
        shape: (K, h, w), channels and spatial size of the activations.
        node: the name of the graph node.
    """

    name: str
    op: str
    shape: tuple[int, int, int]
    node: str


@dataclass(frozen=True)
class Split:
    """A model taken apart at its target layer: ``head(trunk(image))`` are the logits.

    Attributes:
        trunk: image [N, 3, H, W] to activations [N, K, h, w].
        head: activations to logits [N, C].
        layer: where the cut is.
        num_classes: C.
        live_bytes: bytes of float32 activations alive at once for one image, at the peak.
        earlier: layers before the target layer that are explained with it, in the network's order.
        stem: image to the activations of the first of these; the trunk, where there are none.
        tail: from there to (activations of each layer after it, ..., logits); the head, where
            there are none.
    """

    trunk: fx.GraphModule
    head: fx.GraphModule
    layer: Layer
    num_classes: int
    live_bytes: int
    earlier: tuple[Layer, ...]
    stem: fx.GraphModule
    tail: fx.GraphModule

    @property
    def layers(self) -> tuple[Layer, ...]:
        """All that are explained, in the network's order."""
        return (*self.earlier, self.layer)


def capture(model: torch.nn.Module, image_size: tuple[int, int]) -> fx.GraphModule:
    """Record ``model`` (in eval mode) as a functional ATen graph with a dynamic batch.

    Args:
        model: takes a float32 image batch [N, 3, H, W] and returns logits [N, C].
        image_size: (H, W), fixed in the graph.

    Raises:
        ExportError: the model does not run on that shape, cannot be traced, or does not return
            one [N, C] tensor.
    """
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    example = torch.zeros(2, 3, *image_size, device=device)
    try:
        with torch.no_grad():
            logits = model(example)
    except Exception as error:
        raise ExportError(
            f"the model does not accept a float32 image batch of shape {tuple(example.shape)}: "
            f"{_first_line(error)}"
        ) from error
    if not isinstance(logits, torch.Tensor) or logits.ndim != 2 or logits.shape[0] != 2:
        got = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise ExportError(
            f"the model must return one tensor of logits of shape (N, classes), but for 2 images "
            f"it returned {got}: wrap it so that it does (detectors and segmenters are not "
            "classifiers)"
        )
    try:
        program = torch.export.export(
            model, (example,), dynamic_shapes=({0: torch.export.Dim("batch")},), strict=False
        ).run_decompositions({})
    except Exception as error:
        raise ExportError(
            "torch.export cannot trace this model (data-dependent control flow, or a batch size "
            f"fixed in its code?): {_first_line(error)}"
        ) from error
    graph_module = program.module(check_guards=False)
    assert isinstance(graph_module, fx.GraphModule)
    graph_module.graph.eliminate_dead_code()
    return graph_module


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _value(node: fx.Node) -> Any:
    return node.meta.get("val")


def shape_of(node: fx.Node) -> tuple[Any, ...]:
    """The recorded shape of a node's tensor; empty where it is none."""
    value = _value(node)
    return tuple(value.shape) if isinstance(value, torch.Tensor) else ()


def _is_spatial(node: fx.Node) -> bool:
    shape = shape_of(node)
    return (
        len(shape) == 4
        and all(isinstance(side, int) for side in shape[1:])
        and shape[2] * shape[3] > 1
    )


def tensor_path(graph: fx.Graph) -> tuple[list[fx.Node], fx.Node, fx.Node]:
    """Nodes on some tensor path from the image to the logits, in order; image; logits."""
    image = next(node for node in graph.nodes if node.op == "placeholder")
    output = next(node for node in graph.nodes if node.op == "output")
    logits = next(iter(output.all_input_nodes))

    def carries_tensor(node: fx.Node) -> bool:
        return not isinstance(_value(node), torch.SymInt | int)

    after = {image}
    for node in graph.nodes:
        if carries_tensor(node) and any(source in after for source in node.all_input_nodes):
            after.add(node)
    before = {logits}
    for node in reversed(list(graph.nodes)):
        if any(user in before for user in node.users):
            before.add(node)
    return [node for node in graph.nodes if node in after and node in before], image, logits


def cuts_of(path: Sequence[fx.Node]) -> list[fx.Node]:
    """Nodes that no edge of the path jumps over."""
    position = {node: index for index, node in enumerate(path)}
    cuts, reach = [], 0
    for index, node in enumerate(path):
        if reach <= index and isinstance(_value(node), torch.Tensor):
            cuts.append(node)
        reach = max([reach, *(position[user] for user in node.users if user in position)])
    return cuts


def is_elementwise(node: fx.Node) -> bool:
    """Whether every output element comes from the elements at the same place."""
    if node.target in _ELEMENTWISE:
        return True
    tags = getattr(node.target, "tags", ())
    return torch.Tag.pointwise in tags


def _outputs_of_modules(graph: fx.Graph) -> dict[str, fx.Node]:
    """The node that is a module's output, by the module's path; for modules called once.

    A ReLU that a block calls twice has two outputs: its name says neither, nor could another tool
    that hooks the module tell them apart.
    """
    calls: dict[str, set[str]] = {}
    last: dict[str, fx.Node] = {}
    for node in graph.nodes:
        for call, (path, *_) in (node.meta.get("nn_module_stack") or {}).items():
            calls.setdefault(path, set()).add(call)
            last[path] = node
    return {path: node for path, node in last.items() if path and len(calls[path]) == 1}


def _module_path(node: fx.Node, outputs: Mapping[str, fx.Node]) -> str:
    """The innermost module whose output the node is; empty if there is none."""
    stack = node.meta.get("nn_module_stack") or {}
    paths = [str(path) for path, *_ in stack.values()]
    return next((path for path in reversed(paths) if outputs.get(path) is node), "")


def _layer(node: fx.Node, outputs: Mapping[str, fx.Node]) -> Layer:
    _, channels, height, width = shape_of(node)
    op = str(getattr(node.target, "_opname", getattr(node.target, "__name__", node.target)))
    if node.target is operator.getitem:  # the first result of a normalisation
        source = node.all_input_nodes[0].target
        op = str(getattr(source, "_opname", op))
    return Layer(
        name=_module_path(node, outputs) or node.name,
        op=op.strip("_").removeprefix("native_").removesuffix("_legit_no_training"),
        shape=(channels, height, width),
        node=node.name,
    )


def list_layers(graph_module: fx.GraphModule) -> list[Layer]:
    """Every place where the network can be cut with spatial activations, from image to logits."""
    path, image, _ = tensor_path(graph_module.graph)
    outputs = _outputs_of_modules(graph_module.graph)
    cuts = [node for node in cuts_of(path) if node is not image and _is_spatial(node)]
    return [_layer(node, outputs) for node in cuts]


def _has_weights(nodes: Sequence[fx.Node]) -> bool:
    """Whether a learned matrix or kernel is used by any of the nodes."""
    return any(
        source.op == "get_attr" and len(shape_of(source)) >= 2
        for node in nodes
        for source in node.all_input_nodes
    )


def _find_target(path: Sequence[fx.Node], cuts: Sequence[fx.Node]) -> fx.Node | None:
    """The activations that follow the last convolution of the feature extractor.

    Last convolution with spatial extent; from there the first cut; on through element-wise
    nodes. What remains must hold learned weights, for a classifier comes after the penultimate
    activations: in a fully convolutional classifier (SqueezeNet) the last convolution is itself
    the classifier, and the one before it is meant.
    """
    position = {node: index for index, node in enumerate(path)}
    for convolution in reversed([n for n in path if n.target in CONVOLUTIONS and _is_spatial(n)]):
        later = [cut for cut in cuts if position[cut] >= position[convolution]]
        if not later or not _is_spatial(later[0]):
            continue
        target = later[0]
        for following in later[1:]:
            between = path[position[target] + 1 : position[following] + 1]
            if not all(map(is_elementwise, between)) or shape_of(following) != shape_of(target):
                break
            target = following
        if _has_weights(path[position[target] + 1 :]):
            return target
    return None


def _named_target(name: str, path: Sequence[fx.Node], cuts: Sequence[fx.Node]) -> fx.Node:
    """The output of the module (or the graph node) called ``name``."""
    candidates = [cut for cut in cuts if _is_spatial(cut) and cut.op != "placeholder"]
    for cut in candidates:
        if cut.name == name:
            return cut
    inside = [
        node
        for node in path
        if any(entry[0] == name for entry in (node.meta.get("nn_module_stack") or {}).values())
    ]
    outputs = _outputs_of_modules(path[0].graph)
    listing = _listing([_layer(cut, outputs) for cut in candidates])
    if not inside:
        raise TargetLayerError(f"the model has no layer '{name}'. It can be cut at: {listing}")
    if inside[-1] not in candidates:
        shape = shape_of(inside[-1])[1:]
        why = (
            f"its output has no spatial extent (shape {shape} for one image)"
            if not _is_spatial(inside[-1])
            else "part of the network goes around it, so its output alone does not determine the "
            "logits"
        )
        raise TargetLayerError(
            f"layer '{name}' cannot be the target layer: {why}. The model can be cut at: {listing}"
        )
    return inside[-1]


def _listing(layers: Sequence[Layer]) -> str:
    if not layers:
        return "nowhere (no operation has spatial activations that everything passes through)"
    shown = layers[-_LISTED:]
    parts = [f"{layer.name} ({layer.op}, {' x '.join(map(str, layer.shape))})" for layer in shown]
    if len(layers) > len(shown):
        parts.insert(0, f"{len(layers) - len(shown)} earlier ones (--list-layers shows them)")
    return ", ".join(parts)


_LISTED = 8


def find_layer(graph_module: fx.GraphModule, name: str | None = None) -> Layer:
    """The target layer: found from the data flow, or the module or node called ``name``.

    Raises:
        TargetLayerError: there is none, or the named one does not exist or cannot be cut at.
    """
    path, _, _ = tensor_path(graph_module.graph)
    cuts = cuts_of(path)
    target = _named_target(name, path, cuts) if name else _find_target(path, cuts)
    if target is None:
        raise TargetLayerError(
            "no target layer found: the network has no convolution with spatial extent after "
            "which every path to the logits meets. Name one with --target-layer; the model can "
            f"be cut at: {_listing(list_layers(graph_module))}"
        )
    return _layer(target, _outputs_of_modules(graph_module.graph))


def earlier_layers(
    graph_module: fx.GraphModule, layer: Layer, names: Sequence[str]
) -> tuple[Layer, ...]:
    """Layers before the target layer, by their modules' or nodes' names, in the network's order.

    Raises:
        TargetLayerError: one does not exist, cannot be cut at, is named twice, or is not before the
            target layer.
    """
    path, _, _ = tensor_path(graph_module.graph)
    cuts = cuts_of(path)
    order = [node.name for node in path]
    found = {node.name: node for node in (_named_target(name, path, cuts) for name in names)}
    if len(found) < len(names):
        raise TargetLayerError(f"the layers {', '.join(names)} are not {len(names)} different ones")
    outputs = _outputs_of_modules(graph_module.graph)
    late = [node for node in found if order.index(node) >= order.index(layer.node)]
    if late:
        raise TargetLayerError(
            f"layer '{_layer(found[late[0]], outputs).name}' is not before the target layer "
            f"'{layer.name}': maps are fused with those of earlier layers"
        )
    return tuple(_layer(found[node], outputs) for node in sorted(found, key=order.index))


def split(graph_module: fx.GraphModule, layer: Layer, earlier: Sequence[Layer] = ()) -> Split:
    """Cut a captured graph into trunk and head. Weights are shared with ``graph_module``.

    Args:
        graph_module: from ``capture``.
        layer: the target layer.
        earlier: from ``earlier_layers``.
    """
    graph = graph_module.graph
    path, image, logits = tensor_path(graph)
    nodes = {node.name: node for node in graph.nodes}
    target = nodes[layer.node]
    trunk = subgraph(graph_module, image, target)
    head = subgraph(graph_module, target, logits, batch_of=image)
    stem, tail = trunk, head
    if earlier:
        first, *later = (nodes[each.node] for each in (*earlier, layer))
        stem = subgraph(graph_module, image, first)
        tail = subgraph(graph_module, first, logits, batch_of=image, on_the_way=later)
    return Split(
        trunk=trunk,
        head=head,
        layer=layer,
        num_classes=int(shape_of(logits)[1]),
        live_bytes=peak_bytes(path),
        earlier=tuple(earlier),
        stem=stem,
        tail=tail,
    )


def subgraph(
    owner: fx.GraphModule,
    start: fx.Node,
    end: fx.Node,
    batch_of: fx.Node | None = None,
    on_the_way: Sequence[fx.Node] = (),
) -> fx.GraphModule:
    """The part of ``owner`` that computes ``end`` from ``start``.

    With nodes ``on_the_way`` it returns theirs and ``end`` as a tuple.

    Sizes that the graph read off ``batch_of`` (the batch, the only dynamic one) are read off
    the new input instead.
    """
    needed: set[fx.Node] = set()
    pending = [end]
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
    graph.output(tuple(copies[node] for node in (*on_the_way, end)) if on_the_way else copies[end])
    return fx.GraphModule(owner, graph)


def peak_bytes(path: Sequence[fx.Node]) -> int:
    """Bytes of the path's tensors alive at the worst moment, per image, in float32."""
    position = {node: index for index, node in enumerate(path)}
    change = [0] * (len(path) + 1)
    for index, node in enumerate(path):
        shape = shape_of(node)[1:]
        if not shape or not all(isinstance(side, int) for side in shape):
            continue
        size = 4
        for side in shape:
            size *= side
        last = max([index, *(position[user] for user in node.users if user in position)])
        change[index] += size
        change[last + 1] -= size
    peak = alive = 0
    for delta in change:
        alive += delta
        peak = max(peak, alive)
    return peak


# Above this share of the arithmetic, what follows the target layer is no classifier head but
# most of the network.
_MAX_HEAD_SHARE = 0.5


def check_is_head(parts: Split) -> None:
    """Refuse a split whose head does most of the network's work.

    That is what a vision transformer looks like: its last convolution cuts the picture into
    patches, and everything follows.

    Raises:
        TargetLayerError: with the share found.
    """
    from torch.utils.flop_counter import FlopCounterMode

    counts = []
    image = next(iter(parts.trunk.graph.nodes)).meta["val"].shape[1:]
    x = torch.zeros(1, *image)
    for part in (parts.trunk, parts.head):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            x = part(x)
        counts.append(counter.get_total_flops())
    share = counts[1] / max(1, sum(counts))
    if share > _MAX_HEAD_SHARE:
        raise TargetLayerError(
            f"the network's last convolution ({parts.layer.name}) comes early: {share:.0%} of its "
            "arithmetic follows it. Activation maps explain convolutional networks; transformers "
            "are not supported, because their last feature map is not a convolution's. To explain "
            "that layer all the same, name it with --target-layer"
        )
