"""PicoDet and its kin: for each level class scores [N, A, C] and distributions of distances.

The distances of a box's edges from the middle of its cell are the means of distributions over whole
numbers of cells, [N, A, 4 B]: the generalised focal loss (https://arxiv.org/abs/2006.04388).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ...runtime.errors import ExportError
from ..plain_model import PlainModel
from ..tensors import Tensor, concat
from .activations import find_activations
from .format import Candidates, Format
from .grids import place_cells
from .reading import Reading

_STRIDES = (4, 8, 16, 32, 64, 128)
_LEAST_BINS = 2


@dataclass(frozen=True)
class _Level:
    """The outputs of one level.

    Attributes:
        stride: pixels of the input a cell.
        scores: [N, A, C].
        distances: [N, A, 4 B].
    """

    stride: int
    scores: ir.Value
    distances: ir.Value


def _read(reading: Reading) -> Candidates:
    levels = find_distribution_levels(reading.plain)
    if isinstance(levels, str):
        raise ExportError(levels)
    raw = concat([reading.output(level.scores) for level in levels], 1)
    scores, explained, used = reading.activate(raw, "sigmoid")
    if used == "softmax":
        raise ExportError(
            "class scores of the format picodet are independent, and this file ends in a softmax"
        )
    places, steps = place_cells(reading.plain.size, tuple(level.stride for level in levels))
    distances = concat([_mean(reading, reading.output(level.distances)) for level in levels], 1)
    centre = reading.recorder.constant((places + 0.5)[None] * steps[None])
    reach = distances * reading.recorder.constant(steps[None])
    boxes = concat([centre - reach[..., 0:2], centre + reach[..., 2:4]], 2)
    return Candidates(scores, boxes, explained, explained.value is not scores.value)


def _mean(reading: Reading, distances: Tensor) -> Tensor:
    """Record the means of the distributions of four distances, [N, A, 4]."""
    batch, candidates, columns = distances.shape
    assert isinstance(columns, int)
    bins = columns // 4
    logits = distances.reshape((batch, candidates, 4, bins))
    shares = reading.recorder.op("Softmax", [logits], logits.shape, axis=-1)
    return (shares * reading.recorder.constant(np.arange(bins, dtype=np.float32))).sum(3)


def find_distribution_levels(plain: PlainModel) -> list[_Level] | str:
    """Find the two outputs of each level, the finest first; else say why they are not found."""
    dims = plain.shapes.dims
    of_count: dict[int, list[ir.Value]] = {}
    for value in plain.graph.outputs:
        shape = dims.get(value, ())
        if len(shape) != 3 or not isinstance(shape[1], int) or not isinstance(shape[2], int):
            return f"its output '{value.name}' is not [N, A, C]"
        of_count.setdefault(shape[1], []).append(value)
    if len(of_count) < 2 or any(len(values) != 2 for values in of_count.values()):
        return "it has not two outputs for each of several levels"
    levels = []
    for count, (first, second) in sorted(of_count.items(), reverse=True):
        stride = _find_stride(plain.size, count)
        if stride is None:
            return (
                f"{count} candidates are not the cells of one stride at {plain.size[0]} x "
                f"{plain.size[1]} pixels"
            )
        levels.append(_Level(stride, first, second))
    return _order(plain, levels)


def _order(plain: PlainModel, levels: Sequence[_Level]) -> list[_Level] | str:
    """Tell scores from distributions, which have 4 B numbers and no activation."""
    flipped = [_Level(level.stride, level.distances, level.scores) for level in levels]
    fitting = [each for each in (list(levels), flipped) if _has_distributions(plain, each)]
    if len(fitting) == 1:
        return fitting[0]
    which = "both" if fitting else "none"
    return f"of its two outputs a level {which} can be a distribution for each edge, [N, A, 4 B]"


def _has_distributions(plain: PlainModel, levels: Sequence[_Level]) -> bool:
    dims = plain.shapes.dims
    widths = {(dims[level.scores][2], dims[level.distances][2]) for level in levels}
    if len(widths) != 1:
        return False
    columns = int(widths.pop()[1])  # type: ignore[arg-type]
    return (
        columns % 4 == 0
        and columns >= 4 * _LEAST_BINS
        and all(find_activations(level.distances) == {None} for level in levels)
    )


def _find_stride(size: tuple[int, int], count: int) -> int | None:
    height, width = size
    for stride in _STRIDES:
        if -(-height // stride) * -(-width // stride) == count:
            return stride
    return None


def _refuse(plain: PlainModel) -> str | None:
    levels = find_distribution_levels(plain)
    return levels if isinstance(levels, str) else None


FORMAT = Format("picodet", 0.5, _refuse, _read)
