"""Replace the fused operators of ONNX Runtime's optimisers by the ONNX operators they stand for.

Files that ``onnxruntime.transformers`` or a saved, optimised session wrote hold them in the domain
``com.microsoft``. The definitions are those of ONNX Runtime's documentation. An operator that has
none here stays, and is refused by name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from ..runtime.errors import ExportError

DOMAIN = "com.microsoft"
_NORMALISATION = "LayerNormalization"
_LEAST_OPSET_OF_NORMALISATION = 17
_EPSILON = 1e-5
_ACTIVATIONS = {"Relu", "Tanh", "Sigmoid", "LeakyRelu", "HardSigmoid", "Clip", "Elu", "HardSwish"}


def mark_early_normalisations(proto: onnx.ModelProto, opset: int) -> None:
    """Move layer normalisations of opsets without any to the domain of fused operators, in place.

    ONNX Runtime's optimisers write them whatever the opset; ONNX's version converter fails there.
    """
    if opset >= _LEAST_OPSET_OF_NORMALISATION:
        return
    for node in proto.graph.node:
        if node.op_type == _NORMALISATION and not node.domain:
            node.domain = DOMAIN
    if not any(each.domain == DOMAIN for each in proto.opset_import):
        proto.opset_import.append(onnx.helper.make_opsetid(DOMAIN, 1))


def expand_contrib_operators(model: ir.Model) -> None:
    """Replace all operators that have a definition here, in place.

    Raises:
        ExportError: one is used in a way that is not defined here, as attention with a mask.
    """
    for node in list(model.graph):
        expand = _EXPANSIONS.get(node.op_type) if node.domain == DOMAIN else None
        if expand is None:
            continue
        fused = _Fused(node)
        results = expand(fused)
        for new in fused.tape.nodes:
            model.graph.insert_before(node, new)
        for old, value in zip(node.outputs, results, strict=False):
            if value is not None:
                value.name = old.name
                old.name = f"{old.name}/fused"
                value.shape, value.type = old.shape, old.type
                old.replace_all_uses_with(value, replace_graph_outputs=True)
        left = [old for old in node.outputs if old.uses() or old.is_graph_output()]
        if left:
            raise fused.refusal(f"its output {left[0].index()} is read")
        model.graph.remove(node, safe=True)


class _Fused:
    """A fused operator, and a tape that records what replaces it."""

    def __init__(self, node: ir.Node) -> None:
        self.node = node
        self.tape = ir.tape.Tape()
        self._count = 0

    def op(self, kind: str, inputs: Sequence[ir.Value | None], **attributes: Any) -> ir.Value:
        """Record a node of one output."""
        name = f"{self.node.name}/{kind}_{self._count}"
        self._count += 1
        value = self.tape.op(kind, inputs, attributes, name=name)
        value.name = name
        return value

    def number(self, value: float) -> ir.Value:
        """Record a constant of the type of the operator's numbers."""
        kinds = [each.dtype for each in self.node.inputs if each is not None and each.dtype]
        kind = next((each for each in kinds if each.is_floating_point()), None)
        array = np.asarray(value, np.float32 if kind is None else kind.numpy())
        constant = self.op("Constant", [], value=ir.tensor(array))
        return constant if kind is not None else self.op("CastLike", [constant, self.given(0)])

    def integers(self, *values: int) -> ir.Value:
        """Record a constant of whole numbers."""
        return self.op("Constant", [], value=ir.tensor(np.array(values, np.int64)))

    def input(self, index: int) -> ir.Value | None:
        """Return an input, None where it is left out."""
        return self.node.inputs[index] if index < len(self.node.inputs) else None

    def given(self, index: int) -> ir.Value:
        """Return an input that must be given."""
        value = self.input(index)
        if value is None:
            raise self.refusal(f"its input {index} is missing")
        return value

    def attribute(self, name: str, default: Any) -> Any:
        """Return an attribute's value."""
        attribute = self.node.attributes.get(name)
        return default if attribute is None else attribute.value

    def refuse_inputs(self, *indices: int) -> None:
        """Refuse inputs that the definition here leaves out."""
        for index in indices:
            if self.input(index) is not None:
                raise self.refusal(f"its input {index} is given")

    def refusal(self, why: str) -> ExportError:
        """Make the error that names the node."""
        return ExportError(
            f"the node '{self.node.name}' is {DOMAIN}::{self.node.op_type}, of ONNX Runtime's "
            f"optimisers, and {why}, for which it is not known how to write it in ONNX's "
            "operators. Explain the file as it was before that step"
        )

    def add(self, value: ir.Value, *indices: int) -> ir.Value:
        """Add the inputs that are given."""
        for index in indices:
            other = self.input(index)
            if other is not None:
                value = self.op("Add", [value, other])
        return value


