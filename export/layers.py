"""Find the target layer from the data flow of the graph, whatever the architecture is called.

A *cut point* is a tensor that every path from the image to the logits passes through (a dominator
of the logits). Only there is the network a composition head(backbone(x)).
"""

from __future__ import annotations

import ast
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import onnx_ir as ir

from ..runtime.errors import TargetLayerError
from .axes import Axes, find_axes, find_channel_order
from .gradient.reverse import find_path
from .plain_model import PlainModel
from .recorder import Size, lengths_at

MODULE_KEY = "pkg.torch.onnx.name_scopes"
# Operators after which a tensor is still the same feature map, element by element.
ELEMENTWISE = {
    "Relu", "LeakyRelu", "PRelu", "ThresholdedRelu", "Elu", "Selu", "Celu", "Gelu", "Erf",
    "Sigmoid", "HardSigmoid", "HardSwish", "Swish", "Mish", "Tanh", "Softplus", "Softsign", "Clip",
    "Exp", "Pow", "Add", "Sub", "Mul", "Div", "Neg", "Max", "Min", "Sqrt", "Abs", "Log",
    "Reciprocal", "Identity", "Cast", "Dropout", "BatchNormalization", "Where", "QuantizeLinear",
    "DequantizeLinear",
}  # fmt: skip
# Alone on the path, one of these begins a pooling layer (generalised mean).
_POOLING_STEPS = {"Pow", "Sqrt", "Exp", "Log", "Abs", "Reciprocal"}
_PRODUCTS = {"Conv", "ConvTranspose", "MatMul", "Gemm", "Einsum"}
_LINEAR = {"Conv", "ConvTranspose", "MatMul", "Gemm", "BatchNormalization", "Add", "Sub"}
# A larger share of the arithmetic after the target layer means that it is not near the end.
_MAX_HEAD_SHARE = 0.5
# A hybrid's last block may have attention within and across windows; more is a transformer.
_MAX_ATTENTION = 2
_LISTED = 8


@dataclass(frozen=True)
class Layer:
    """Activations at a cut point of the network.

    Attributes:
        name: the module's path where the file knows it, else the node's name.
        op: the operator that makes the activations.
        shape: (K, h, w), channels and spatial size; of the usual image where sizes are free.
        value: the tensor.
        order: the permutation that transposes the tensor to [N, K, h, w].
    """

    name: str
    op: str
    shape: tuple[int, int, int]
    value: ir.Value
    order: tuple[int, int, int, int]


