"""Write ONNX nodes to a graph by arithmetic on tensors that behave as arrays."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from typing import Any

import numpy as np
import onnx_ir as ir

from .dims import (
    INT64_MAX,
    Dim,
    Dims,
    Size,
    broadcast,
    dim_text,
    divide,
    product,
    read_linear,
    slice_length,
)


class GraphWriter:
    """Appends nodes to a graph.

    Attributes:
        graph: the nodes are appended to it.
        symbols: an int64 [1] tensor that holds each symbol of ``Size``.
        xp: the array namespace of its tensors, which a subclass provides.
    """

    xp: Any

    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph
        self.symbols: dict[str, Tensor] = {}
        self._part = "whycam"
        self._counts: dict[str, int] = {}
        self._constants: dict[tuple[Any, ...], Tensor] = {}
        self._lengths: dict[Dims, Tensor] = {}
        # The tensor that a recorded tensor holds the same elements of, in the same order.
        self.reshaped: dict[ir.Value, Tensor] = {}
        # The tensor whose sums over the places (axes 2 and 3) are those of a
        # recorded tensor; what pools a layer sets it.
        self.same_sums: dict[ir.Value, Tensor] = {}
        self.recorded: dict[ir.Value, Tensor] = {}
        # Whether the file says which sizes are equal: engines share memory between such tensors.
        self.names_sizes = True

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Name the nodes recorded inside the block ``whycam/<name>/...``."""
        before, self._part = self._part, f"whycam/{name}"
        try:
            yield
        finally:
            self._part = before

    def name_for(self, kind: str) -> str:
        """Create a name that no other node or value of the graph has."""
        stem = f"{self._part}/{kind}"
        count = self._counts.get(stem, 0)
        self._counts[stem] = count + 1
        return f"{stem}_{count}"

    def constant(self, values: Any, dtype: ir.DataType | None = None) -> Tensor:
        """Create a constant; equal ones are stored once."""
        array = np.asarray(values, dtype=None if dtype is None else dtype.numpy())
        if array.dtype == np.float64 and dtype is None:
            array = array.astype(np.float32)
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._constants:
            # Another recorder may have written constants to the graph before.
            taken = self.graph.initializers
            number = next(n for n in count(len(self._constants)) if _constant(n) not in taken)
            name = _constant(number)
            tensor = ir.tensor(np.ascontiguousarray(array).reshape(array.shape), name=name)
            value = ir.Value(
                name=name,
                shape=ir.Shape(array.shape),
                type=ir.TensorType(tensor.dtype),
                const_value=tensor,
            )
            self.graph.register_initializer(value)
            self._constants[key] = Tensor(self, value, array.shape, tensor.dtype)
        found = self._constants[key]
        return Tensor(self, found.value, found.shape, found.dtype)

    def op(
        self,
        kind: str,
        inputs: Sequence[Tensor | None],
        dims: Sequence[Dim],
        dtype: ir.DataType | None = None,
        **attributes: Any,
    ) -> Tensor:
        """Append one node with one output.

        Args:
            kind: ONNX operator of the default domain.
            inputs: its inputs; None where an optional one is left out.
            dims: of the output, which the caller computes.
            dtype: of the output; by default that of the first input.
        """
        first = next(each for each in inputs if each is not None)
        name = self.name_for(kind)
        dtype = dtype or first.dtype
        shape = _ir_shape(dims) if self.names_sizes else _ir_shape_of_numbers(dims)
        value = ir.Value(name=name, shape=shape, type=ir.TensorType(dtype))
        node = ir.Node(
            "",
            kind,
            [None if each is None else each.value for each in inputs],
            ir.convenience.convert_attributes(attributes),
            outputs=[value],
            name=name,
        )
        self.graph.append(node)
        self.recorded[value] = Tensor(self, value, tuple(dims), dtype)
        return self.recorded[value]

    def shape_tensor(self, dims: Sequence[Dim]) -> Tensor:
        """Record an int64 [rank] tensor that holds a shape at run time, once for each shape."""
        key = tuple(dims)
        if key not in self._lengths:
            self._lengths[key] = self._record_shape(key)
        return self._lengths[key]

    def _record_shape(self, dims: Dims) -> Tensor:
        parts: list[Tensor] = []
        run: list[int] = []
        for dim in dims:
            if isinstance(dim, int):
                run.append(dim)
                continue
            if run:
                parts.append(self.constant(np.array(run, np.int64)))
                run = []
            parts.append(self.length(dim))
        if run:
            parts.append(self.constant(np.array(run, np.int64)))
        return parts[0] if len(parts) == 1 else self.op("Concat", parts, (len(dims),), axis=0)

    def range(self, dim: Size) -> Tensor:
        """Record int64 0 .. n - 1 for a dimension n that is known only at run time."""
        zero, one = (self.constant(np.array(number, np.int64)) for number in (0, 1))
        stop = self.length(dim).reshape(())
        return self.op("Range", [zero, stop, one], (dim,))

    def length(self, dim: Dim) -> Tensor:
        """Record a dimension as an int64 [1] tensor."""
        if isinstance(dim, int):
            return self.constant(np.array([dim], np.int64))
        if (dim,) not in self._lengths:
            found = self._symbol_length(dim.symbols[0])
            for symbol in dim.symbols[1:]:
                found = found * self._symbol_length(symbol)
            self._lengths[dim,] = found if dim.factor == 1 else found * dim.factor
        return self._lengths[dim,]

    def _symbol_length(self, symbol: str) -> Tensor:
        if symbol not in self.symbols:
            slope, base, offset = read_linear(symbol)
            scaled = self.symbols[base] if slope == 1 else self.symbols[base] * slope
            self.symbols[symbol] = scaled + offset
        return self.symbols[symbol]


