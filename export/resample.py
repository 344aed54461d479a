"""Preprocessing inside the graph: a picture of any size becomes the network's input.

ONNX's own Resize with antialias is not portable (one engine ignores the attribute, another rejects
it). Resampling is linear and separable, so it is two matrix products whose weights the graph
computes from the picture's size; its rounding is Pillow's, which training pipelines use: along
rows first, to whole numbers in 0 .. 255, then along columns. (From version 13 on Pillow turns that
order round where a picture shrinks far more in height than in width; where a bicubic filter
overshoots, the clipping in between then falls elsewhere.)
"""

from __future__ import annotations

import torch

from ..runtime.errors import ExportError
from ..runtime.manifest import Interpolation, Preprocess


class Resample(torch.nn.Module):
    """uint8 [N, h, w, 3] RGB to the normalised float32 [N, 3, H, W], as ``runtime.preprocess``.

    For pictures of one known size the weights are constants, and pixels that the crop leaves out
    are left out at once. Otherwise sizes stay tensors throughout, so that nothing is decided
    while the graph is recorded.
    """

    mean: torch.Tensor
    std: torch.Tensor
    rows: torch.Tensor
    columns: torch.Tensor

    def __init__(self, spec: Preprocess, picture_size: tuple[int, int] | None = None) -> None:
        super().__init__()
        if spec.interpolation not in _FILTERS:
            raise ExportError(
                f"preprocessing inside the graph cannot be '{spec.interpolation}': which source "
                f"pixel is nearest is a matter of rounding; choose from: {', '.join(_FILTERS)}"
            )
        self.spec = spec
        for name in ("mean", "std"):
            value = torch.tensor(getattr(spec, name), dtype=torch.float32)[:, None, None]
            self.register_buffer(name, value, persistent=False)
        self.window: tuple[slice, slice] | None = None
        if picture_size is not None:
            rows, columns = (_trimmed(matrix) for matrix in self._weights(*picture_size))
            self.window = rows[0], columns[0]
            self.register_buffer("rows", rows[1], persistent=False)
            self.register_buffer("columns", columns[1], persistent=False)

    def forward(self, picture: torch.Tensor) -> torch.Tensor:
        """Resize, crop, normalise."""
        x = picture.to(torch.float32)  # first of all: TensorRT does nothing else with uint8
        if self.window is None:
            rows, columns = self._weights(*picture.shape[1:3])
        else:
            rows, columns = self.rows, self.columns
            x = x[:, self.window[0], self.window[1]]
        x = x.permute(0, 3, 1, 2)
        x = _whole(rows @ _whole(x @ columns.T))
        return (x / 255.0 - self.mean) / self.std

    def _weights(self, height: int, width: int) -> list[torch.Tensor]:
        """The matrices along rows' and columns' axes, [H, h] and [W, w]."""
        spec = self.spec
        full = [torch.scalar_tensor(side, dtype=torch.int64) for side in (height, width)]
        return [
            weights(torch.arange(n), whole, new, wanted, spec.interpolation)
            for n, whole, new, wanted in zip(
                (height, width), full, resized(full, spec), spec.size, strict=True
            )
        ]


def _trimmed(matrix: torch.Tensor) -> tuple[slice, torch.Tensor]:
    """The source pixels that count at all, and the matrix for these."""
    used = matrix.any(dim=0).nonzero()[:, 0]
    part = slice(int(used[0]), int(used[-1]) + 1)
    return part, matrix[:, part].contiguous()


def _whole(values: torch.Tensor) -> torch.Tensor:
    """Rounded half up and held in 0 .. 255, as a uint8 picture between two passes is."""
    return torch.clamp(torch.floor(values + 0.5), 0.0, 255.0)


def resized(full: list[torch.Tensor], spec: Preprocess) -> list[torch.Tensor]:
    """The size before the crop, as ``runtime.preprocess.place`` finds it; int64 scalars."""
    if not spec.resize:
        return full
    if len(spec.resize) == 2:
        return [torch.scalar_tensor(side, dtype=torch.int64) for side in spec.resize]
    (short,) = spec.resize
    height, width = full
    shorter = torch.minimum(height, width)
    return [_over(short * side, shorter) for side in (height, width)]


def _over(a: torch.Tensor, b: torch.Tensor | int) -> torch.Tensor:
    return torch.div(a, b, rounding_mode="floor")


def _start(new: torch.Tensor, wanted: int) -> torch.Tensor:
    """Where a centred window begins; halves are rounded to even, as Python's ``round`` does."""
    excess = new - wanted
    half = _over(excess, 2)
    even = 2 * _over(excess + 1, 4)
    inside = torch.where(excess - 2 * half == 0, half, even)
    return torch.where(excess >= 0, inside, -_over(-excess, 2))


def weights(
    source: torch.Tensor,
    full: torch.Tensor,
    new: torch.Tensor,
    wanted: int,
    interpolation: Interpolation,
) -> torch.Tensor:
    """Resampling along one axis, as a matrix: how much each source pixel adds to each one wanted.

    Args:
        source: the source pixels' indices, int64 [n].
        full: how many pixels the picture has along this axis, int64 scalar.
        new: how many it is resized to, int64 scalar.
        wanted: how many of these, from the centre, are kept.
        interpolation: the filter.

    Returns:
        float32 [wanted, n]; rows sum to 1, or to 0 outside the picture.
    """
    place = torch.arange(wanted) + _start(new, wanted)
    # Pixel centres, in units of 1 / (2 new) source pixels: whole numbers, so no rounding yet.
    centre = (2 * place + 1)[:, None] * full
    distance = centre - (2 * source + 1) * new
    # Shrinking widens the filter: that is the antialias.
    unit = 2 * torch.maximum(full, new)
    found = _FILTERS[interpolation](distance.abs().to(torch.float32) / unit.to(torch.float32))
    total = found.sum(-1, keepdim=True)
    found = found / torch.where(total == 0, 1.0 + total, total)
    inside = (place >= 0) & (place < new)
    return torch.where(inside[:, None], found, 0.0 * found)


def _triangle(u: torch.Tensor) -> torch.Tensor:
    return torch.clamp(1.0 - u, min=0.0)


def _cubic(u: torch.Tensor) -> torch.Tensor:
    """Keys' cubic convolution with a = -1/2, u >= 0."""
    near = (1.5 * u - 2.5) * u * u + 1.0
    far = ((-0.5 * u + 2.5) * u - 4.0) * u + 2.0
    return torch.where(u < 1.0, near, torch.where(u < 2.0, far, 0.0 * u))


def _lanczos(u: torch.Tensor) -> torch.Tensor:
    """sinc(u) sinc(u / 3) within three pixels, u >= 0."""
    t = torch.pi * u
    zero = t == 0.0
    inside = 3.0 * torch.sin(t) * torch.sin(t / 3.0) / torch.where(zero, 1.0 + t, t * t)
    inside = torch.where(zero, 1.0 + 0.0 * t, inside)
    return torch.where(u < 3.0, inside, 0.0 * u)


_FILTERS = {"bilinear": _triangle, "bicubic": _cubic, "lanczos": _lanczos}