class Network:
    """The data flow of a classifier from the image to the logits.

    Attributes:
        plain: the model.
        logits: the tensor at which it ends.
        nodes: all nodes of the graph before anything was added to it, in order.
        path: the nodes on some path from image to logits, in order.
    """

    def __init__(self, plain: PlainModel, logits: ir.Value, is_embedding: bool = False) -> None:
        self.plain = plain
        self._is_embedding = is_embedding
        self.logits = logits
        plain.graph.sort()
        self.nodes = list(plain.graph)
        self.path, self._on_path = find_path([plain.image], logits, self.nodes)

    @cached_property
    def axes(self) -> dict[ir.Value, Axes]:
        """What the axes of every tensor on the path are."""
        return find_axes(self.path, self.plain.image, self.plain.layout, self.plain.shapes)

    @cached_property
    def cut_points(self) -> list[ir.Node]:
        """The dominators of the logits: nodes whose single output every path passes through."""
        position = {node: index for index, node in enumerate(self.path)}
        cut_points, reach = [], 0
        for use in self.plain.image.uses():
            reach = max(reach, position.get(use.node, 0))
        for index, node in enumerate(self.path):
            outputs = [value for value in node.outputs if value in self._on_path]
            if reach <= index and len(outputs) == 1:
                cut_points.append(node)
            for value in outputs:
                for use in value.uses():
                    reach = max(reach, position.get(use.node, 0))
        return cut_points

    @cached_property
    def layers(self) -> list[Layer]:
        """The cut points whose activations have channels and a spatial extent."""
        return [layer for node in self.cut_points if (layer := self.layer_at(node)) is not None]

    @cached_property
    def _modules(self) -> dict[ir.Node, list[str]]:
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
            present = set(self._modules[node])
            for name in present:
                last[name] = node
                runs[name] = runs.get(name, 0) + (name not in before)
            before = present
        return {name: node for name, node in last.items() if runs[name] == 1}

    def module_of(self, node: ir.Node) -> str | None:
        """Find the innermost module whose output a node computes."""
        names = [name for name in self._modules[node] if self._module_outputs.get(name) is node]
        return names[-1] if names else None

    def layer_at(self, node: ir.Node) -> Layer | None:
        """Describe a node's output as a layer, if it has channels and a spatial extent."""
        value = next((output for output in node.outputs if output in self._on_path), None)
        dims = self.plain.shapes.dims.get(value) if value is not None else None
        if value is None or dims is None:
            return None
        order = find_channel_order(self.axes.get(value), dims)
        if order is None:
            return None
        spatial = [dims[axis] for axis in order[1:]]
        if any(isinstance(side, Size) and side.counts_images for side in spatial):
            return None
        channels, height, width = lengths_at(spatial, self.plain.shapes.one)
        if height * width <= 1:
            return None
        name = self.module_of(node) or str(value.name).removesuffix(":0")
        return Layer(name, node.op_type, (channels, height, width), value, order)

    def find(self, name: str | None = None) -> Layer:
        """Find the target layer from the data flow, or the one that is called ``name``.

        Raises:
            TargetLayerError: there is none, or the named one cannot be the target layer.
        """
        if name is not None:
            return self.find_named(name)
        layer = self._find_last_features()
        if layer is None:
            raise TargetLayerError(
                "no target layer found: no convolution with spatial extent is followed by a point "
                "that every path to the class scores passes. Name one with --target-layer; the "
                f"model can be cut at: {self._list_layers()}"
            )
        self._check_is_last(layer)
        return layer

    def _find_last_features(self) -> Layer | None:
        """Find the activations that follow the last convolution of the backbone.

        These are at the first cut point after the last convolution with spatial extent, moved on
        over element-wise operators. The rest must hold learned weights: in a fully convolutional
        classifier the last convolution is the classifier, so the one before it counts.
        """
        position = {node: index for index, node in enumerate(self.path)}
        convolutions = [
            node for node in self.path if node.op_type == "Conv" and self._has_extent(node)
        ]
        for convolution in reversed(convolutions):
            later = [cut for cut in self.cut_points if position[cut] >= position[convolution]]
            layer = self.layer_at(later[0]) if later else None
            if layer is None:
                continue
            last = later[0]
            for following in later[1:]:
                inside = self.path[position[last] + 1 : position[following] + 1]
                next_layer = self.layer_at(following)
                if (
                    next_layer is None
                    or next_layer.shape != layer.shape
                    or not all(node.op_type in ELEMENTWISE | {"Transpose"} for node in inside)
                    or self._begins_pooling(following)
                ):
                    break
                if following.op_type != "Transpose":  # of which the same layer is the source
                    last, layer = following, next_layer
            # Class embeddings are learned weights that follow an image embedding.
            if self._is_embedding or self._has_weights(self.path[position[last] + 1 :]):
                return layer
        return None

    def _has_extent(self, node: ir.Node) -> bool:
        dims = self.plain.shapes.dims.get(node.outputs[0], ())
        return len(dims) == 4 and dims[2:] != (1, 1)

    def _begins_pooling(self, node: ir.Node) -> bool:
        if node.op_type in _POOLING_STEPS:
            return True
        if node.op_type != "Clip" or len(node.inputs) < 2 or node.inputs[1] is None:
            return False
        least = self.plain.shapes.constants.get(node.inputs[1])
        unbounded = len(node.inputs) < 3 or node.inputs[2] is None
        if least is None or float(least) <= 0 or not unbounded:
            return False
        # A positive lower bound guards a power or a logarithm. Directly after a linear operator it
        # is the layer's activation as well, for exporters merge ReLU and Clip. After another
        # activation it only guards.
        before = None if node.inputs[0] is None else node.inputs[0].producer()
        return before is None or not self._is_linear(before)

    def _is_linear(self, node: ir.Node) -> bool:
        if node.op_type in ("Mul", "Div"):  # by constants
            return sum(value in self._on_path for value in node.inputs) == 1
        return node.op_type in _LINEAR

    def _has_weights(self, nodes: Sequence[ir.Node]) -> bool:
        """Tell whether a learned matrix or kernel enters, even through other operators."""
        return any(
            self._is_learned(value)
            for node in nodes
            if node.op_type in _PRODUCTS
            for value in node.inputs
            if value is not None and value not in self._on_path
        )

    def _is_learned(self, value: ir.Value) -> bool:
        pending, visited = [value], set()
        while pending:
            current = pending.pop()
            if current in visited:
                continue
            visited.add(current)
            tensor = current.const_value
            if tensor is not None and current.is_initializer():
                if len(tensor.shape) >= 2 and tensor.size > 1:
                    return True
                continue
            node = current.producer()
            if node is not None:
                pending.extend(v for v in node.inputs if v is not None)
        return False

    def _check_is_last(self, layer: Layer) -> None:
        """Refuse a layer after which much of the network follows, as in a vision transformer."""
        node = layer.value.producer()
        assert node is not None
        place = self.path.index(node)
        counts = [_count_multiplications(step, self.plain) for step in self.path]
        share = sum(counts[place + 1 :]) / max(1, sum(counts))
        attention = sum(step.op_type in ("Softmax", "Attention") for step in self.path[place + 1 :])
        if share > _MAX_HEAD_SHARE or attention > _MAX_ATTENTION:
            after = (
                f"{attention} attention layers follow it"
                if attention > _MAX_ATTENTION
                else f"{share:.0%} of its arithmetic follows it"
            )
            raise TargetLayerError(
                f"the network's last convolution ({layer.name}) comes early: {after}. Activation "
                "maps explain convolutional networks; transformers are not supported. To explain "
                "that layer all the same, name it with --target-layer"
            )

    def find_named(self, name: str) -> Layer:
        """Find the layer of a module, node or tensor by its name.

        Raises:
            TargetLayerError: it does not exist or cannot be cut at.
        """
        for candidate in self.layers:
            node = candidate.value.producer()
            if node is not None and name in (node.name, candidate.value.name, candidate.name):
                return candidate
        of_module = [node for node in self.path if name in self._modules[node]]
        of_name = (n for n in self.path if name in (n.name, *(v.name for v in n.outputs)))
        node = of_module[-1] if of_module else next(of_name, None)
        if node is None:
            raise TargetLayerError(
                f"the model has no layer '{name}'. It can be cut at: {self._list_layers()}"
            )
        layer = self.layer_at(node) if node in self.cut_points else None
        if layer is None:
            dims = self.plain.shapes.dims.get(node.outputs[0], ())[1:]
            why = (
                "part of the network goes around it, so its output alone does not determine the "
                "class scores"
                if node not in self.cut_points
                else f"its output has no spatial extent (shape {dims} for one image)"
            )
            raise TargetLayerError(
                f"layer '{name}' cannot be the target layer: {why}. The model can be cut at: "
                f"{self._list_layers()}"
            )
        return layer

    def find_earlier(self, layer: Layer, names: Sequence[str]) -> tuple[Layer, ...]:
        """Find layers before the target layer by name, in the network's order.

        Raises:
            TargetLayerError: one cannot be cut at, is named twice, or is not before the target
                layer.
        """
        earlier = [self.find_named(name) for name in names]
        order = {other.value: index for index, other in enumerate(self.layers)}
        if len({other.value for other in earlier}) < len(earlier):
            raise TargetLayerError(
                f"the layers {', '.join(names)} are not {len(names)} different ones"
            )
        for other in earlier:
            if order[other.value] >= order[layer.value]:
                raise TargetLayerError(
                    f"layer '{other.name}' is not before the target layer '{layer.name}': maps are "
                    "fused with those of earlier layers"
                )
        return tuple(sorted(earlier, key=lambda other: order[other.value]))

    def _list_layers(self) -> str:
        layers = self.layers
        if not layers:
            return "nowhere (no operator has spatial activations that everything passes through)"
        last = layers[-_LISTED:]
        parts = [
            f"{layer.name} ({layer.op}, {' x '.join(map(str, layer.shape))})" for layer in last
        ]
        if len(layers) > len(last):
            parts.insert(0, f"{len(layers) - len(last)} earlier ones (--list-layers shows them)")
        return ", ".join(parts)

    def image_bytes(self) -> int:
        """Compute the peak memory of one image in float32: bytes of tensors alive at once.

        Of the largest image where sizes are free.
        """
        position = {node: index for index, node in enumerate(self.path)}
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


def _count_multiplications(node: ir.Node, plain: PlainModel) -> int:
    """Count the multiplications of one node for one image."""
    dims = plain.shapes.dims
    if node.op_type not in _PRODUCTS or node.outputs[0] not in dims:
        return 0
    out = plain.shapes.count_largest(node.outputs[0])
    first, second = (dims.get(value, ()) if value is not None else () for value in node.inputs[:2])
    if node.op_type in ("Conv", "ConvTranspose"):
        inner = [side for side in second[1:] if isinstance(side, int)]
    else:
        inner = [side for side in first[-1:] if isinstance(side, int)]
    return out * math.prod(inner)
