"""Infer shapes and small constants of every tensor of a graph, from several input sizes.

ONNX's shape inference cannot express that a batch of N gives 64 N windows. So shapes are inferred
twice, for 2 and for 3 images: a dimension that stays is fixed, one that grows in proportion is a
multiple of the batch, and any other is refused. Where height and width are free, more sizes tell in
the same way how each dimension depends on them. Tensors that depend on shapes and constants alone
are evaluated.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ..runtime.errors import ExportError
from ..runtime.manifest import FilePrecision
from .dims import BATCH, Dim, Dims, Size, lengths_at, linear
from .propagation import propagate

# Lengths of the symbols of ``Size`` for which shapes are inferred.
Probes = Sequence[Mapping[str, int]]
_BATCHES: Probes = ({"N": 2}, {"N": 3})
_SYMBOLS = ("H", "N", "W")


@dataclass(frozen=True)
class Shapes:
    """What is known of a graph's tensors.

    Attributes:
        dims: the shape of each tensor; the batch appears as ``Size``.
        dtypes: the element type of each tensor.
        constants: the value of each small tensor that does not depend on any input.
        varying: of small tensors that depend on the input's shape alone, the values for each
            probed shape.
        one: the length of each symbol for one image of the usual size.
        largest: the same for the largest size.
    """

    dims: dict[ir.Value, Dims]
    dtypes: dict[ir.Value, ir.DataType]
    constants: dict[ir.Value, NDArray[Any]]
    varying: dict[ir.Value, tuple[NDArray[Any], ...]]
    one: Mapping[str, int] = field(default_factory=lambda: {"N": 1})
    largest: Mapping[str, int] = field(default_factory=lambda: {"N": 1})

    @property
    def precision(self) -> FilePrecision:
        """The precision that the network computes in: half where any tensor of images is."""
        computed = {
            self.dtypes.get(value)
            for value, dims in self.dims.items()
            if value.producer() is not None
            and any(isinstance(side, Size) and side.counts_images for side in dims)
        }
        if ir.DataType.BFLOAT16 in computed:
            return "bf16"
        return "fp16" if ir.DataType.FLOAT16 in computed else "fp32"

    def count_largest(self, value: ir.Value | None) -> int:
        """Count a tensor's elements for one image of the largest size; 1 if it is not known."""
        return math.prod(lengths_at(self.dims.get(value, ()), self.largest))  # type: ignore[arg-type]


def find_shapes(
    graph: ir.Graph, inputs: Mapping[ir.Value, Dims], probes: Probes = _BATCHES
) -> Shapes:
    """Infer the shapes of all tensors of a graph whose batch size is free.

    Args:
        graph: without subgraphs or functions.
        inputs: the shape of each graph input without its batch.
        probes: lengths of the symbols that occur; by default two batch sizes.

    Raises:
        ExportError: an operator is unknown, or a dimension is neither fixed nor grows in
            proportion.
    """
    results = [
        propagate(
            graph, {value: lengths_at((BATCH, *dims), probe) for value, dims in inputs.items()}
        )
        for probe in probes
    ]
    first = results[0]
    dims: dict[ir.Value, Dims] = {}
    for value in max((each.shapes for each in results), key=len):
        shapes = [each.shapes[value] for each in results if value in each.shapes]
        node = value.producer()
        if len(shapes) < len(results) > len(_BATCHES) and node is not None:
            raise ExportError(
                f"the node '{node.name}' ({node.op_type}) has no output for the smallest images of "
                "the range: begin --dynamic-size higher, or leave it out"
            )
        if len(shapes) == len(results):
            dims[value] = _express_shape(value, shapes, probes)
    constants, varying = {}, {}
    for value, array in first.constants.items():
        others = [each.constants[value] for each in results[1:] if value in each.constants]
        if len(others) < len(results) - 1:
            continue
        if all(
            array.shape == other.shape
            and np.array_equal(array, other, equal_nan=array.dtype.kind == "f")
            for other in others
        ):
            constants[value] = array
        else:
            varying[value] = (array, *others)
    return Shapes(dims, first.dtypes, constants, varying)


def _express_shape(value: ir.Value, shapes: Sequence[Sequence[int]], probes: Probes) -> Dims:
    """Express a shape, known for some lengths of the symbols, in these symbols."""
    if len(set(map(len, shapes))) > 1:
        raise ExportError(f"the tensor '{value.name}' has another rank for another input size")
    dims: list[Dim] = []
    for axis in range(len(shapes[0])):
        lengths = [shape[axis] for shape in shapes]
        dim = _express_length(lengths, probes)
        if dim is None:
            raise _not_expressible(value, lengths, probes)
        dims.append(dim)
    return tuple(dims)


def _express_length(lengths: Sequence[int], probes: Probes) -> Dim | None:
    """Express a length as a multiple of symbols, or as a linear form of one; None: it is neither.

    The probes after the first change one symbol each; the last ones are there to confirm.
    """
    first, base = lengths[0], probes[0]
    changed: dict[str, tuple[int, int]] = {}
    for length, probe in zip(lengths[1:], probes[1:], strict=True):
        (symbol, *others) = [name for name in base if probe[name] != base[name]] or [""]
        if not others and length != first:
            changed.setdefault(symbol, (length - first, probe[symbol] - base[symbol]))
    images = base["N"] if "N" in changed else 1
    symbols = tuple(symbol for symbol in _SYMBOLS if symbol in changed)
    dim: Dim = first
    if len(changed) == 1 and images == 1:
        ((symbol, (rise, run)),) = changed.items()
        dim = linear(rise // run, symbol, first - rise // run * base[symbol])
    elif changed:
        factor, rest = divmod(first, math.prod(base[symbol] for symbol in symbols))
        if rest or factor == 0:
            return None
        dim = Size(factor, symbols)
    return dim if lengths == [lengths_at([dim], probe)[0] for probe in probes] else None


def _not_expressible(value: ir.Value, lengths: Sequence[int], probes: Probes) -> ExportError:
    node = value.producer()
    what = "" if node is None else f" (of the node '{node.name}', {node.op_type})"
    if len(probes) == len(_BATCHES):
        small, large = (probe["N"] for probe in probes)
        return ExportError(
            f"the tensor '{value.name}' has {lengths[0]} elements along one axis for {small} "
            f"images and {lengths[1]} for {large}: dimensions must be fixed or multiples of the "
            "batch"
        )
    return ExportError(
        f"the tensor '{value.name}'{what} has an axis of {min(lengths)} to {max(lengths)} "
        "elements that is neither fixed nor grows in proportion to the images' height or width, so "
        "one graph cannot explain images of any size: leave out --dynamic-size"
    )
