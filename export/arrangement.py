"""Arrange a tensor, a feature map or a sequence of tokens, as activations [N, K, h, w]."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .dims import BATCH, Dim, Dims, Size
from .place_flow import concrete
from .places import IMAGES, NONE, Places, decode, spread
from .shapes import Shapes
from .tensors import Tensor


@dataclass(frozen=True)
class Arrangement:
    """How a tensor's elements with places become [N, K, h, w].

    Attributes:
        dims: of the tensor.
        shape: (K, h, w).
        order: its axes in the order N, places, K; or for a feature map N, K, h, w.
        split: (axis, factor) of a batch axis that holds ``factor`` windows of each image; or None.
        tokens: the positions, along all axes of places in one, of the places in rows; None for a
            feature map, whose axes only change their order.
    """

    dims: Dims
    shape: tuple[int, int, int]
    order: tuple[int, ...]
    split: tuple[int, int] | None = None
    tokens: tuple[int, ...] | None = None

    @property
    def is_feature_map(self) -> bool:
        """Whether the tensor is [N, K, h, w] but for the order of its axes."""
        return self.tokens is None

    @property
    def is_plain(self) -> bool:
        """Whether the tensor is [N, K, h, w] as it is."""
        return self.tokens is None and self.order == (0, 1, 2, 3)

    @property
    def inverse(self) -> list[int]:
        """The permutation of [N, K, h, w] to a feature map's own order."""
        return [self.order.index(axis) for axis in range(len(self.order))]

    @property
    def is_complete(self) -> bool:
        """Whether all of the tensor's elements have places: no class token is among them."""
        whole = _count(self.array_shape(1)) if self.tokens is not None else 0
        return self.tokens is None or whole == _count(self.shape)

    def record(self, tensor: Tensor, rows: Dim) -> Tensor:
        """Record the tensor, or its gradient, as [rows, K, h, w].

        Args:
            tensor: of ``dims``, with ``rows`` for N.
            rows: how many images, or images times classes.
        """
        if self.tokens is None:
            return tensor.transpose(self.order)
        if self.split is not None:
            tensor = tensor.reshape(self._split_dims(tensor.shape, rows))
        tensor = tensor.transpose(self.order)
        channels, height, width = self.shape
        count = _count(tensor.shape[1:-1])
        if tensor.ndim != 3:
            tensor = tensor.reshape((rows, count, channels))
        first = self.tokens[0]
        if self.tokens == tuple(range(first, first + height * width)):
            if height * width < count:
                tensor = tensor[:, first : first + height * width]
        else:
            index = tensor.recorder.constant(np.array(self.tokens, np.int64))
            tensor = tensor.recorder.op(
                "Gather", [tensor, index], (rows, height * width, channels), axis=1
            )
        return tensor.transpose((0, 2, 1)).reshape((rows, channels, height, width))

    def _split_dims(self, dims: Sequence[Any], rows: Any) -> list[Any]:
        assert self.split is not None
        axis, factor = self.split
        return [*dims[:axis], rows, factor, *dims[axis + 1 :]]

    def array_shape(self, images: int) -> tuple[int, ...]:
        """Compute the tensor's shape for a number of images."""
        return tuple(side.factor * images if isinstance(side, Size) else side for side in self.dims)

    def take(self, array: NDArray[Any]) -> NDArray[Any]:
        """Arrange an array: [N, K, h, w]."""
        images = next(
            side // whole.factor
            for side, whole in zip(array.shape, self.dims, strict=True)
            if isinstance(whole, Size)
        )
        if self.split is not None:
            array = array.reshape(self._split_dims(array.shape, images))
        array = array.transpose(self.order)
        if self.tokens is None:
            return array
        channels, height, width = self.shape
        array = array.reshape(images, -1, channels)[:, list(self.tokens)]
        result: NDArray[Any] = array.transpose(0, 2, 1).reshape(images, channels, height, width)
        return result

    def positions(self, images: int) -> NDArray[np.int64]:
        """Compute where in the flat tensor of tokens each element of [images, K, h, w] is."""
        shape = self.array_shape(images)
        return self.take(np.arange(int(np.prod(shape)), dtype=np.int64).reshape(shape))

    def put(self, array: NDArray[Any] | None, activations: NDArray[Any]) -> NDArray[Any]:
        """Arrange activations [N, K, h, w] as the tensor is.

        Args:
            array: the tensor, whose elements of no place are kept; None where it is complete.
            activations: the elements that have places.
        """
        if self.tokens is None:
            return np.ascontiguousarray(activations.transpose(self.inverse))
        if array is None:
            array = np.empty(self.array_shape(len(activations)), activations.dtype)
        flat = array.astype(activations.dtype).reshape(-1)
        flat[self.positions(len(activations)).reshape(-1)] = activations.reshape(-1)
        return flat.reshape(array.shape)


