"""Tell how much of the image a grid of places covers, from the strides that lead to it.

Convolutions without padding leave out the border, as the first U-Net's do (572 pixels, 388 places).
Regions are laid over the whole image evenly, so that the user has to hear of it.
"""

from __future__ import annotations

import onnx_ir as ir

from .data_flow import DataFlow

_WINDOWS = {"Conv", "MaxPool", "AveragePool", "LpPool"}
_Pair = tuple[float, float]


def count_uncovered(flow: DataFlow, scores: ir.Value) -> tuple[int, int]:
    """Count the rows and columns of places that are missing at the borders of the image.

    Args:
        flow: from the image to the scores.
        scores: of every place; its arrangement is a feature map.

    Returns:
        For height and width; 0 where the places cover the image, or rounding alone leaves out one.
    """
    # The sides of each tensor, and how many pixels apart its places are.
    grids: dict[ir.Value, tuple[_Pair, _Pair]] = {flow.plain.image: (flow.plain.size, (1.0, 1.0))}
    for node in flow.path:
        known = [grids[value] for value in node.inputs if value in grids]
        if not known:
            continue
        sides, steps = min(known, key=lambda grid: grid[1])
        layer = flow.layer_at(node)
        after: _Pair = sides
        if layer is not None and layer.arrangement.is_feature_map:
            after = layer.shape[1:]
        if node.op_type in _WINDOWS:
            steps = _times(steps, _strides(node))
        elif node.op_type == "ConvTranspose":
            across = _strides(node)
            steps = _times(steps, (1 / across[0], 1 / across[1]))
        elif node.op_type in ("Resize", "Upsample"):
            # What is resized is taken to cover the image, as whoever trained it resized the labels.
            steps = _times(flow.plain.size, (1 / after[0], 1 / after[1]))
        else:
            steps = _times(steps, (_factor(sides[0], after[0]), _factor(sides[1], after[1])))
        for value in node.outputs:
            grids[value] = after, steps
    sides, steps = grids[scores]
    missing = [
        size / step - side for size, side, step in zip(flow.plain.size, sides, steps, strict=True)
    ]
    rows, columns = (round(each) if each > 1.99 else 0 for each in missing)
    return rows, columns


def _strides(node: ir.Node) -> _Pair:
    stated = node.attributes.get("strides")
    strides = [1, 1] if stated is None else list(stated.as_ints())
    return (float(strides[0]), float(strides[1])) if len(strides) == 2 else (1.0, 1.0)


def _factor(before: float, after: float) -> float:
    """Compute by how much a rearrangement moves places apart; 1 where it cuts or pads."""
    if before % after == 0 or after % before == 0:
        return before / after
    return 1.0


def _times(left: _Pair, right: _Pair) -> _Pair:
    return left[0] * right[0], left[1] * right[1]
