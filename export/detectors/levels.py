"""Find the layers of a detector to explain: the last of each level before the predictions."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from ...runtime.errors import TargetLayerError
from ..data_flow import Layer
from ..default_layer import has_weights
from ..gradient.reverse import find_path
from ..gradient_reach import find_reach
from ..layers import Network
from .extent import follows, list_single_cells, widen

_MOVING = {"Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Cast"}


def find_levels(
    network: Network, other: ir.Value, names: Sequence[str]
) -> tuple[tuple[Layer, ...], str]:
    """Find the layers whose maps are added, in the network's order, and why these.

    The backbone and its pyramid are what scores and boxes both follow from, by learned weights. A
    level is a tensor of it that a node beyond reads, as the first convolution of a branch, or
    where candidates read one cell of that alone, the last one before of which they read more.
    Where such tensors have no places of the image, as the queries of DETR, it is the last one with
    places that everything passes: the encoder's output, or what is joined to it.

    Args:
        network: from the image to what is explained.
        other: the boxes where scores are explained, and the other way round.
        names: layers that the user names; else these are found.

    Raises:
        TargetLayerError: no level is proved, or a named layer cannot be explained.
    """
    if names:
        layers = [network.find_named(name) for name in names]
        if len({layer.value for layer in layers}) < len(layers):
            raise TargetLayerError(
                f"the layers {', '.join(names)} are not {len(names)} different ones"
            )
        return tuple(sorted(layers, key=network.order)), ""
    shared = _levels_of_pyramid(network, other)
    if shared:
        found = widen(network, shared)
        return tuple(found), _describe_levels(network, shared, found)
    found = _last_with_places(network)
    if found:
        return tuple(found), (
            "the last tensors with places of the image that everything passes: what follows are "
            "queries"
        )
    raise TargetLayerError(
        "no layers were found that both scores and boxes follow from and whose elements are proved "
        "to belong to places of the image. Name them with --target-layer NAME,NAME"
        f"; of single ones there are: {network.list_layers()}"
    )


def _describe_levels(network: Network, shared: Sequence[Layer], found: Sequence[Layer]) -> str:
    reason = "the last tensors that both scores and boxes follow from, one for each level"
    if list(shared) != list(found):
        reason += ", or the last ones before them of which a candidate reads more than one cell"
    dots = [layer.name for layer in list_single_cells(network, found)]
    if dots:
        reason += (
            f". Of {', '.join(dots)} a candidate reads its own cell alone, and maps of its "
            "detections are dots there: --target-layer names earlier layers"
        )
    return reason


def list_pyramid(network: Network, chosen: Sequence[Layer]) -> list[Layer]:
    """List the layers of backbone and pyramid: what everything passes, and what several nodes read.

    Args:
        network: from the image to what is explained.
        chosen: layers that are among them in any case.
    """
    layers = {layer.value: layer for layer in (*network.layers, *chosen)}
    for node in network.path:
        for value in node.outputs:
            readers = {use.node for use in value.uses() if use.node in network.position}
            # Sigmoid and product of one SiLU are two readers and no branch.
            if len(readers) < 2 or any(reader.op_type == "Sigmoid" for reader in readers):
                continue
            layer = network.layer_at(node)
            if layer is not None and network.has_gradient(layer):
                layers.setdefault(layer.value, layer)
    return sorted(layers.values(), key=network.order)


def _levels_of_pyramid(network: Network, other: ir.Value) -> list[Layer]:
    """Find each tensor of what scores and boxes share that a node of one of them alone reads."""
    own, others = (_differentiable_nodes(network, end) for end in (network.logits, other))
    shared = own & others
    learned_after = _followed_by_weights(network)
    pyramid = {node for node in shared if any(value in learned_after for value in node.outputs)}
    layers: list[Layer] = []
    for node in network.path:
        if node not in pyramid:
            continue
        readers = {use.node for value in node.outputs for use in value.uses()}
        beyond = [reader for reader in readers if reader in own | others and reader not in pyramid]
        if not beyond:
            continue
        if all(_is_one_place(network, value) for value in node.outputs):
            continue  # what it reads is explained, in the level before
        layer = network.layer_at(node)
        if layer is None or not network.has_gradient(layer):
            return []  # queries, or elements of which nothing says where they belong
        if not any(_continues(network, before, layer) for before in layers):
            layers.append(layer)
    return layers


def _differentiable_nodes(network: Network, end: ir.Value) -> set[ir.Node]:
    """Find the nodes whose outputs the end has a gradient with respect to any element of."""
    shapes = network.plain.shapes
    path, _ = find_path(
        [network.plain.image], end, network.nodes, carries=lambda value: follows(network, value)
    )
    reach = find_reach(path, end, shapes)
    return {
        node
        for node in path
        if any(value in reach and reach[value].any() for value in node.outputs)
    }


def _is_one_place(network: Network, value: ir.Value) -> bool:
    """Tell whether a tensor is a feature map of one place, as the coarsest level of an SSD."""
    channels, *spatial = sorted(
        (side for side in network.plain.shapes.dims.get(value, ()) if isinstance(side, int)),
        reverse=True,
    ) or [0]
    return channels > 0 and len(spatial) == 2 and spatial == [1, 1]


def _continues(network: Network, before: Layer, layer: Layer) -> bool:
    """Tell whether a layer follows from one of the same places, as a branch with two readers."""
    if before.shape[1:] != layer.shape[1:]:
        return False
    between, _ = find_path([before.value], layer.value, network.nodes)
    return bool(between)


def _followed_by_weights(network: Network) -> set[ir.Value]:
    """Find the tensors on the path that learned weights follow."""
    found: set[ir.Value] = set()
    for node in reversed(network.path):
        if has_weights(network, [node]) or any(value in found for value in node.outputs):
            found.update(value for value in node.inputs if value in network.on_path and value)
    return found


def _last_with_places(network: Network) -> list[Layer]:
    """Find the last dominator with places and a gradient; of one that joins levels, its parts."""
    for node in reversed(network.cut_points):
        if not has_weights(network, network.path[network.position[node] + 1 :]):
            continue
        layer = network.layer_at(node)
        if layer is not None and network.has_gradient(layer):
            return [layer]
        if node.op_type == "Concat":
            producers = [_before_moves(value) for value in node.inputs]
            parts = [None if each is None else network.layer_at(each) for each in producers]
            layers = [part for part in parts if part is not None and network.has_gradient(part)]
            if layers and len(layers) == len(parts):
                return sorted(layers, key=network.order)
    return []


def _before_moves(value: ir.Value | None) -> ir.Node | None:
    """Find the node that computes what a tensor holds, before it was only moved."""
    node = None if value is None else value.producer()
    while node is not None and node.op_type in _MOVING and node.inputs[0] is not None:
        node = node.inputs[0].producer()
    return node
