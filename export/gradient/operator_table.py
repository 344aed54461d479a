"""Print docs/operators.md, the table of operators with a gradient rule."""

from __future__ import annotations

from .rules import KINDS, RULES

# What a rule refuses, besides work along the batch axis and weights that depend on the image.
REFUSED = {
    "Attention": "causal, soft cap, boolean mask, past keys, queries that share keys",
    "AveragePool": "three spatial axes",
    "BatchNormalization": "training mode",
    "Cast": "to integers or booleans",
    "Clip": "bounds that are not constants",
    "Conv": "a kernel that depends on the image",
    "ConvTranspose": "a kernel that depends on the image",
    "DequantizeLinear": "unless `--straight-through` is given",
    "Einsum": "three operands, an index twice in one operand, an ellipsis",
    "Gather": "indices that are not constants",
    "GatherND": "indices that are not constants, batch axes",
    "GatherElements": "a part of the other axes, matrices of more than 2^24 numbers",
    "Gemm": "`transA`, a matrix B that depends on the image",
    "LpPool": "three spatial axes",
    "PRelu": "a slope that depends on the image",
    "Pow": "an exponent that depends on the image",
    "QuantizeLinear": "unless `--straight-through` is given",
    "ReduceProd": "several axes, more than 64 elements",
    "Resize": "axes other than the last two, antialiasing, cropping, kept aspect ratio",
    "ScatterElements": "a part of the other axes, reductions other than a sum, matrices of more "
    "than 2^24 numbers",
    "Slice": "a part of the batch",
    "Tile": "repeats of the batch",
    "TopK": "matrices of more than 2^24 numbers",
}

_INTRODUCTION = """\
<!-- Written by: python -m whycam.export.gradient.operator_table > docs/operators.md -->
# Operators with a gradient

`whycam export` adds the gradient of the class score to a network's graph. Only the operators
**between the target layer and the scores** need a gradient; before the target layer any operator
that the engine runs will do. An operator that is not in this table is refused by name. A later
target layer (`--target-layer`) often avoids it.

- Every row is tested against float64 automatic differentiation, in ONNX Runtime.
- The gradient itself consists of operators that ONNX Runtime, OpenVINO and TensorRT all take.
- No gradient passes through comparisons, class numbers, positions and `Sign`, for a small change of
  the image does not change them. What they select or mask is differentiated as if they were
  constants.
- Where a root is zero it has no derivative, and passes no gradient.
- Of equal elements in a maximum (pooling, reductions, `Max`) the first receives the whole gradient.
- An operator may not work along the batch axis, nor read from the image what is a weight elsewhere
  (kernels, normalisation scales, slopes).
"""


def format_page() -> str:
    """Write the page in Markdown."""
    kinds = {operator: kind for kind, rules in KINDS.items() for operator in rules}
    rows = [
        f"| `{operator}` | {kinds[operator]} | {REFUSED.get(operator, '')} |"
        for operator in sorted(RULES)
    ]
    head = [f"{len(RULES)} operators:", "", "| operator | kind | refused |", "|---|---|---|"]
    return "\n".join([_INTRODUCTION, *head, *rows, ""])


if __name__ == "__main__":
    print(format_page(), end="")
