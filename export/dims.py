"""Compute with dimensions of tensors, of which some are known only at run time."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..runtime.errors import ExportError

INT64_MAX = 2**63 - 1  # as the end of a slice: to the end of the axis


@dataclass(frozen=True)
class Size:
    """A dimension that is known only at run time: ``factor`` times the product of ``symbols``.

    Attributes:
        factor: an integer, 1 or more.
        symbols: in alphabetical order: ``N`` images, ``k`` explained classes of each, ``h`` and
            ``w`` of an image of any size, ``H`` and ``W`` steps of a network's input of any size
            (see ``input_sizes``), or a linear form of one of these, as ``8*H-1``; ``C`` classes
            where their embeddings are an input.
    """

    factor: int
    symbols: tuple[str, ...]

    @property
    def counts_images(self) -> bool:
        """Whether it grows with the batch, not with the size of images alone."""
        return "N" in self.symbols

    def at(self, lengths: Mapping[str, int]) -> int:
        """Compute its value where every symbol has a known one."""
        total = self.factor
        for symbol in self.symbols:
            slope, base, offset = read_linear(symbol)
            total *= slope * lengths[base] + offset
        return total

    def __add__(self, other: Dim) -> Dim:
        slope, base, offset = self._linear()
        if isinstance(other, int):
            return linear(slope, base, offset + other)
        other_slope, other_base, other_offset = other._linear()
        if base != other_base:
            raise ExportError(f"the lengths {self} and {other} cannot be added")
        return linear(slope + other_slope, base, offset + other_offset)

    __radd__ = __add__

    def __neg__(self) -> Size:
        return Size(-self.factor, self.symbols)

    def __sub__(self, other: Dim) -> Dim:
        return self + -other

    def __rsub__(self, other: int) -> Dim:
        return -self + other

    def _linear(self) -> tuple[int, str, int]:
        if len(self.symbols) != 1:
            raise ExportError(f"nothing can be added to the length {dim_text(self)}")
        slope, base, offset = read_linear(self.symbols[0])
        return self.factor * slope, base, self.factor * offset

    def __mul__(self, other: Dim) -> Size:
        if isinstance(other, int):
            return Size(self.factor * other, self.symbols)
        return Size(self.factor * other.factor, tuple(sorted(self.symbols + other.symbols)))

    __rmul__ = __mul__


_LINEAR = re.compile(r"(-?\d+)\*(\w+)([+-]\d+)")


def read_linear(symbol: str) -> tuple[int, str, int]:
    """Read slope, symbol and offset of a linear form."""
    form = _LINEAR.fullmatch(symbol)
    return (1, symbol, 0) if form is None else (int(form[1]), form[2], int(form[3]))


Dim = int | Size
Dims = tuple[Dim, ...]
BATCH, CLASSES, PROMPTS = Size(1, ("N",)), Size(1, ("k",)), Size(1, ("C",))


def linear(slope: int, symbol: str, offset: int) -> Dim:
    """Make the dimension ``slope * symbol + offset``, equal ones in one form."""
    if slope == 0:
        return offset
    if offset == 0:
        return Size(slope, (symbol,))
    common = math.gcd(slope, offset)
    return Size(common, (f"{slope // common}*{symbol}{offset // common:+d}",))


def dim_text(dim: Dim) -> int | str:
    """Write a dimension as ONNX declares it: a number, or a name such as ``2*N``."""
    if isinstance(dim, int):
        return dim
    name = "*".join(dim.symbols)
    return name if dim.factor == 1 else f"{dim.factor}*{name}"


def lengths_at(dims: Sequence[Dim], lengths: Mapping[str, int]) -> tuple[int, ...]:
    """Compute a shape where every symbol has a known value."""
    return tuple(dim if isinstance(dim, int) else dim.at(lengths) for dim in dims)


def product(dims: Sequence[Dim]) -> Dim:
    """Multiply dimensions; 1 of none."""
    return math.prod(dims)


def broadcast(*shapes: Dims) -> Dims:
    """Compute the shape to which operands broadcast, by NumPy's rule.

    Raises:
        ExportError: they do not fit.
    """
    rank = max(map(len, shapes))
    padded = [(1,) * (rank - len(shape)) + tuple(shape) for shape in shapes]
    dims: list[Dim] = []
    for sides in zip(*padded, strict=True):
        others = {side for side in sides if side != 1}
        if len(others) > 1:
            raise ExportError(f"shapes {shapes} cannot be broadcast together")
        dims.append(others.pop() if others else 1)
    return tuple(dims)


def divide(whole: Dim, part: Dim) -> Dim:
    """Divide dimensions exactly.

    Raises:
        ExportError: there is a remainder.
    """
    a = whole if isinstance(whole, Size) else Size(whole, ())
    b = part if isinstance(part, Size) else Size(part, ())
    symbols = list(a.symbols)
    for symbol in b.symbols:
        if symbol not in symbols:
            raise ExportError(f"a tensor of {whole} elements cannot be divided into {part}")
        symbols.remove(symbol)
    if b.factor == 0 or a.factor % b.factor:
        raise ExportError(f"a tensor of {whole} elements cannot be divided into {part}")
    factor = a.factor // b.factor
    return Size(factor, tuple(symbols)) if symbols else factor


def divide_up(dim: Dim, step: int) -> Dim:
    """Divide a dimension and round up.

    Raises:
        ExportError: the result is no linear form of the dimension's symbol.
    """
    if isinstance(dim, int):
        return -(-dim // step)
    slope, base, offset = dim._linear()
    if slope % step:
        raise ExportError(f"the length {dim_text(dim)} is no multiple of {step}")
    return linear(slope // step, base, -(-offset // step))


def slice_length(side: Dim, start: int, stop: int, step: int) -> Dim:
    """Compute how many elements a slice takes; of ``Size``, from near one end to near the other.

    Raises:
        ExportError: the length of a ``Size`` that is cut otherwise.
    """
    if isinstance(side, int):
        end = None if stop == INT64_MAX else stop
        return len(range(*slice(start, end, step).indices(side)))
    if start < 0 or step < 1 or (stop >= 0 and stop != INT64_MAX):
        raise ExportError(f"cannot slice an axis of length {dim_text(side)} by {start}:{stop}")
    return divide_up(side + ((0 if stop == INT64_MAX else stop) - start), step)
