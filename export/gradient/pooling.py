"""Gradient rules of pooling layers."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from ..recorder import Tensor, concat, pad, unsqueeze
from .reductions import first_largest, through_norm
from .step import Step
from .windows import Windows, find_windows

_LOWEST = float(np.finfo(np.float32).min)


def _max_pool(step: Step) -> list[Tensor | None]:
    """Of equal elements in a window the first has all.

    No indices are needed, which engines reject: the elements of each window lie along axes of their
    own, and are compared with its maximum.
    """
    windows = find_windows(step)
    # Places that windows reach beyond either edge; a negative count: places that none reaches.
    before, behind = [0, 0, *windows.before], [0, 0, *windows.behind]
    covered = pad(step.x(), before, behind, _LOWEST)
    side = windows.kernel[0]
    if windows.kernel == windows.strides == (side, side) and set(windows.dilations) == {1}:
        blocks = _by_block(step, covered, side)
        y, g = (unsqueeze(each, [1]) for each in (step.y(), step.g))
        chosen = first_largest(step, blocks, y, g, [1])
        found = _from_blocks(step, chosen, side)
        return [pad(found, [-count for count in before], [-count for count in behind])]
    stacked = concat(_corners(unsqueeze(covered, [2]), windows), 2)
    chosen = first_largest(step, stacked, unsqueeze(step.y(), [2]), unsqueeze(step.g, [2]), [2])
    return [_put_back(step, chosen, windows)]


def _by_block(step: Step, x: Tensor, side: int) -> Tensor:
    """[N, K, h side, w side] as [N, side * side, K, h, w]."""
    channels, height, width = step.sides(x.shape[1:])
    apart = (height // side, width // side)
    dims = (x.shape[0], side * side * channels, *apart)
    deep = step.recorder.op("SpaceToDepth", [x], dims, blocksize=side)
    return deep.reshape((x.shape[0], side * side, channels, *apart))


def _from_blocks(step: Step, blocks: Tensor, side: int) -> Tensor:
    """The opposite."""
    _, channels, height, width = step.sides(blocks.shape[1:])
    deep = blocks.reshape((blocks.shape[0], side * side * channels, height, width))
    dims = (blocks.shape[0], channels, height * side, width * side)
    return step.recorder.op("DepthToSpace", [deep], dims, blocksize=side, mode="DCR")


def _corners(x: Tensor, windows: Windows) -> list[Tensor]:
    """Of all windows the first element, of all the second, and so on: each [N, K, 1, *out]."""
    parts = []
    for corner in itertools.product(*(range(k) for k in windows.kernel)):
        cuts = []
        for c, d, o, s in zip(corner, windows.dilations, windows.out, windows.strides, strict=True):
            cuts.append(slice(c * d, c * d + (o - 1) * s + 1, s))
        parts.append(x[tuple([slice(None)] * 3 + cuts)])
    return parts


def _put_back(step: Step, chosen: Tensor, windows: Windows) -> Tensor:
    """Gradients of the elements of each window, [M, K, elements, *out], summed in their places."""
    count = int(np.prod(windows.kernel))
    one_hot: NDArray[np.float32] = np.eye(count, dtype=np.float32)
    kernel = one_hot.reshape(count, 1, *windows.kernel)
    channels = step.sides(step.dims()[1:2])[0]
    lead = chosen.shape[0] * channels
    found = step.recorder.op(
        "ConvTranspose",
        [chosen.reshape((lead, count, *windows.out)), step.recorder.constant(kernel)],
        (lead, 1, *windows.size),
        strides=list(windows.strides),
        dilations=list(windows.dilations),
        pads=[*windows.before, *(max(0, count) for count in windows.behind)],
        output_padding=[max(0, -count) for count in windows.behind],
        kernel_shape=list(windows.kernel),
    )
    return found.reshape(step.lifted(step.dims()))


def _average_pool(step: Step) -> list[Tensor | None]:
    """Matrix products: averaging is linear and separable; along two axes at most."""
    windows = find_windows(step)
    whole = bool(step.attribute("count_include_pad", 0))
    return [along_axes(step, step.g, _window_matrices(windows, "whole" if whole else "inside"))]


def _window_matrices(windows: Windows, divisor: str | None) -> list[NDArray[np.float32]]:
    """How pooling along each axis weighs its input: float32 [out, size] each.

    Args:
        divisor: ``inside``: a window's elements that are no padding; ``whole``: padding as well,
            but nothing beyond it; None: sums.
    """
    matrices = []
    for size, out, kernel, stride, dilation, before, after in zip(
        windows.size, windows.out, windows.kernel, windows.strides, windows.dilations,
        windows.before, windows.after, strict=True,
    ):  # fmt: skip
        matrix = np.zeros((out, size), np.float32)
        for row in range(out):
            places = [row * stride - before + i * dilation for i in range(kernel)]
            inside = [place for place in places if 0 <= place < size]
            counted = len(inside)
            if divisor == "whole":
                counted = len([place for place in places if place < size + after])
            matrix[row, inside] = 1.0 / counted if divisor else 1.0
        matrices.append(matrix)
    return matrices


def along_axes(step: Step, g: Tensor, matrices: Sequence[NDArray[np.float32]]) -> Tensor:
    """A gradient [M, K, *out] through one matrix [out, size] for each place axis."""
    if all(len(matrix) == 1 for matrix in matrices):
        grid = matrices[0][0]
        for matrix in matrices[1:]:
            grid = grid[..., None] * matrix[0]
        return g * step.recorder.constant(grid)
    found = g
    for axis, matrix in enumerate(matrices):
        place = found.ndim - len(matrices) + axis
        if matrix.shape[0] == matrix.shape[1] and np.array_equal(matrix, np.eye(len(matrix))):
            continue
        if place == found.ndim - 1:
            found = found @ step.recorder.constant(matrix)
        elif place == found.ndim - 2:
            found = step.recorder.constant(np.ascontiguousarray(matrix.T)) @ found
        else:
            raise step.refusal("it has more than two place axes")
    return found


def _global_average(step: Step) -> list[Tensor | None]:
    dims = step.lifted(step.dims())
    return [step.spread(step.g, dims, 1.0 / float(np.prod(step.sides(dims[2:]))))]


def _global_max(step: Step) -> list[Tensor | None]:
    """Of equal elements the first has all."""
    return [first_largest(step, step.x(), step.y(), step.g, list(range(2, len(step.dims()))))]


def _lp_pool(step: Step) -> list[Tensor | None]:
    """(sum |x|^p)^(1/p) over windows, along two axes at most."""
    matrices = _window_matrices(find_windows(step), None)
    power = int(step.attribute("p", 2))
    return [through_norm(step, step.g, step.y(), power, lambda g: along_axes(step, g, matrices))]


def _global_lp_pool(step: Step) -> list[Tensor | None]:
    return [through_norm(step, step.g, step.y(), int(step.attribute("p", 2)))]


RULES: dict[str, Callable[[Step], list[Tensor | None]]] = {
    "MaxPool": _max_pool,
    "AveragePool": _average_pool,
    "LpPool": _lp_pool,
    "GlobalAveragePool": _global_average,
    "GlobalMaxPool": _global_max,
    "GlobalLpPool": _global_lp_pool,
}
