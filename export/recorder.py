"""Record array arithmetic as ONNX nodes, with a namespace of the Python array API.

``runtime.cam``, ``runtime.tft`` and ``runtime.search`` are written against the Python array API.
Given a ``Tensor`` instead of a NumPy array, the same lines append ONNX operators to a graph. Only
operators that every engine takes are recorded (opset 18 and later).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from .dims import (
    Dim,
    Dims,
    Size,
    broadcast,
)
from .tensors import GraphWriter, Tensor, binary_operator, concat, expand, reduce, unsqueeze

FLOAT32_MAX = float(np.finfo(np.float32).max)


_Bool = bool  # for annotations in a class that has an attribute ``bool``


def _unary(kind: str) -> Callable[[Namespace, Tensor], Tensor]:
    def record(namespace: Namespace, x: Tensor) -> Tensor:
        return namespace._recorder.op(kind, [x], x.shape)

    return record


class Namespace:
    """The functions of the array API that the formulas use, on recorded tensors."""

    float32 = ir.DataType.FLOAT
    int64 = ir.DataType.INT64

    def __init__(self, recorder: GraphWriter) -> None:
        self._recorder = recorder
        self.__name__ = __name__
        # Set here, so that annotations in this class still mean the built-in type.
        self.bool = ir.DataType.BOOL

    def asarray(self, values: Any, dtype: ir.DataType | None = None, device: None = None) -> Tensor:
        """Record a constant, or a dimension as a number."""
        del device
        if isinstance(values, Size):
            return self._recorder.length(values).reshape(()).cast(dtype or self.int64)
        return values if isinstance(values, Tensor) else self._recorder.constant(values, dtype)

    def arange(self, count: Dim, device: None = None) -> Tensor:
        """Record int64 0 .. count - 1."""
        del device
        if isinstance(count, Size):
            return self._recorder.range(count)
        return self._recorder.constant(np.arange(count))

    def ones_like(self, x: Tensor) -> Tensor:
        """Record ones of the shape of ``x``."""
        one: NDArray[Any] = np.ones((), x.dtype.numpy())
        return expand(self._recorder.constant(one), x.shape)

    def astype(self, x: Tensor, dtype: ir.DataType) -> Tensor:
        """Cast."""
        return x.cast(dtype)

    def where(self, condition: Tensor, a: Any, b: Any) -> Tensor:
        """Choose by element."""
        dtype = next(each.dtype for each in (a, b) if isinstance(each, Tensor))
        x, y = (
            each if isinstance(each, Tensor) else self._recorder.constant(each, dtype)
            for each in (a, b)
        )
        dims = broadcast(condition.shape, x.shape, y.shape)
        return self._recorder.op("Where", [condition, x, y], dims, dtype)

    def clip(self, x: Tensor, min: float | None = None, max: float | None = None) -> Tensor:
        """Clip to bounds."""
        if min == 0.0 and max is None:
            return self._recorder.op("Relu", [x], x.shape)
        bounds = [
            None if each is None else self._recorder.constant(each, x.dtype) for each in (min, max)
        ]
        return self._recorder.op("Clip", [x, *(bounds if max is not None else bounds[:1])], x.shape)

    def isfinite(self, x: Tensor) -> Tensor:
        """Test for values that are neither NaN nor infinite."""
        return self.abs(x) <= FLOAT32_MAX

    def sum(self, x: Tensor, axis: int | tuple[int, ...], keepdims: _Bool = False) -> Tensor:
        """Sum along axes."""
        return reduce("ReduceSum", x, axis, keepdims)

    def mean(self, x: Tensor, axis: int | tuple[int, ...], keepdims: _Bool = False) -> Tensor:
        """Mean along axes."""
        return reduce("ReduceMean", x, axis, keepdims)

    def max(self, x: Tensor, axis: int | tuple[int, ...], keepdims: _Bool = False) -> Tensor:
        """Largest along axes."""
        return reduce("ReduceMax", x, axis, keepdims)

    def min(self, x: Tensor, axis: int | tuple[int, ...], keepdims: _Bool = False) -> Tensor:
        """Smallest along axes."""
        return reduce("ReduceMin", x, axis, keepdims)

    maximum, minimum = staticmethod(binary_operator("Max")), staticmethod(binary_operator("Min"))
    abs, exp, log, sqrt = _unary("Abs"), _unary("Exp"), _unary("Log"), _unary("Sqrt")
    sin, tanh, floor = _unary("Sin"), _unary("Tanh"), _unary("Floor")

    def matrix_transpose(self, x: Tensor) -> Tensor:
        """The last two axes exchanged."""
        order = [*range(x.ndim - 2), x.ndim - 1, x.ndim - 2]
        return x.transpose(order)

    def reshape(self, x: Tensor, shape: Sequence[Dim]) -> Tensor:
        """Another shape."""
        return x.reshape(shape)

    def concat(self, parts: Sequence[Tensor], axis: int) -> Tensor:
        """Concatenate along an axis."""
        return concat(parts, axis)

    def stack(self, parts: Sequence[Tensor], axis: int) -> Tensor:
        """Stack along a new axis."""
        place = axis % (parts[0].ndim + 1)
        return concat([unsqueeze(part, [place]) for part in parts], place)

    def broadcast_to(self, x: Tensor, shape: Dims) -> Tensor:
        """Broadcast to a shape."""
        return expand(x, tuple(shape))


class Recorder(GraphWriter):
    """Records array arithmetic in a graph.

    Attributes:
        xp: the array namespace of its tensors.
    """

    xp: Namespace

    def __init__(self, graph: ir.Graph) -> None:
        super().__init__(graph)
        self.xp = Namespace(self)

    def for_batch(self, length: Tensor) -> Recorder:
        """Return a recorder of the same graph and part whose batch has another length.

        Args:
            length: of that batch, int64 [1].
        """
        other = Recorder(self.graph)
        other.symbols = {"N": length}
        other.names_sizes = False  # its N is another one than the graph's
        other._part, other._counts, other._constants = self._part, self._counts, self._constants
        return other