def _activate(fused: _Fused, value: ir.Value, kind: str, numbers: Sequence[float]) -> ir.Value:
    """Apply the activation that was fused; ``numbers`` are its parameters, in order."""
    if not kind:
        return value
    if kind not in _ACTIVATIONS:
        raise fused.refusal(f"its activation is {kind}")
    if kind == "Clip":
        low, high = numbers
        return fused.op(kind, [value, fused.number(low), fused.number(high)])
    names = {"LeakyRelu": ["alpha"], "Elu": ["alpha"], "HardSigmoid": ["alpha", "beta"]}
    attributes = dict(zip(names.get(kind, []), map(float, numbers), strict=False))
    return fused.op(kind, [value], **attributes)


def _convolution(fused: _Fused) -> list[ir.Value | None]:
    """activation(Conv(X, W, B) + Z)."""
    own = ("activation", "activation_params")
    rest = {k: a.value for k, a in fused.node.attributes.items() if k not in own}
    inputs = [fused.given(0), fused.given(1)]
    bias = fused.input(2)
    value = fused.op("Conv", inputs if bias is None else [*inputs, bias], **rest)
    value = fused.add(value, 3)
    kind, numbers = fused.attribute("activation", ""), fused.attribute("activation_params", [])
    return [_activate(fused, value, kind, numbers)]


def _linear(fused: _Fused) -> list[ir.Value | None]:
    """activation(Gemm(A, B, C))."""
    own = ("activation", "activation_alpha", "activation_beta", "activation_gamma")
    rest = {k: a.value for k, a in fused.node.attributes.items() if k not in own}
    numbers = [fused.attribute(name, 0.0) for name in own[1:3]]
    value = fused.op("Gemm", [v for v in fused.node.inputs if v is not None], **rest)
    return [_activate(fused, value, fused.attribute("activation", ""), numbers)]


def _product(fused: _Fused) -> list[ir.Value | None]:
    """alpha * A @ B, with the last two axes of either exchanged where it says so."""
    if fused.attribute("transBatchA", 0) or fused.attribute("transBatchB", 0):
        raise fused.refusal("it moves the batch axis")
    sides = []
    for index, flag in ((0, "transA"), (1, "transB")):
        value = fused.given(index)
        if fused.attribute(flag, 0):
            value = _exchange(fused, value)
        sides.append(value)
    result = fused.op("MatMul", sides)
    alpha = fused.attribute("alpha", 1.0)
    return [result if alpha == 1.0 else fused.op("Mul", [result, fused.number(alpha)])]


def _exchange(fused: _Fused, value: ir.Value) -> ir.Value:
    if value.shape is None:
        raise fused.refusal("it transposes an input of unknown rank")
    rank = len(value.shape)
    return fused.op("Transpose", [value], perm=[*range(rank - 2), rank - 1, rank - 2])


def _error_gelu(fused: _Fused, x: ir.Value) -> ir.Value:
    error = fused.op("Erf", [fused.op("Mul", [x, fused.number(math.sqrt(0.5))])])
    inside = fused.op("Add", [error, fused.number(1.0)])
    return fused.op("Mul", [fused.op("Mul", [x, inside]), fused.number(0.5)])


def _gelu(fused: _Fused) -> list[ir.Value | None]:
    """x (1 + erf(x / sqrt 2)) / 2, of the sum of x and a bias in BiasGelu."""
    return [_error_gelu(fused, fused.add(fused.given(0), 1))]


def _fast_gelu(fused: _Fused) -> list[ir.Value | None]:
    """x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2."""
    x = fused.add(fused.given(0), 1)
    cube = fused.op("Mul", [fused.op("Mul", [fused.op("Mul", [x, x]), x]), fused.number(0.044715)])
    inner = fused.op("Mul", [fused.op("Add", [x, cube]), fused.number(math.sqrt(2 / math.pi))])
    inside = fused.op("Add", [fused.op("Tanh", [inner]), fused.number(1.0)])
    return [fused.op("Mul", [fused.op("Mul", [x, inside]), fused.number(0.5)])]


def _quick_gelu(fused: _Fused) -> list[ir.Value | None]:
    """x sigmoid(alpha x)."""
    x = fused.given(0)
    scaled = fused.op("Mul", [x, fused.number(fused.attribute("alpha", 1.702))])
    return [fused.op("Mul", [x, fused.op("Sigmoid", [scaled])])]


def _normalise(fused: _Fused, value: ir.Value, scale: int, bias: int) -> ir.Value:
    parameters = [fused.given(scale), fused.input(bias)]
    inputs = [value, *[each for each in parameters if each is not None]]
    epsilon = fused.attribute("epsilon", _EPSILON)
    return fused.op(_NORMALISATION, inputs, axis=fused.attribute("axis", -1), epsilon=epsilon)