def _ir_shape(dims: Sequence[Dim]) -> ir.Shape:
    return ir.Shape([dim_text(dim) for dim in dims])


def _ir_shape_of_numbers(dims: Sequence[Dim]) -> ir.Shape:
    return ir.Shape([dim if isinstance(dim, int) else None for dim in dims])


def binary_operator(
    kind: str, swap: bool = False, boolean: bool = False
) -> Callable[[Tensor, Any], Tensor]:
    """Make the method that records a binary operator, of a tensor and another or a number."""

    def record(self: Tensor, other: Any) -> Tensor:
        if not isinstance(other, Tensor):
            other = self.recorder.constant(other, self.dtype)
        operands = [other, self] if swap else [self, other]
        dtype = ir.DataType.BOOL if boolean else None
        return self.recorder.op(kind, operands, broadcast(self.shape, other.shape), dtype)

    return record


class Tensor:
    """A tensor of a graph that is being recorded; behaves as an array of the array API.

    Attributes:
        value: in the graph.
        shape: its dimensions, whole numbers or ``Size``.
        dtype: its element type.
    """

    __array_priority__ = 1000  # NumPy scalars leave arithmetic to this class
    __array_ufunc__ = None
    device = None

    def __init__(
        self, recorder: GraphWriter, value: ir.Value, shape: Dims, dtype: ir.DataType
    ) -> None:
        self.recorder = recorder
        self.value = value
        self.shape = tuple(shape)
        self.dtype = dtype

    def __repr__(self) -> str:
        return f"Tensor({self.value.name}, {self.shape}, {self.dtype})"

    def __array_namespace__(self, api_version: str | None = None) -> Any:
        return self.recorder.xp

    @property
    def ndim(self) -> int:
        """How many axes it has."""
        return len(self.shape)

    __add__, __radd__ = binary_operator("Add"), binary_operator("Add", swap=True)
    __sub__, __rsub__ = binary_operator("Sub"), binary_operator("Sub", swap=True)
    __mul__, __rmul__ = binary_operator("Mul"), binary_operator("Mul", swap=True)
    __truediv__, __rtruediv__ = binary_operator("Div"), binary_operator("Div", swap=True)
    __pow__ = binary_operator("Pow")
    __floordiv__ = binary_operator("Div")  # of non-negative integers, the only operands that occur
    __ge__, __gt__ = (
        binary_operator("GreaterOrEqual", boolean=True),
        binary_operator("Greater", boolean=True),
    )
    __le__, __lt__ = (
        binary_operator("LessOrEqual", boolean=True),
        binary_operator("Less", boolean=True),
    )
    __and__, __or__ = binary_operator("And"), binary_operator("Or")
    __eq__ = binary_operator("Equal", boolean=True)  # type: ignore[assignment]

    def __neg__(self) -> Tensor:
        return self.recorder.op("Neg", [self], self.shape)

    def __ne__(self, other: Any) -> Tensor:  # type: ignore[override]
        return self.recorder.op("Not", [self == other], self.shape)

    __hash__ = None  # type: ignore[assignment]

    def __bool__(self) -> bool:
        raise TypeError("a recorded tensor has no truth value: decide with where()")

    def __invert__(self) -> Tensor:
        return self.recorder.op("Not", [self], self.shape)

    def __matmul__(self, other: Tensor) -> Tensor:
        lead = broadcast(self.shape[:-2], other.shape[:-2])
        return self.recorder.op("MatMul", [self, other], (*lead, self.shape[-2], other.shape[-1]))

    def __getitem__(self, key: Any) -> Tensor:
        """Index with slices, integers, None and one ellipsis."""
        cuts, squeezed, inserted = _read_index(key, self.shape)
        found = _sliced(self, cuts) if cuts else self
        found = squeeze(found, squeezed) if squeezed else found
        return unsqueeze(found, inserted) if inserted else found

    def reshape(self, shape: Sequence[Dim]) -> Tensor:
        """Reshape; -1 stands for the remaining elements, as in NumPy."""
        dims = list(shape)
        if -1 in dims:
            at = dims.index(-1)
            dims[at] = divide(product(self.shape), product([dim for dim in dims if dim != -1]))
        source = self.recorder.reshaped.get(self.value, self)
        for same in (self, source):
            if same.shape == tuple(dims):
                return same
        found = self.recorder.op("Reshape", [source, source._shape_for(dims)], dims, allowzero=0)
        self.recorder.reshaped[found.value] = source
        return found

    def _shape_for(self, dims: Sequence[Dim]) -> Tensor:
        unknown = [i for i, dim in enumerate(dims) if not isinstance(dim, int)]
        numbers = [dim if isinstance(dim, int) else 0 for dim in dims]
        moved = [i for i in unknown if not (i < self.ndim and self.shape[i] == dims[i])]
        if len(moved) <= 1:
            for i in moved:
                numbers[i] = -1
            return self.recorder.constant(np.array(numbers, np.int64))
        return self.recorder.shape_tensor(dims)

    def sum(self, axis: int | tuple[int, ...], keepdims: bool = False) -> Tensor:
        """Sum along axes, as in NumPy."""
        return reduce("ReduceSum", self, axis, keepdims)

    def cast(self, dtype: ir.DataType) -> Tensor:
        """Convert to another element type."""
        if dtype == self.dtype:
            return self
        return self.recorder.op("Cast", [self], self.shape, dtype, to=int(dtype))

    def transpose(self, order: Sequence[int]) -> Tensor:
        """Permute the axes."""
        if list(order) == list(range(self.ndim)):
            return self
        dims = [self.shape[axis] for axis in order]
        return self.recorder.op("Transpose", [self], dims, perm=list(order))