def find_arrangement(places: Places | None, dims: Dims, shapes: Shapes) -> Arrangement | None:
    """Find how a tensor is arranged as [N, K, h, w]; None if its elements do not allow it.

    Each place of a grid must occur once for each image, at one position for all channels; what else
    there is must be of no place. Where sizes are free, only feature maps are arranged.
    """
    batch = [
        axis for axis, side in enumerate(dims) if isinstance(side, Size) and side.counts_images
    ]
    if places is None or len(places) != 1 or len(batch) != 1 or len(dims) < 3:
        return None
    labels = places[0]
    if labels.min() < NONE or labels.max() < 0:
        return None
    channel = _find_channels(labels.shape, dims, batch[0])
    if channel is None:
        return None
    channels = dims[channel]
    side = dims[batch[0]]
    assert isinstance(side, Size)
    if not isinstance(channels, int) or side.symbols != BATCH.symbols:
        return None
    lengths = concrete(dims, shapes)
    others = [axis for axis in range(len(dims)) if axis not in (batch[0], channel)]
    full = spread(labels, lengths, [batch[0], *others])
    order = [batch[0], *others, channel]
    split = None
    if side.factor > 1:
        split = (batch[0], side.factor)
        sides = full.shape
        full = full.reshape(*sides[: batch[0]], IMAGES, side.factor, *sides[batch[0] + 1 :])
        order = [batch[0], batch[0] + 1, *(axis + (axis > batch[0]) for axis in others)]
        order.append(channel + (channel > batch[0]))
    lines = full.transpose(order).reshape(IMAGES, -1)
    found = _find_tokens(lines)
    if found is None:
        return None
    (height, width), tokens = found
    shape = (channels, height, width)
    if split is None and len(dims) == 4:
        in_rows = np.arange(height * width).reshape(height, width)
        for axes, cells in ((others, in_rows), (others[::-1], in_rows.T)):
            sides = tuple(lengths[axis] for axis in axes)
            if sides == (height, width) and tokens == _invert(cells):
                return Arrangement(dims, shape, (batch[0], channel, *axes))
    if any(isinstance(side, Size) and not side.counts_images for side in dims):
        return None
    return Arrangement(dims, shape, tuple(order), split, tokens)


def _find_channels(sides: Sequence[int], dims: Dims, batch: int) -> int | None:
    """Find the only axis along which places do not vary."""
    still = [axis for axis, side in enumerate(sides) if side == 1 and axis != batch]
    long = [axis for axis in still if dims[axis] != 1]
    if len(long) > 1 or not still:
        return None
    return long[0] if long else still[0]


def _find_tokens(
    lines: NDArray[np.int64],
) -> tuple[tuple[int, int], tuple[int, ...]] | None:
    """Find the grid and the position of each of its places, the same in both images."""
    index = np.flatnonzero(lines[0] >= 0)
    height, width, image, y, x = decode(lines[0][index])
    grids = set(zip(height.tolist(), width.tolist(), strict=True))
    if len(grids) != 1 or (image != 0).any():
        return None
    sides = grids.pop()
    rows, columns = _find_sampled(y, sides[0]), _find_sampled(x, sides[1])
    if rows is None or columns is None:
        return None
    h, w = len(rows), len(columns)
    cells = np.searchsorted(rows, y) * w + np.searchsorted(columns, x)
    if len(index) != h * w or len(set(cells.tolist())) != h * w:
        return None
    other = lines[1]
    of_second = np.flatnonzero(other >= 0)
    if not np.array_equal(of_second, index):
        return None
    _, _, image, y2, x2 = decode(other[index])
    if (image != 1).any() or not (np.array_equal(y2, y) and np.array_equal(x2, x)):
        return None
    tokens = np.empty(h * w, np.int64)
    tokens[cells] = index
    return (h, w), tuple(tokens.tolist())


def _find_sampled(coordinates: NDArray[np.int64], side: int) -> NDArray[np.int64] | None:
    """Find the rows (or columns) of a grid that occur; None if they do not cover it evenly.

    All of them do as a rule; every second one where tokens are sampled with a stride of two, which
    gives a coarser grid as a convolution with that stride does.
    """
    lines = np.unique(coordinates)
    steps = np.unique(np.diff(lines))
    if len(steps) > 1:
        return None
    step = int(steps[0]) if len(steps) else side
    return lines if lines[0] < step and lines[-1] + step >= side else None


def _invert(cells: NDArray[np.int64]) -> tuple[int, ...]:
    """Find where in a flat array each cell is."""
    return tuple(np.argsort(cells, axis=None).tolist())


def _count(dims: Sequence[Dim]) -> int:
    total = 1
    for side in dims:
        assert isinstance(side, int)
        total *= side
    return total
