"""Find the activations that scores come from."""

from __future__ import annotations

import onnx_ir as ir

MOVING = {
    "Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Slice", "Split", "Concat",
    "Identity", "Cast", "Gather",
}  # fmt: skip
PRODUCTS = {"Conv", "ConvTranspose", "MatMul", "Gemm"}
# Which changes no activation's meaning.
_ROUNDING = {"QuantizeLinear", "DequantizeLinear"}
_LINEAR = PRODUCTS | {"Add", "Sub", "BatchNormalization"}


def find_activations(value: ir.Value, visited: set[ir.Value] | None = None) -> set[str | None]:
    """Find the activations that a tensor's elements come from, through what only moves them.

    None stands for elements that a product with weights computes, ``product`` for products and
    roots of activated ones, as FCOS multiplies class score and centredness.
    """
    visited = set() if visited is None else visited
    if value in visited:
        return set()
    visited.add(value)
    node = value.producer()
    if node is None:
        return {None if value.const_value is None else "constants"}
    if node.op_type in ("Sigmoid", "Softmax"):
        return {node.op_type}
    if node.op_type in _LINEAR:
        return {None}
    if node.op_type in ("Mul", "Sqrt"):
        factors = [v for v in node.inputs if v is not None and v.const_value is None]
        kinds: set[str | None] = set()
        for factor in factors:
            kinds |= find_activations(factor, visited)
        return {"product"} if kinds <= {"Sigmoid", "Softmax", "product"} else {None}
    if node.op_type not in MOVING | _ROUNDING:
        return {node.op_type}
    count = len(node.inputs) if node.op_type == "Concat" else 1
    found: set[str | None] = set()
    for source in node.inputs[:count]:
        if source is not None:
            found |= find_activations(source, visited)
    return found
