"""Describe where the windows of pooling and convolution lie along each spatial axis."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..dims import Dim, divide_up
from .step import Step


@dataclass(frozen=True)
class Windows:
    """Where the windows of a pooling layer lie; one number for each spatial axis.

    Attributes:
        kernel, strides, dilations: of a window.
        before, after: padding.
        size: positions of the input.
        out: positions of the output, one a window.
        overhang: how far the last window reaches beyond the input; negative: how much it leaves
            out.
    """

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]
    size: tuple[Dim, ...]
    out: tuple[Dim, ...]
    overhang: tuple[int, ...]


def find_windows(step: Step) -> Windows:
    """Read the windows of a pooling layer whose input is [N, K, *positions]."""
    kernel = tuple(step.attribute("kernel_shape"))
    rank = len(kernel)
    strides = tuple(step.attribute("strides", [1] * rank))
    dilations = tuple(step.attribute("dilations", [1] * rank))
    pads = resolve_padding(step, kernel, strides, dilations)
    size, out = (tuple(step.lengths(dims[2:])) for dims in (step.dims(), step.y().shape))
    overhang = [
        (o - 1) * s + d * (k - 1) + 1 - b - n
        for o, s, d, k, b, n in zip(out, strides, dilations, kernel, pads[:rank], size, strict=True)
    ]
    return Windows(
        kernel,
        strides,
        dilations,
        tuple(pads[:rank]),
        tuple(pads[rank:]),
        size,
        out,
        tuple(step.static_lengths(overhang)),
    )


def resolve_padding(
    step: Step, kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int]
) -> list[int]:
    """Work out the padding before each axis, then after each, ``auto_pad`` included."""
    rank = len(kernel)
    how = step.attribute("auto_pad", "NOTSET")
    if how in ("NOTSET", ""):
        return list(step.attribute("pads", [0] * 2 * rank))
    if how == "VALID":
        return [0] * 2 * rank
    before, after = [], []
    for whole, k, s, d in zip(
        step.lengths(step.dims()[2:]), kernel, strides, dilations, strict=True
    ):
        windows = divide_up(whole, s)
        (excess,) = step.static_lengths([(windows - 1) * s + d * (k - 1) + 1 - whole])
        total = max(0, excess)
        small = total // 2
        before.append(small if how == "SAME_UPPER" else total - small)
        after.append(total - before[-1])
    return [*before, *after]
