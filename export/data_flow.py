"""The data flow of a classifier: paths, cut points, and the layers that can be explained.

A *cut point* is a tensor that every path from the image to the logits passes through (a dominator
of the logits). Only there is the network a composition head(backbone(x)).
"""

from __future__ import annotations

import ast
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import onnx_ir as ir

from .arrangement import Arrangement, find_arrangement
from .gradient.reverse import find_path
from .gradient_reach import Reach, find_reach
from .place_flow import find_places
from .places import Places
from .plain_model import PlainModel

MODULE_KEY = "pkg.torch.onnx.name_scopes"
# Operators that make a tensor comparable from channel to channel, as blocks do at their beginning.
NORMALISATIONS = {
    "LayerNormalization", "RMSNormalization", "BatchNormalization", "GroupNormalization",
    "InstanceNormalization", "LpNormalization",
}  # fmt: skip
# Operators that change neither which elements there are nor their values.
_MOVING = {"Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity"}


@dataclass(frozen=True)
class Layer:
    """Activations inside the network.

    Attributes:
        name: the module's path where the file knows it, else the node's name.
        op: the operator that makes the activations.
        shape: (K, h, w), channels and spatial size; of the usual image where sizes are free.
        value: the tensor.
        arrangement: how the tensor becomes [N, K, h, w].
        is_cut_point: whether everything passes through the tensor; else part of the network goes
            around it, as a residual connection around a block's normalisation.
        reason: why it is the target layer; empty where it was named or is not.
    """

    name: str
    op: str
    shape: tuple[int, int, int]
    value: ir.Value
    arrangement: Arrangement
    is_cut_point: bool
    reason: str = field(default="", compare=False)

    @property
    def determines_scores(self) -> bool:
        """Whether the class scores follow from the activations [K, h, w] alone."""
        return self.is_cut_point and self.arrangement.is_complete


