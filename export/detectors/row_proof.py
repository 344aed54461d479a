"""Prove what the numbers of a candidate mean, by running the end of a dense head in float64.

The end is what follows the last convolutions over the cells of the levels. With the same
activations in every cell, a number that is a place in the image moves by exactly one stride from
cell to cell, and one that is a size does not move: so centre, width and height are told from two
corners. And what depends on other convolutions than the classes do is no class.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ...runtime.errors import ExportError
from ..plain_model import PlainModel
from ..references import open_in_float64, skip_rounding
from ..subgraph import submodel
from .dense_head import find_cells

_STRIDES = (4, 8, 16, 32, 64, 128)
_CLOSE = 1e-3  # of a step from cell to cell
_BOX = 4

Role = Literal["x", "y", "size"]
Unit = Literal["pixels", "shares"]


@dataclass(frozen=True)
class HeadEnd:
    """The end of a dense head, from its last convolutions to the numbers of the candidates.

    Attributes:
        evaluator: of it, in float64.
        maps: the convolutions' outputs.
        grids: of each one the stride, and the height and width in cells.
        axis: of the numbers in the output, 1 or 2.
        size: (H, W) of the images.
    """

    evaluator: Any
    maps: tuple[tuple[str, int], ...]
    grids: tuple[tuple[int, int, int], ...]
    axis: int
    size: tuple[int, int]

    def run(self, arrays: Sequence[NDArray[Any]]) -> NDArray[Any]:
        """Compute the numbers of the candidates, [A, D], from one array a map."""
        feeds = {name: array for (name, _), array in zip(self.maps, arrays, strict=True)}
        with np.errstate(all="ignore"):
            (answer,) = self.evaluator.run(None, feeds)
        return np.asarray(np.moveaxis(answer[0], self.axis - 1, -1))

    def draw(self, rng: np.random.Generator, is_uniform: bool) -> list[NDArray[Any]]:
        """Draw activations [1, C, h, w] of each map, the same in each cell or not."""
        drawn = []
        for (_, channels), (_, height, width) in zip(self.maps, self.grids, strict=True):
            sides = (1, 1) if is_uniform else (height, width)
            array = rng.standard_normal((1, channels, *sides))
            drawn.append(np.broadcast_to(array, (1, channels, height, width)).copy())
        return drawn


@dataclass(frozen=True)
class BoxNumbers:
    """What the four numbers of a box are proved to be.

    Attributes:
        roles: ``x`` and ``y`` of places in the image, ``size`` of what is the same in each cell.
        unit: of the places; None where there are none, as of undecoded offsets.
    """

    roles: tuple[Role, ...]
    unit: Unit | None


def open_head_end(plain: PlainModel, value: ir.Value, axis: int) -> HeadEnd | None:
    """Open the end of a head; None where its output follows from more than convolutions over cells.

    Args:
        plain: the model.
        value: an output with three axes.
        axis: of the candidates' numbers.
    """
    found = _find_maps(plain, value)
    if not found:
        return None
    try:
        part = submodel(plain.graph, list(found), [value], plain.shapes)
        skip_rounding(part.graph)
        evaluator = open_in_float64(ir.to_proto(part))
    except ExportError:
        return None
    maps = tuple((str(each.name), int(plain.shapes.dims[each][1])) for each in found)  # type: ignore[arg-type]
    end = HeadEnd(evaluator, maps, tuple(found.values()), axis, plain.size)
    try:
        end.run(end.draw(np.random.default_rng(0), is_uniform=True))
    except Exception:
        return None  # an operator that the evaluator has not, or that takes no float64
    return end


def find_box_numbers(end: HeadEnd) -> BoxNumbers | None:
    """Find what the four numbers of boxes are; None where nothing is proved.

    Args:
        end: of the head, computing them alone.

    Raises:
        ExportError: they move evenly from cell to cell, and boxes do not move so.
    """
    rng = np.random.default_rng(1)
    needed: list[bool] = [bool(changed.any()) for changed in _find_dependence(end, rng)]
    if not any(needed):
        return None
    fixed = dict(zip(end.maps, end.draw(rng, is_uniform=False), strict=True))
    used = [(m, g) for m, g, is_used in zip(end.maps, end.grids, needed, strict=True) if is_used]
    grids = sorted({grid for _, grid in used})
    cells = find_cells(
        lambda feeds: end.run([feeds.get(m[0], fixed[m]) for m in end.maps])[None],
        [(height, width) for _, height, width in grids],
        [[each for each, own in used if own == grid] for grid in grids],
    )
    if cells is None:
        return None
    numbers = end.run(end.draw(rng, is_uniform=True))
    steps = []
    for index, (stride, height, width) in enumerate(grids):
        of_level = np.flatnonzero(cells[:, 0] == index)
        if min(height, width) < 2 or not len(of_level) or len(of_level) % (height * width):
            continue
        order = of_level[np.lexsort((cells[of_level, 2], cells[of_level, 1]))]
        grid = numbers[order].reshape(height, width, -1, _BOX)
        along = [np.diff(grid, axis=axis).reshape(-1, _BOX) / stride for axis in (1, 0)]
        if any(np.ptp(each, axis=0).max() > _CLOSE * _scale(each) for each in along):
            return None  # as where boxes are clipped to the image
        steps.append(np.stack([each.mean(0) for each in along]))
    return None if not steps else _name_roles(np.stack(steps), end.size)


def find_objectness(end: HeadEnd) -> Literal["objectness", "class"] | None:
    """Tell whether the fifth number is the objectness or the first class; None: nothing proves it.

    It is no class if the following numbers, at least two, depend on the same convolutions and it on
    none of these. It is one if it depends on the same as they do, and on none of the box's.
    """
    columns = _find_dependence(end, np.random.default_rng(2))
    box, fifth, rest = columns[:, :_BOX].any(1), columns[:, _BOX], columns[:, _BOX + 1 :]
    if not rest.size:
        return "class"
    if rest.shape[1] > 1 and (rest == rest[:, :1]).all() and not (fifth & rest[:, 0]).any():
        return "objectness"
    is_same = (rest == fifth[:, None]).all()
    return "class" if is_same and not (fifth & box).any() else None


def _find_dependence(end: HeadEnd, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Find which numbers of any candidate change with which map, [maps, D]."""
    arrays, others = (end.draw(rng, is_uniform=False) for _ in range(2))
    before = end.run(arrays)
    changes = []
    for index, other in enumerate(others):
        changed = end.run([*arrays[:index], other, *arrays[index + 1 :]])
        changes.append((changed != before).any(0))
    return np.stack(changes)