def _read_index(
    key: Any, shape: Dims
) -> tuple[list[tuple[int, int, int, int]], list[int], list[int]]:
    """Read cuts (axis, start, stop, step), then axes to squeeze, then axes to insert."""
    keys = list(key) if isinstance(key, tuple) else [key]
    taken = sum(each is not None and each is not Ellipsis for each in keys)
    at = next((i for i, each in enumerate(keys) if each is Ellipsis), len(keys))
    keys[at : at + 1] = [slice(None)] * (len(shape) - taken)
    cuts: list[tuple[int, int, int, int]] = []
    squeezed: list[int] = []
    inserted: list[int] = []
    axis = place = 0  # of the tensor, of the result
    for each in keys:
        if each is None:
            inserted.append(place)
            place += 1
            continue
        if isinstance(each, int):
            side = shape[axis]
            index = each + side if each < 0 and isinstance(side, int) else each
            cuts.append((axis, index, index + 1, 1))
            squeezed.append(axis)
        else:
            if each != slice(None):
                step = each.step or 1
                ends = (0, INT64_MAX) if step > 0 else (-1, -INT64_MAX)
                start = ends[0] if each.start is None else each.start
                cuts.append((axis, start, ends[1] if each.stop is None else each.stop, step))
            place += 1
        axis += 1
    return cuts, squeezed, inserted


