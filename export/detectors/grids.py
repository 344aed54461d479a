"""Describe the grids of cells from which dense detectors predict boxes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..dims import Dims
from ..plain_model import PlainModel

_STRIDES = ((8, 16, 32), (8, 16, 32, 64))


def find_strides(size: tuple[int, int], candidates: int, anchors: int) -> tuple[int, ...] | None:
    """Find the strides whose cells, ``anchors`` boxes each, are so many candidates."""
    for strides in _STRIDES:
        cells = sum(-(-size[0] // step) * -(-size[1] // step) for step in strides)
        if cells * anchors == candidates:
            return strides
    return None


def place_cells(
    size: tuple[int, int], strides: tuple[int, ...]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Compute each cell's column and row, [A, 2], and its stride, [A, 1]: fine levels first."""
    places, steps = [], []
    for step in strides:
        height, width = -(-size[0] // step), -(-size[1] // step)
        rows, columns = np.mgrid[:height, :width].reshape(2, -1)
        places.append(np.stack([columns, rows], 1))
        steps.append(np.full((height * width, 1), step))
    return np.concatenate(places).astype(np.float32), np.concatenate(steps).astype(np.float32)


def single_output(plain: PlainModel) -> Dims | None:
    """Return the shape of the first output if it has three axes of known lengths, else None."""
    dims = plain.shapes.dims.get(plain.graph.outputs[0], ())
    if len(dims) != 3 or not all(isinstance(side, int) for side in dims[1:]):
        return None
    return dims
