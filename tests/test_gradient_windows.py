"""Gradients of convolutions and pooling over kernels, strides, padding, dilations and groups."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from gradients import Case, differences, in_double, node, normal, ties, weights
from hypothesis import assume, given, settings
from hypothesis import strategies as st

one_bug = settings(report_multiple_bugs=False)


@dataclass(frozen=True)
class Geometry:
    """Windows along one axis; padding before and after it."""

    size: int
    kernel: int
    stride: int
    dilation: int
    before: int
    after: int
    how: str
    ceil: bool

    @property
    def span(self) -> int:
        return self.dilation * (self.kernel - 1) + 1

    @property
    def out(self) -> int:
        if self.how.startswith("SAME"):
            return -(-self.size // self.stride)
        room = self.size + sum(self.pads) - self.span
        out = (-(-room // self.stride) if self.ceil else room // self.stride) + 1
        # A window that would begin in the far padding is left out.
        return out - (self.ceil and (out - 1) * self.stride >= self.size + self.pads[0])

    @property
    def pads(self) -> tuple[int, int]:
        if self.how == "NOTSET":
            return self.before, self.after
        if self.how == "VALID":
            return 0, 0
        total = max(0, (self.out - 1) * self.stride + self.span - self.size)
        return (total // 2, -(-total // 2))[:: 1 if self.how == "SAME_UPPER" else -1]

    @property
    def behind(self) -> int:
        """How far the last window reaches beyond the padding."""
        return (self.out - 1) * self.stride + self.span - self.size - sum(self.pads)


@st.composite
def geometries(draw, rank: int, dilated: bool = True, ceil: bool = False) -> list[Geometry]:
    how = draw(st.sampled_from(["NOTSET", "NOTSET", "NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"]))
    rounding = draw(st.booleans()) if ceil and how == "NOTSET" else False
    found = []
    for _ in range(rank):
        kernel, dilation = draw(st.integers(1, 3)), draw(st.integers(1, 2)) if dilated else 1
        edge = st.integers(0, kernel - 1)
        each = Geometry(
            draw(st.integers(3, 7)), kernel, draw(st.integers(1, 3)), dilation, draw(edge),
            draw(edge), how, rounding,
        )  # fmt: skip
        # ONNX Runtime refuses the first, and reads the second as negative padding.
        assume(not (how.startswith("SAME") and (dilation != 1 or kernel < each.stride)))
        assume(each.size + sum(each.pads) >= each.span and each.out >= 1)
        found.append(each)
    return found


def attributes(axes: list[Geometry], **rest: object) -> dict[str, object]:
    found: dict[str, object] = {
        "kernel_shape": [axis.kernel for axis in axes],
        "strides": [axis.stride for axis in axes],
        **rest,
    }
    if any(axis.dilation != 1 for axis in axes):
        found["dilations"] = [axis.dilation for axis in axes]
    if axes[0].how == "NOTSET":
        found["pads"] = [*(axis.pads[0] for axis in axes), *(axis.pads[1] for axis in axes)]
    else:
        found["auto_pad"] = axes[0].how
    return found


def padded(x: torch.Tensor, axes: list[Geometry], value: float, beyond: float) -> torch.Tensor:
    """With its padding, and as far as the last windows reach."""
    edges = [side for axis in reversed(axes) for side in axis.pads]
    ends = [side for axis in reversed(axes) for side in (0, max(0, axis.behind))]
    return F.pad(F.pad(x, edges, value=value), ends, value=beyond)


def error(case: Case, seed: int) -> float:
    return differences(case, n=2, k=2, seed=seed)


@pytest.mark.parametrize("rank", [1, 2])
@given(data=st.data(), groups=st.sampled_from([1, 2]))
@one_bug
def test_convolution(rank, data, groups):
    axes = data.draw(geometries(rank))
    kernel = weights(4, 4 // groups, *(axis.kernel for axis in axes))
    convolve = F.conv1d if rank == 1 else F.conv2d
    strides, dilations = [axis.stride for axis in axes], [axis.dilation for axis in axes]
    case = Case(
        [node("Conv", "x w", group=groups, **attributes(axes))],
        {"x": (4, *(axis.size for axis in axes))},
        {"w": kernel},
        lambda x: convolve(
            padded(x, axes, 0.0, 0.0), in_double(kernel), None, strides, 0, dilations, groups
        ),
    )
    assert error(case, rank) < 1e-4


@given(
    st.integers(2, 5), st.integers(1, 3), st.integers(1, 3), st.integers(1, 2), st.integers(0, 2),
    st.integers(0, 2), st.sampled_from([1, 2]),
)  # fmt: skip
@one_bug
def test_transposed_convolution(size, kernel, stride, dilation, padding, extra, groups):
    assume(extra < stride)
    span = dilation * (kernel - 1) + 1
    assume((size - 1) * stride - 2 * padding + span + extra >= 1)
    held = weights(4, 3, kernel, kernel)
    case = Case(
        [
            node(
                "ConvTranspose", "x w", group=groups, strides=[stride] * 2, pads=[padding] * 4,
                dilations=[dilation] * 2, output_padding=[extra] * 2,
            )
        ],
        {"x": (4, size, size + 1)},
        {"w": held},
        lambda x: F.conv_transpose2d(
            x, in_double(held), None, stride, padding, extra, groups, dilation
        ),
    )  # fmt: skip
    assert error(case, size) < 1e-4


@pytest.mark.parametrize("rank", [1, 2])
@given(data=st.data(), draw=st.sampled_from([normal, ties]))
@one_bug
def test_max_pool_gives_the_first_of_equal_elements_all(rank, data, draw):
    axes = data.draw(geometries(rank, ceil=True))
    pool = F.max_pool1d if rank == 1 else F.max_pool2d

    def function(x: torch.Tensor) -> torch.Tensor:
        return pool(
            padded(x, axes, -math.inf, -math.inf), [axis.kernel for axis in axes],
            [axis.stride for axis in axes], 0, [axis.dilation for axis in axes],
        )  # fmt: skip

    case = Case(
        [node("MaxPool", **attributes(axes, ceil_mode=int(axes[0].ceil)))],
        {"x": (3, *(axis.size for axis in axes))},
        {},
        function,
        draw,
    )
    assert error(case, rank) < 1e-4


@pytest.mark.parametrize("rank", [1, 2])
@given(data=st.data(), whole=st.booleans())
@one_bug
def test_average_pool(rank, data, whole):
    axes = data.draw(geometries(rank, dilated=False, ceil=True))
    convolve = F.conv1d if rank == 1 else F.conv2d
    shape = (1, 1, *(axis.kernel for axis in axes))

    def sums(x: torch.Tensor) -> torch.Tensor:
        flat = x.reshape(-1, 1, *x.shape[2:])
        ones = torch.ones(shape, dtype=x.dtype)
        found = convolve(flat, ones, None, [axis.stride for axis in axes])
        return found.reshape(*x.shape[:2], *found.shape[2:])

    def function(x: torch.Tensor) -> torch.Tensor:
        counted = padded(torch.ones_like(x), axes, float(whole), 0.0)
        return sums(padded(x, axes, 0.0, 0.0)) / sums(counted)

    case = Case(
        [
            node(
                "AveragePool",
                **attributes(axes, ceil_mode=int(axes[0].ceil), count_include_pad=int(whole)),
            )
        ],
        {"x": (3, *(axis.size for axis in axes))},
        {},
        function,
    )
    assert error(case, rank) < 1e-4
