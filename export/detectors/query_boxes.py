"""Tell corners of queries' boxes from centre, width and height, by what each edge depends on.

The end of the head, after the last products with weights, is run in float64. A network predicts a
centre and a size from channels of their own, or each edge from its own. So if halves of the sums
and the differences of two numbers depend on different channels, and the numbers themselves and the
edges that a centre and a size would have do not, then the two numbers are edges.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ...runtime.errors import ExportError
from ..plain_model import PlainModel
from ..references import open_in_float64, skip_rounding
from ..subgraph import submodel

_MOST_CHANNELS = 512
_CLOSE = 1e-9


def are_corners(plain: PlainModel, boxes: ir.Value) -> bool | None:
    """Tell whether boxes [N, A, 4] are left, top, right, bottom; None where nothing proves it.

    Args:
        plain: the model.
        boxes: an output of it.
    """
    products = _find_products(plain, boxes)
    dims = plain.shapes.dims
    sides = [
        tuple(side for side in dims.get(value, ())[1:] if isinstance(side, int))
        for value in products
    ]
    if not products or any(
        len(known) != len(dims.get(value, ())) - 1 or not known
        for value, known in zip(products, sides, strict=True)
    ):
        return None
    if sum(known[-1] for known in sides) > _MOST_CHANNELS:
        return None
    try:
        part = submodel(plain.graph, products, [boxes], plain.shapes)
        skip_rounding(part.graph)
        evaluator = open_in_float64(ir.to_proto(part))
    except ExportError:
        return None  # it depends on the image in another way, as by the choice of queries
    rng = np.random.default_rng(0)
    arrays = {
        str(value.name): rng.standard_normal((1, *known))
        for value, known in zip(products, sides, strict=True)
    }
    try:
        before = _combine(evaluator.run(None, arrays)[0])
        changes = []
        for name, array in arrays.items():
            for channel in range(array.shape[-1]):
                moved = array.copy()
                moved[..., channel] += 0.5
                after = _combine(evaluator.run(None, {**arrays, name: moved})[0])
                changes.append((np.abs(after - before) > _CLOSE).any(1))
    except Exception:
        return None  # an operator that the evaluator has not, or a fixed batch inside
    apart = [
        all(not (depends[low] & depends[high]).any() for low, high in ((0, 2), (1, 3)))
        for depends in np.moveaxis(np.stack(changes), 0, 2)
    ]
    numbers, edges_of_centre, centre_of_edges = apart
    if numbers or edges_of_centre:
        return None if centre_of_edges else False
    return True if centre_of_edges else None


def _combine(boxes: NDArray[Any]) -> NDArray[Any]:
    """Stack numbers, edges of centre and size, and centre and size of edges, [3, A, 4]."""
    low, high = boxes[..., :2], boxes[..., 2:]
    rows = [
        np.concatenate(pair, -1).reshape(-1, 4)
        for pair in (
            (low, high),
            (low - high / 2, low + high / 2),
            ((low + high) / 2, high - low),
        )
    ]
    return np.stack(rows)


def _find_products(plain: PlainModel, value: ir.Value) -> list[ir.Value]:
    """Find the last products with weights before a tensor."""
    constants = plain.shapes.constants
    found: dict[ir.Value, None] = {}
    pending, visited = [value], set[ir.Value]()
    while pending:
        each = pending.pop()
        node = each.producer()
        if node is None or each in visited:
            continue
        visited.add(each)
        weights = node.inputs[1] if len(node.inputs) > 1 else None
        is_fixed = weights is not None and (weights.is_initializer() or weights in constants)
        if node.op_type in ("MatMul", "Gemm", "Conv") and is_fixed:
            found[each] = None
        else:
            pending += [source for source in node.inputs if source is not None]
    return list(found)
