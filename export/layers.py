"""Find the target layer: from the data flow of the graph, whatever the network is called.

A *cut point* is a tensor that every path from the image to the logits passes (a dominator of the
logits). Only there is the network a composition head(backbone(x)).
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

MODULE_KEY = "pkg.torch.onnx.name_scopes"
# Operators after which a tensor is still the same feature map, element by element.
ELEMENTWISE = {
    "Relu", "LeakyRelu", "PRelu", "ThresholdedRelu", "Elu", "Selu", "Celu", "Gelu", "Erf",
    "Sigmoid", "HardSigmoid", "HardSwish", "Swish", "Mish", "Tanh", "Softplus", "Softsign", "Clip",
    "Exp", "Pow", "Add", "Sub", "Mul", "Div", "Neg", "Max", "Min", "Sqrt", "Abs", "Log",
    "Reciprocal", "Identity", "Cast", "Dropout", "BatchNormalization", "Where", "QuantizeLinear",
    "DequantizeLinear",
}  # fmt: skip
# Where one of these alone carries the path on, a pooling layer has begun (generalised mean).
_POOLING_STEPS = {"Pow", "Sqrt", "Exp", "Log", "Abs", "Reciprocal"}
_PRODUCTS = {"Conv", "ConvTranspose", "MatMul", "Gemm", "Einsum"}
_LINEAR = {"Conv", "ConvTranspose", "MatMul", "Gemm", "BatchNormalization", "Add", "Sub"}
# Above this share of the arithmetic, what follows the target layer is most of the network.
_MAX_HEAD_SHARE = 0.5
# A last block may end in attention within windows and across them; more is a transformer.
_MAX_ATTENTION = 2
_LISTED = 8


@dataclass(frozen=True)
class Layer:
    """A place where the network can be cut.

    Attributes:
        name: the module's path where the file knows it, else the node's name.
        op: the operator that makes the activations.
        shape: (K, h, w), channels and places.
        value: the tensor.
        order: how the tensor is transposed to [N, K, h, w].
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

    def __init__(self, plain: PlainModel, logits: ir.Value) -> None:
        self.plain = plain
        self.logits = logits
        plain.graph.sort()
        self.nodes = list(plain.graph)
        self.path, self._on_path = find_path([plain.image], logits, self.nodes)

    @cached_property
    def axes(self) -> dict[ir.Value, Axes]:
        """The meaning of the axes of every tensor on the path."""
        return find_axes(self.path, self.plain.image, self.plain.layout, self.plain.shapes)

    @cached_property
    def cuts(self) -> list[ir.Node]:
        """The nodes with one output that no edge of the path goes around."""
        position = {node: index for index, node in enumerate(self.path)}
        cuts, reach = [], 0
        for use in self.plain.image.uses():
            reach = max(reach, position.get(use.node, 0))
        for index, node in enumerate(self.path):
            outputs = [value for value in node.outputs if value in self._on_path]
            if reach <= index and len(outputs) == 1:
                cuts.append(node)
            for value in outputs:
                for use in value.uses():
                    reach = max(reach, position.get(use.node, 0))
        return cuts

    @cached_property
    def layers(self) -> list[Layer]:
        """Every place where the network can be cut and has activations with an extent."""
        return [layer for node in self.cuts if (layer := self.layer(node)) is not None]

    @cached_property
    def _modules(self) -> dict[ir.Node, list[str]]:
        return {node: modules_of(node) for node in self.nodes}

    @cached_property
    def _module_outputs(self) -> dict[str, ir.Node]:
        """The node that ends each module; only of modules that are called once.

        A ReLU that a block calls twice has two outputs: its name says neither.
        """
        last: dict[str, ir.Node] = {}
        runs: dict[str, int] = {}
        before: set[str] = set()
        for node in self.path:
            if MODULE_KEY not in node.metadata_props:
                continue  # made by the exporter's own rewriting
            now = set(self._modules[node])
            for name in now:
                last[name] = node
                runs[name] = runs.get(name, 0) + (name not in before)
            before = now
        return {name: node for name, node in last.items() if runs[name] == 1}

    def module_of(self, node: ir.Node) -> str | None:
        """The innermost module whose output a node makes."""
        names = [name for name in self._modules[node] if self._module_outputs.get(name) is node]
        return names[-1] if names else None

    def layer(self, node: ir.Node) -> Layer | None:
        """The layer that ends with a node, if its output has channels and places."""
        value = next((each for each in node.outputs if each in self._on_path), None)
        dims = self.plain.shapes.dims.get(value) if value is not None else None
        if value is None or dims is None:
            return None
        order = find_channel_order(self.axes.get(value), dims)
        if order is None:
            return None
        channels, height, width = (dims[axis] for axis in order[1:])
        if not (isinstance(channels, int) and isinstance(height, int) and isinstance(width, int)):
            return None
        if height * width <= 1:
            return None
        name = self.module_of(node) or str(value.name).removesuffix(":0")
        return Layer(name, node.op_type, (channels, height, width), value, order)

    def find(self, name: str | None = None) -> Layer:
        """The target layer: found from the data flow, or the one that is called ``name``.

        Raises:
            TargetLayerError: there is none, or the named one cannot be the target layer.
        """
        if name is not None:
            return self.named(name)
        found = self._last_features()
        if found is None:
            raise TargetLayerError(
                "no target layer found: the network has no convolution with spatial extent after "
                "which every path to the class scores meets. Name one with --target-layer; the "
                f"model can be cut at: {self._listing()}"
            )
        self._check_is_last(found)
        return found

    def _last_features(self) -> Layer | None:
        """The activations that follow the last convolution of the backbone.

        Last convolution with spatial extent; from there the first cut point; on through
        element-wise operators. What remains must hold learned weights: in a fully convolutional
        classifier the last convolution is itself the classifier, and the one before it is meant.
        """
        position = {node: index for index, node in enumerate(self.path)}
        convolutions = [
            node for node in self.path if node.op_type == "Conv" and self._has_extent(node)
        ]
        for convolution in reversed(convolutions):
            later = [cut for cut in self.cuts if position[cut] >= position[convolution]]
            layer = self.layer(later[0]) if later else None
            if layer is None:
                continue
            last = later[0]
            for following in later[1:]:
                inside = self.path[position[last] + 1 : position[following] + 1]
                further = self.layer(following)
                if (
                    further is None
                    or further.shape != layer.shape
                    or further.order != layer.order
                    or not all(node.op_type in ELEMENTWISE for node in inside)
                    or self._begins_pooling(following)
                ):
                    break
                last, layer = following, further
            if self._has_weights(self.path[position[last] + 1 :]):
                return layer
        return None

    def _has_extent(self, node: ir.Node) -> bool:
        dims = self.plain.shapes.dims.get(node.outputs[0], ())
        return len(dims) == 4 and dims[2] * dims[3] != 1

    def _begins_pooling(self, node: ir.Node) -> bool:
        if node.op_type in _POOLING_STEPS:
            return True
        if node.op_type != "Clip" or len(node.inputs) < 2 or node.inputs[1] is None:
            return False
        least = self.plain.shapes.constants.get(node.inputs[1])
        unbounded = len(node.inputs) < 3 or node.inputs[2] is None
        if least is None or float(least) <= 0 or not unbounded:
            return False
        # A positive lower bound guards a power or a logarithm. Where it comes straight behind a
        # linear operator it is the layer's activation as well: exporters join ReLU and Clip in one,
        # and a network written without the ReLU computes the same function, so it gets the same
        # layer. Behind another activation it only guards.
        before = None if node.inputs[0] is None else node.inputs[0].producer()
        return before is None or not self._is_linear(before)

    def _is_linear(self, node: ir.Node) -> bool:
        if node.op_type in ("Mul", "Div"):  # by stored numbers
            return sum(value in self._on_path for value in node.inputs) == 1
        return node.op_type in _LINEAR

    def _has_weights(self, nodes: Sequence[ir.Node]) -> bool:
        """Whether a learned matrix or kernel enters, be it through other operators."""
        return any(
            self._is_learned(value)
            for node in nodes
            if node.op_type in _PRODUCTS
            for value in node.inputs
            if value is not None and value not in self._on_path
        )

    def _is_learned(self, value: ir.Value) -> bool:
        pending, seen = [value], set()
        while pending:
            each = pending.pop()
            if each in seen:
                continue
            seen.add(each)
            tensor = each.const_value
            if tensor is not None and each.is_initializer():
                if len(tensor.shape) >= 2 and tensor.size > 1:
                    return True
                continue
            node = each.producer()
            if node is not None:
                pending.extend(v for v in node.inputs if v is not None)
        return False

    def _check_is_last(self, layer: Layer) -> None:
        """Refuse a layer after which much of the network follows, as in a vision transformer."""
        node = layer.value.producer()
        assert node is not None
        place = self.path.index(node)
        counts = [_operations(each, self.plain) for each in self.path]
        share = sum(counts[place + 1 :]) / max(1, sum(counts))
        attention = sum(each.op_type in ("Softmax", "Attention") for each in self.path[place + 1 :])
        if share > _MAX_HEAD_SHARE or attention > _MAX_ATTENTION:
            after = (
                f"{attention} attention layers follow it"
                if attention > _MAX_ATTENTION
                else f"{share:.0%} of its arithmetic follows it"
            )
            raise TargetLayerError(
                f"the network's last convolution ({layer.name}) comes early: {after}. Activation "
                "maps explain convolutional networks; transformers are not supported, because "
                "their last feature map is not a convolution's. To explain that layer all the "
                "same, name it with --target-layer"
            )

    def named(self, name: str) -> Layer:
        """The layer of a module, node or tensor.

        Raises:
            TargetLayerError: it does not exist or cannot be cut at.
        """
        for layer in self.layers:
            node = layer.value.producer()
            if node is not None and name in (node.name, layer.value.name, layer.name):
                return layer
        inside = [node for node in self.path if name in self._modules[node]]
        named = (n for n in self.path if name in (n.name, *(v.name for v in n.outputs)))
        node = inside[-1] if inside else next(named, None)
        if node is None:
            raise TargetLayerError(
                f"the model has no layer '{name}'. It can be cut at: {self._listing()}"
            )
        found = self.layer(node) if node in self.cuts else None
        if found is None:
            dims = self.plain.shapes.dims.get(node.outputs[0], ())[1:]
            why = (
                "part of the network goes around it, so its output alone does not determine the "
                "class scores"
                if node not in self.cuts
                else f"its output has no spatial extent (shape {dims} for one image)"
            )
            raise TargetLayerError(
                f"layer '{name}' cannot be the target layer: {why}. The model can be cut at: "
                f"{self._listing()}"
            )
        return found

    def earlier(self, layer: Layer, names: Sequence[str]) -> tuple[Layer, ...]:
        """Layers before the target layer, by name, in the network's order.

        Raises:
            TargetLayerError: one cannot be cut at, is named twice, or is not before the target
                layer.
        """
        found = [self.named(name) for name in names]
        order = {each.value: index for index, each in enumerate(self.layers)}
        if len({each.value for each in found}) < len(found):
            raise TargetLayerError(
                f"the layers {', '.join(names)} are not {len(names)} different ones"
            )
        for each in found:
            if order[each.value] >= order[layer.value]:
                raise TargetLayerError(
                    f"layer '{each.name}' is not before the target layer '{layer.name}': maps are "
                    "fused with those of earlier layers"
                )
        return tuple(sorted(found, key=lambda each: order[each.value]))

    def _listing(self) -> str:
        layers = self.layers
        if not layers:
            return "nowhere (no operator has spatial activations that everything passes through)"
        shown = layers[-_LISTED:]
        parts = [f"{each.name} ({each.op}, {' x '.join(map(str, each.shape))})" for each in shown]
        if len(layers) > len(shown):
            parts.insert(0, f"{len(layers) - len(shown)} earlier ones (--list-layers shows them)")
        return ", ".join(parts)

    def image_bytes(self) -> int:
        """Bytes of float32 tensors alive at once for one image, at the worst moment."""
        position = {node: index for index, node in enumerate(self.path)}
        change = [0] * (len(self.path) + 1)
        for index, node in enumerate(self.path):
            for value in node.outputs:
                dims = self.plain.shapes.dims.get(value)
                if dims is None:
                    continue
                count = math.prod(side if isinstance(side, int) else side.factor for side in dims)
                last = max([index, *(position.get(use.node, index) for use in value.uses())])
                change[index] += 4 * count
                change[last + 1] -= 4 * count
        peak = alive = 0
        for delta in change:
            alive += delta
            peak = max(peak, alive)
        return peak


def modules_of(node: ir.Node) -> list[str]:
    """The paths of the PyTorch modules that a node belongs to, outermost first."""
    text = node.metadata_props.get(MODULE_KEY)
    if text is None:
        return []
    try:
        scopes = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return []
    # The last one is the operation itself, the first one the model.
    return [str(scope) for scope in scopes[:-1] if scope]


def _operations(node: ir.Node, plain: PlainModel) -> int:
    """Multiplications of one node for one image."""
    dims = plain.shapes.dims
    if node.op_type not in _PRODUCTS or node.outputs[0] not in dims:
        return 0
    out = math.prod(s if isinstance(s, int) else s.factor for s in dims[node.outputs[0]])
    first, second = (dims.get(value, ()) if value is not None else () for value in node.inputs[:2])
    if node.op_type in ("Conv", "ConvTranspose"):
        inner = [side for side in second[1:] if isinstance(side, int)]
    else:
        inner = [side for side in first[-1:] if isinstance(side, int)]
    return out * math.prod(inner)