class DataFlow:
    """The data flow of a classifier from the image to the logits.

    Attributes:
        plain: the model.
        logits: the tensor at which it ends.
        nodes: all nodes of the graph before anything was added to it, in order.
        path: the nodes on some path from image to logits, in order.
        on_path: the tensors there.
        is_embedding: whether the network ends in an image embedding, which class embeddings follow.
    """

    def __init__(self, plain: PlainModel, logits: ir.Value, is_embedding: bool = False) -> None:
        self.plain = plain
        self.is_embedding = is_embedding
        self.logits = logits
        plain.graph.sort()
        self.nodes = list(plain.graph)
        self.path, self.on_path = find_path([plain.image], logits, self.nodes)

    @cached_property
    def position(self) -> dict[ir.Node, int]:
        """Where on the path each node is."""
        return {node: index for index, node in enumerate(self.path)}

    @cached_property
    def places(self) -> dict[ir.Value, Places]:
        """Which place of the image each element of every tensor on the path belongs to."""
        return find_places(self.path, self.plain.image, self.plain.layout, self.plain.shapes)

    @cached_property
    def reach(self) -> dict[ir.Value, Reach]:
        """The elements of each tensor with respect to which the scores have a gradient."""
        return find_reach(self.path, self.logits, self.plain.shapes)

    @cached_property
    def cut_points(self) -> list[ir.Node]:
        """The dominators of the logits: nodes whose single output every path passes through."""
        position = self.position
        cut_points, reach = [], 0
        for use in self.plain.image.uses():
            reach = max(reach, position.get(use.node, 0))
        for index, node in enumerate(self.path):
            outputs = [value for value in node.outputs if value in self.on_path]
            if reach <= index and len(outputs) == 1:
                cut_points.append(node)
            for value in outputs:
                for use in value.uses():
                    reach = max(reach, position.get(use.node, 0))
        return cut_points

    @cached_property
    def cut_nodes(self) -> set[ir.Node]:
        """The same as a set."""
        return set(self.cut_points)

    @cached_property
    def layers(self) -> list[Layer]:
        """The layers that are offered: cut points, and the normalisations that read them.

        All have places, for which there is a gradient. Where a node only moves the elements of the
        layer before it, that is the same layer.
        """
        layers: list[Layer] = []
        sources: set[ir.Value | None] = set()
        for node in self.path:
            if node in self.cut_nodes or self._normalises_cut_point(node):
                layer = self.layer_at(node)
                if layer is None or not self.has_gradient(layer):
                    continue
                is_moved = node.op_type in _MOVING and sources & set(node.inputs)
                if is_moved:
                    sources.add(layer.value)
                    continue
                sources = {layer.value}
                layers.append(layer)
        return layers

    def _normalises_cut_point(self, node: ir.Node) -> bool:
        """Tell whether a block begins with this node: it has tokens and goes around it."""
        source = node.inputs[0] if node.inputs else None
        if node.op_type not in ("LayerNormalization", "RMSNormalization") or source is None:
            return False
        return source.producer() in self.cut_nodes

    def has_gradient(self, layer: Layer) -> bool:
        """Tell whether the class scores have a gradient with respect to any place of a layer."""
        reach = self.reach.get(layer.value)
        return reach is not None and bool((reach & (self.places[layer.value][0] >= 0)).any())

    def gradient_share(self, layer: Layer) -> float:
        """Compute the share of a layer's places for which the class scores have a gradient."""
        reach = self.reach.get(layer.value)
        if reach is None:
            return 0.0
        labels, needed = np.broadcast_arrays(self.places[layer.value][0], reach)
        is_place = labels >= 0
        reached = np.unique(labels[needed & is_place])
        return float(len(reached) / max(1, len(np.unique(labels[is_place]))))

    @cached_property
    def modules(self) -> dict[ir.Node, list[str]]:
        """The paths of the PyTorch modules that each node belongs to, outermost first."""
        return {node: read_modules(node) for node in self.nodes}

    @cached_property
    def _module_outputs(self) -> dict[str, ir.Node]:
        """The last node of each module that is called once.

        A ReLU that a block calls twice has two outputs, and its name identifies neither.
        """
        last: dict[str, ir.Node] = {}
        runs: dict[str, int] = {}
        before: set[str] = set()
        for node in self.path:
            if MODULE_KEY not in node.metadata_props:
                continue  # added by the exporter's rewriting
            present = set(self.modules[node])
            for name in present:
                last[name] = node
                runs[name] = runs.get(name, 0) + (name not in before)
            before = present
        return {name: node for name, node in last.items() if runs[name] == 1}

    def module_of(self, node: ir.Node) -> str | None:
        """Find the innermost module whose output a node computes.

        Its elements may be moved at the end of the module, as channels-last layers do.
        """
        inside, end = set(self.modules[node]), node
        while True:
            names = [name for name in self.modules[end] if self._module_outputs.get(name) is end]
            enclosing = [name for name in names if name in inside]
            if enclosing:
                return enclosing[-1]
            uses = tuple(end.outputs[0].uses())
            if len(uses) != 1 or uses[0].node.op_type not in _MOVING:
                return None
            end = uses[0].node

    def layer_at(self, node: ir.Node) -> Layer | None:
        """Describe a node's output as a layer, if its elements have channels and places."""
        value = next((output for output in node.outputs if output in self.on_path), None)
        dims = self.plain.shapes.dims.get(value) if value is not None else None
        if value is None or dims is None:
            return None
        arrangement = find_arrangement(self.places.get(value), dims, self.plain.shapes)
        if arrangement is None or arrangement.shape[1] * arrangement.shape[2] <= 1:
            return None
        name = self.module_of(node) or str(value.name).removesuffix(":0")
        return Layer(
            name, node.op_type, arrangement.shape, value, arrangement, node in self.cut_nodes
        )

    def find_bypasses(self, layer: Layer) -> list[ir.Value]:
        """Find what is read after a layer and depends on the image, but not on the layer.

        Shapes that depend on the number of images are among them.
        """
        after, _ = find_path([layer.value], self.logits, self.nodes, through_shapes=True)
        computed = {value for node in after for value in node.outputs}
        found = [
            value
            for node in after
            for value in node.inputs
            if value is not None and value is not layer.value and value not in computed
            if value in self.places or value in self.plain.shapes.varying
        ]
        return list(dict.fromkeys(found))

    def image_bytes(self) -> int:
        """Compute the peak memory of one image in float32: bytes of tensors alive at once.

        Of the largest image where sizes are free.
        """
        position = self.position
        change = [0] * (len(self.path) + 1)
        for index, node in enumerate(self.path):
            for value in node.outputs:
                if value not in self.plain.shapes.dims:
                    continue
                count = self.plain.shapes.count_largest(value)
                last = max([index, *(position.get(use.node, index) for use in value.uses())])
                change[index] += 4 * count
                change[last + 1] -= 4 * count
        peak = alive = 0
        for delta in change:
            alive += delta
            peak = max(peak, alive)
        return peak


def read_modules(node: ir.Node) -> list[str]:
    """Read the paths of the PyTorch modules that a node belongs to, outermost first."""
    text = node.metadata_props.get(MODULE_KEY)
    if text is None:
        return []
    try:
        scopes = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return []
    # The last scope is the operation, the first one the model.
    return [str(scope) for scope in scopes[:-1] if scope]
