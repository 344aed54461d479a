"""Follow which place of the image each element of each tensor belongs to, from the image on."""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir

from .dims import Dims, lengths_at
from .place_operation import Operation, Sides
from .place_rules import follow
from .places import IMAGES, Places, unknown, whole_grid
from .shapes import Shapes


def find_places(
    nodes: Iterable[ir.Node], image: ir.Value, layout: str, shapes: Shapes
) -> dict[ir.Value, Places]:
    """Label every tensor that depends on the image, for a batch of two images.

    Args:
        nodes: in an order in which they can run.
        image: the graph's input.
        layout: of the image.
        shapes: of all tensors.
    """
    sides = concrete(shapes.dims[image], shapes)
    height, width = sides[2:] if layout == "NCHW" else sides[1:3]
    axes = "BCYX" if layout == "NCHW" else "BYXC"
    found: dict[ir.Value, Places] = {image: (whole_grid(axes, height, width),)}
    for node in nodes:
        if not any(value in found for value in node.inputs):
            continue
        found.update(zip(node.outputs, _label(node, found, shapes), strict=True))
    return found


def concrete(dims: Dims, shapes: Shapes) -> Sides:
    """Compute a shape for two images of the usual size."""
    return lengths_at(dims, {**shapes.one, "N": IMAGES})


def describe(node: ir.Node, found: dict[ir.Value, Places], shapes: Shapes) -> Operation | None:
    """Describe a node with the places of its inputs; None if a shape is not known."""
    after = [shapes.dims.get(value) for value in node.outputs]
    before = [() if value is None else shapes.dims.get(value) for value in node.inputs]
    if any(dims is None for dims in (*after, *before)):
        return None
    # Of the values that depend on the input's shape, the first is for two images.
    varying = shapes.varying if len(shapes.one) == 1 else {}
    numbers = [
        None if value is None else shapes.constants.get(value, varying.get(value, (None,))[0])
        for value in node.inputs
    ]
    if node.op_type in ("Gather", "GatherND") and numbers[1] is None:
        tensor = None if node.inputs[1] is None else node.inputs[1].const_value
        numbers[1] = None if tensor is None else tensor.numpy()  # of any size
    return Operation(
        node,
        [() if value is None else found.get(value, ()) for value in node.inputs],
        [concrete(dims, shapes) for dims in before if dims is not None],
        [concrete(dims, shapes) for dims in after if dims is not None],
        numbers,
    )


def _label(node: ir.Node, found: dict[ir.Value, Places], shapes: Shapes) -> list[Places]:
    operation = describe(node, found, shapes)
    if operation is None:
        return [unknown(len(shapes.dims.get(value, ()))) for value in node.outputs]
    return follow(operation)