def _sliced(x: Tensor, cuts: Sequence[tuple[int, int, int, int]]) -> Tensor:
    dims = list(x.shape)
    for axis, *ends in cuts:
        dims[axis] = slice_length(dims[axis], *ends)
    axes, starts, stops, steps = (
        x.recorder.constant(np.array(column, np.int64)) for column in zip(*cuts, strict=True)
    )
    return x.recorder.op("Slice", [x, starts, stops, axes, steps], dims)


def squeeze(x: Tensor, axes: Sequence[int]) -> Tensor:
    """Remove axes of length 1."""
    dims = [dim for axis, dim in enumerate(x.shape) if axis not in axes]
    found = x.recorder.op("Squeeze", [x, x.recorder.constant(np.array(axes, np.int64))], dims)
    x.recorder.reshaped[found.value] = x.recorder.reshaped.get(x.value, x)
    return found


def unsqueeze(x: Tensor, axes: Sequence[int]) -> Tensor:
    """Insert axes of length 1, at positions of the result."""
    dims = list(x.shape)
    for axis in sorted(axes):
        dims.insert(axis, 1)
    found = x.recorder.op("Unsqueeze", [x, x.recorder.constant(np.array(axes, np.int64))], dims)
    x.recorder.reshaped[found.value] = x.recorder.reshaped.get(x.value, x)
    return found


def reduce(kind: str, x: Tensor, axis: int | Sequence[int], keepdims: bool) -> Tensor:
    """Reduce along axes by an operator such as ``ReduceSum``, as NumPy does."""
    axes = sorted(each % x.ndim for each in ([axis] if isinstance(axis, int) else axis))
    dims = [1 if i in axes else dim for i, dim in enumerate(x.shape) if keepdims or i not in axes]
    constant = x.recorder.constant(np.array(axes, np.int64))
    return x.recorder.op(kind, [x, constant], dims, keepdims=int(keepdims))


def concat(parts: Sequence[Tensor], axis: int) -> Tensor:
    """Concatenate along an axis of known lengths."""
    axis %= parts[0].ndim
    dims = list(parts[0].shape)
    dims[axis] = sum(part.shape[axis] for part in parts)
    return parts[0].recorder.op("Concat", list(parts), dims, axis=axis)


def pad(x: Tensor, before: Sequence[int], after: Sequence[int], value: float = 0.0) -> Tensor:
    """Pad the edges of each axis; negative counts crop."""
    if not any(before) and not any(after):
        return x
    dims = [
        dim if a == b == 0 else dim + a + b
        for dim, a, b in zip(x.shape, before, after, strict=True)
    ]
    edges = x.recorder.constant(np.array([*before, *after], np.int64))
    return x.recorder.op("Pad", [x, edges, x.recorder.constant(value, x.dtype)], dims)


def expand(x: Tensor, shape: Dims) -> Tensor:
    """Broadcast a tensor to a shape."""
    if x.shape == tuple(shape):
        return x
    return x.recorder.op("Expand", [x, x.recorder.shape_tensor(shape)], shape)


def _constant(number: int) -> str:
    return f"whycam/constant_{number}"