def _normalisation(fused: _Fused) -> list[ir.Value | None]:
    return [_normalise(fused, fused.given(0), 1, 2)]


def _skip_normalisation(fused: _Fused) -> list[ir.Value | None]:
    """LayerNormalization(input + skip + bias), and the sum as the fourth output."""
    total = fused.add(fused.given(0), 1, 4)
    return [_normalise(fused, total, 2, 3), None, None, total]


def _attention(fused: _Fused) -> list[ir.Value | None]:
    """Self-attention of tokens [B, T, D], whose queries, keys and values are one product."""
    fused.refuse_inputs(3, 4, 6)
    tokens = fused.add(fused.op("MatMul", [fused.given(0), fused.given(1)]), 2)
    sizes = fused.attribute("qkv_hidden_sizes", None)
    if sizes is not None and len(set(sizes)) > 1:
        raise fused.refusal("queries, keys and values have different lengths")
    parts = _split(fused, tokens, 3)
    return [_attend(fused, parts, bias=fused.input(5))]


def _multi_head_attention(fused: _Fused) -> list[ir.Value | None]:
    """Attention of queries, keys and values [B, T, D], or packed into one."""
    fused.refuse_inputs(4, 6, 7)
    values = [fused.input(index) for index in range(3)]
    if values[1] is None or values[2] is None:
        raise fused.refusal("its queries, keys and values are packed")
    parts = [value for value in values if value is not None]
    bias = fused.input(3)
    if bias is not None:
        biases = _split(fused, bias, 3)
        parts = [fused.op("Add", [a, b]) for a, b in zip(parts, biases, strict=True)]
    return [_attend(fused, parts, bias=fused.input(5))]


def _split(fused: _Fused, value: ir.Value, count: int) -> list[ir.Value]:
    """Split equally along the last axis."""
    if value.shape is not None or value.const_value is not None:
        length = (value.shape or value.const_value.shape)[-1]  # type: ignore[union-attr]
    else:
        weight = fused.given(1)
        length = None if weight.shape is None else weight.shape[-1]
    if not isinstance(length, int) or length % count:
        raise fused.refusal("the length of its tokens is unknown")
    part = length // count
    axes = fused.integers(-1)
    parts = []
    for index in range(count):
        ends = [fused.integers(at) for at in (index * part, (index + 1) * part)]
        parts.append(fused.op("Slice", [value, *ends, axes]))
    return parts


def _attend(fused: _Fused, parts: Sequence[ir.Value], bias: ir.Value | None) -> ir.Value:
    """softmax(scale Q K^T + bias) V, head by head."""
    if fused.attribute("unidirectional", 0):
        raise fused.refusal("its attention is causal")
    if fused.attribute("do_rotary", 0):
        raise fused.refusal("it rotates queries and keys")
    heads = int(fused.attribute("num_heads", 1))
    apart = fused.integers(0, 0, heads, -1)
    split = [fused.op("Reshape", [part, apart]) for part in parts]
    query, value = (fused.op("Transpose", [split[i]], perm=[0, 2, 1, 3]) for i in (0, 2))
    key = fused.op("Transpose", [split[1]], perm=[0, 2, 3, 1])
    scores = fused.op("MatMul", [query, key])
    scale = float(fused.attribute("scale", 0.0))
    if scale:
        scores = fused.op("Mul", [scores, fused.number(scale)])
    else:  # of the length of one head's queries, which the graph knows
        length = fused.op("Shape", [query], start=3, end=4)
        cast = fused.op("CastLike", [length, scores])
        scores = fused.op("Div", [scores, fused.op("Sqrt", [cast])])
    if bias is not None:
        scores = fused.op("Add", [scores, bias])
    mixed = fused.op("MatMul", [fused.op("Softmax", [scores], axis=-1), value])
    rows = fused.op("Transpose", [mixed], perm=[0, 2, 1, 3])
    joined = fused.integers(0, 0, -1)
    return fused.op("Reshape", [rows, joined])


_EXPANSIONS: dict[str, Callable[[_Fused], list[ir.Value | None]]] = {
    "FusedConv": _convolution,
    "FusedGemm": _linear,
    "FusedMatMul": _product,
    "Gelu": _gelu,
    "BiasGelu": _gelu,
    "FastGelu": _fast_gelu,
    "QuickGelu": _quick_gelu,
    "LayerNormalization": _normalisation,
    "SkipLayerNormalization": _skip_normalisation,
    "Attention": _attention,
    "MultiHeadAttention": _multi_head_attention,
}
