"""Differentiate pooling layers."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from ..dims import divide
from ..tensors import Tensor, concat, pad, unsqueeze
from .reductions import differentiate_norm, select_first_extreme
from .step import Step
from .windows import Windows, find_windows

_LOWEST = float(np.finfo(np.float32).min)


def _max_pool(step: Step) -> list[Tensor | None]:
    """Give the gradient to the maximum of each window, to the first of equal ones.

    Engines reject pooling with indices. So the elements of each window are laid along an axis of
    their own and compared with the maximum.
    """
    windows = find_windows(step)
    # Positions that windows reach beyond either edge; negative: positions that none reaches.
    before, behind = [0, 0, *windows.before], [0, 0, *windows.overhang]
    covered = pad(step.x(), before, behind, _LOWEST)
    side = windows.kernel[0]
    if windows.kernel == windows.strides == (side, side) and set(windows.dilations) == {1}:
        blocks = _split_blocks(step, covered, side)
        y, g = (unsqueeze(tensor, [1]) for tensor in (step.y(), step.g))
        chosen = select_first_extreme(step, blocks, y, g, [1])
        joined = _join_blocks(step, chosen, side)
        found = pad(joined, [-count for count in before], [-count for count in behind])
        return [step.with_sums_of(step.g, found, range(2, found.ndim))]
    stacked = concat(_window_elements(unsqueeze(covered, [2]), windows), 2)
    chosen = select_first_extreme(
        step, stacked, unsqueeze(step.y(), [2]), unsqueeze(step.g, [2]), [2]
    )
    found = _sum_into_places(step, chosen, windows)
    return [step.with_sums_of(step.g, found, range(2, found.ndim))]


def _split_blocks(step: Step, x: Tensor, side: int) -> Tensor:
    """Reshape [N, K, h side, w side] to [N, side * side, K, h, w]."""
    channels, height, width = step.lengths(x.shape[1:])
    apart = divide(height, side), divide(width, side)
    dims = (x.shape[0], side * side * channels, *apart)
    deep = step.recorder.op("SpaceToDepth", [x], dims, blocksize=side)
    return deep.reshape((x.shape[0], side * side, channels, *apart))


def _join_blocks(step: Step, blocks: Tensor, side: int) -> Tensor:
    """Undo ``_split_blocks``."""
    _, channels, height, width = step.lengths(blocks.shape[1:])
    deep = blocks.reshape((blocks.shape[0], side * side * channels, height, width))
    dims = (blocks.shape[0], channels, height * side, width * side)
    return step.recorder.op("DepthToSpace", [deep], dims, blocksize=side, mode="DCR")


def _window_elements(x: Tensor, windows: Windows) -> list[Tensor]:
    """Slice the first element of all windows, the second, and so on: [N, K, 1, *out] each."""
    parts = []
    for corner in itertools.product(*(range(k) for k in windows.kernel)):
        cuts = []
        for c, d, o, s, k in zip(
            corner, windows.dilations, windows.out, windows.strides, windows.kernel, strict=True
        ):
            # Where the length is known at run time only, the end is counted from the far edge.
            end = c * d + (o - 1) * s + 1 if isinstance(o, int) else -d * (k - 1 - c) or None
            cuts.append(slice(c * d, end, s))
        parts.append(x[tuple([slice(None)] * 3 + cuts)])
    return parts


def _sum_into_places(step: Step, chosen: Tensor, windows: Windows) -> Tensor:
    """Sum gradients of window elements, [M, K, elements, *out], at the elements' positions."""
    count = int(np.prod(windows.kernel))
    one_hot: NDArray[np.float32] = np.eye(count, dtype=np.float32)
    kernel = one_hot.reshape(count, 1, *windows.kernel)
    channels = step.static_lengths(step.dims()[1:2])[0]
    lead = chosen.shape[0] * channels
    overhang = windows.overhang
    total = step.recorder.op(
        "ConvTranspose",
        [chosen.reshape((lead, count, *windows.out)), step.recorder.constant(kernel)],
        (lead, 1, *windows.size),
        strides=list(windows.strides),
        dilations=list(windows.dilations),
        pads=[*windows.before, *(max(0, count) for count in overhang)],
        output_padding=[max(0, -count) for count in overhang],
        kernel_shape=list(windows.kernel),
    )
    return total.reshape(step.gradient_shape(step.dims()))


def _average_pool(step: Step) -> list[Tensor | None]:
    """Multiply by one matrix an axis, for averaging is linear and separable; two axes at most."""
    windows = find_windows(step)
    whole = bool(step.attribute("count_include_pad", 0))
    matrices = _window_matrices(step, windows, "whole" if whole else "inside")
    found = multiply_along_axes(step, step.g, matrices)
    if all(np.allclose(matrix.sum(1), 1.0, atol=1e-6) for matrix in matrices):
        step.with_sums_of(step.g, found, range(2, found.ndim))
    return [found]


def _window_matrices(
    step: Step, windows: Windows, divisor: str | None
) -> list[NDArray[np.float32]]:
    """Compute the weights of pooling along each axis: float32 [out, size] each.

    Args:
        step: the pooling layer.
        windows: its windows.
        divisor: ``inside``: a window's elements that are no padding; ``whole``: padding as well,
            but nothing beyond it; None: sums.
    """
    matrices = []
    sizes, outs = (step.static_lengths(lengths) for lengths in (windows.size, windows.out))
    for size, out, kernel, stride, dilation, before, after in zip(
        sizes, outs, windows.kernel, windows.strides, windows.dilations,
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


def multiply_along_axes(step: Step, g: Tensor, matrices: Sequence[NDArray[np.float32]]) -> Tensor:
    """Multiply a gradient [M, K, *out] by one matrix [out, size] for each spatial axis."""
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
            raise step.refusal("it has more than two spatial axes")
    return found


def _global_average(step: Step) -> list[Tensor | None]:
    dims = step.gradient_shape(step.dims())
    return [step.repeat_mean(step.g, dims, range(2, len(dims)))]


def _global_max(step: Step) -> list[Tensor | None]:
    """Give the gradient to the maximum, to the first of equal ones."""
    axes = list(range(2, len(step.dims())))
    found = select_first_extreme(step, step.x(), step.y(), step.g, axes)
    return [step.with_sums_of(step.g, found, axes)]


def _lp_pool(step: Step) -> list[Tensor | None]:
    """Differentiate (sum |x|^p)^(1/p) over windows, along two axes at most."""
    matrices = _window_matrices(step, find_windows(step), None)
    power = int(step.attribute("p", 2))
    return [
        differentiate_norm(
            step, step.g, step.y(), power, lambda g: multiply_along_axes(step, g, matrices)
        )
    ]


def _global_lp_pool(step: Step) -> list[Tensor | None]:
    return [differentiate_norm(step, step.g, step.y(), int(step.attribute("p", 2)))]


RULES: dict[str, Callable[[Step], list[Tensor | None]]] = {
    "MaxPool": _max_pool,
    "AveragePool": _average_pool,
    "LpPool": _lp_pool,
    "GlobalAveragePool": _global_average,
    "GlobalMaxPool": _global_max,
    "GlobalLpPool": _global_lp_pool,
}