def _scale(steps: NDArray[Any]) -> float:
    return float(max(np.abs(steps).max(), 1e-6))


def _name_roles(steps: NDArray[Any], size: tuple[int, int]) -> BoxNumbers | None:
    """Name the numbers by their steps along a row and down a column, [levels, 2, 4], in strides."""
    height, width = size
    if np.abs(steps).max() < _CLOSE / max(size):
        return BoxNumbers(("size", "size", "size", "size"), None)
    units: dict[Unit, tuple[float, float]] = {
        "pixels": (1.0, 1.0),
        "shares": (1 / width, 1 / height),
    }
    for unit, sides in units.items():
        scaled = steps / np.array(sides)[None, :, None]
        roles: list[Role] = []
        for along in np.moveaxis(scaled, 2, 0):  # levels, 2
            for role, expected in (("x", (1, 0)), ("y", (0, 1)), ("size", (0, 0))):
                if np.abs(along - np.array(expected)).max() < _CLOSE:
                    roles.append(role)  # type: ignore[arg-type]
        if len(roles) == _BOX and "x" in roles and "y" in roles:
            return BoxNumbers(tuple(roles), unit)
    raise ExportError(
        "from one cell to the next the numbers of this detector's boxes move by "
        f"{np.round(steps[0, 0], 4).tolist()} strides along a row and by "
        f"{np.round(steps[0, 1], 4).tolist()} down a column: these are no boxes in pixels, nor as "
        "shares of the image. Export the network with decoded boxes"
    )


def _find_maps(plain: PlainModel, value: ir.Value) -> dict[ir.Value, tuple[int, int, int]]:
    """Find the last convolutions before a tensor whose outputs have the cells of a stride."""
    found: dict[ir.Value, tuple[int, int, int]] = {}
    pending, visited = [value], set[ir.Value]()
    while pending:
        each = pending.pop()
        node = each.producer()
        if node is None or each in visited:
            continue
        visited.add(each)
        grid = _find_grid(plain, each) if node.op_type == "Conv" else None
        if grid is not None:
            found[each] = grid
        else:
            pending += [source for source in node.inputs if source is not None]
    return found


def _find_grid(plain: PlainModel, value: ir.Value) -> tuple[int, int, int] | None:
    dims = plain.shapes.dims.get(value, ())
    for stride in _STRIDES:
        if len(dims) == 4 and tuple(dims[2:]) == tuple(-(-side // stride) for side in plain.size):
            return stride, int(dims[2]), int(dims[3])  # type: ignore[arg-type]
    return None
