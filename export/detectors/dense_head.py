"""Split a dense head into its levels' convolutions and the rest, and find each candidate's cell."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ...runtime.errors import ExportError
from ..data_flow import Layer
from ..default_layer import ELEMENTWISE
from ..gradient.reverse import find_path, varies
from ..layers import Network
from ..references import open_in_float64
from ..subgraph import submodel

_LARGEST = 16  # cells from the middle of a patch to its edge


@dataclass(frozen=True)
class Level:
    """The head of one level.

    Attributes:
        layer: where it begins.
        nodes: of the head, in order.
        ends: its outputs, maps of the level's size.
        radius: how many cells around its own an output reads.
    """

    layer: Layer
    nodes: tuple[ir.Node, ...]
    ends: tuple[ir.Value, ...]
    radius: int


@dataclass(frozen=True)
class DenseHead:
    """A dense head, in parts.

    Attributes:
        levels: their heads.
        tail: the nodes after these.
        cells: of each candidate: level, row and column, int64 [A, 3].
    """

    levels: tuple[Level, ...]
    tail: tuple[ir.Node, ...]
    cells: NDArray[np.int64]


def find_dense_head(
    network: Network, layers: Sequence[Layer], end: ir.Value, nodes: Sequence[ir.Node]
) -> DenseHead | None:
    """Split a head into parts; None where it is no dense head.

    Args:
        network: before anything is added.
        layers: the levels.
        end: what is explained, [N, A, D].
        nodes: from the levels to the end, in order.
    """
    shapes = network.plain.shapes
    if shapes.precision != "fp32":
        return None
    given = [layer.value for layer in layers]
    path, _ = find_path(given, end, nodes, carries=lambda value: varies(value, shapes))
    levels, inside = [], set[ir.Node]()
    for layer in layers:
        level = _find_level(network, layer, path)
        if level is None or inside & set(level.nodes):
            return None
        levels.append(level)
        inside |= set(level.nodes)
    ends = [value for level in levels for value in level.ends]
    cells = _find_cells(network, levels, ends, end)
    if cells is None:
        return None
    tail, _ = find_path(ends, end, nodes)
    return DenseHead(tuple(levels), tuple(tail), cells)


def _find_level(network: Network, layer: Layer, path: Sequence[ir.Node]) -> Level | None:
    """Follow a level through operators that keep places; None where there are none."""
    dims = network.plain.shapes.dims
    start = dims[layer.value]
    if len(start) != 4 or start[1:] != layer.shape:
        return None
    radius: dict[ir.Value, int] = {layer.value: 0}
    own: list[ir.Node] = []
    for node in path:
        sources = [v for v in node.inputs if v is not None and not v.is_initializer()]
        if not sources or any(
            v not in radius and v not in network.plain.shapes.constants for v in sources
        ):
            continue
        sources = [v for v in sources if v in radius]
        reach = _reach_of(network, node)
        if not sources or reach is None or any(dims[v][2:] != start[2:] for v in node.outputs):
            continue
        own.append(node)
        radius.update(dict.fromkeys(node.outputs, reach + max(radius[v] for v in sources)))
    inside, on_path = set(own), set(path)
    ends = [
        value
        for value in radius
        if any(use.node in on_path and use.node not in inside for use in value.uses())
    ]
    if not ends or layer.value in ends:
        return None
    largest = max(radius[value] for value in ends)
    return Level(layer, tuple(own), tuple(ends), largest) if largest <= _LARGEST else None


def _reach_of(network: Network, node: ir.Node) -> int | None:
    """Return how many cells around its own an operator reads; None of one that moves places."""
    dims = network.plain.shapes.dims
    if any(len(dims.get(value, ())) != 4 for value in node.outputs):
        return None
    if node.op_type == "Cast" and node.attributes["to"].as_int() != ir.DataType.FLOAT:
        return None  # on patches all is float32
    if node.op_type == "BatchNormalization":
        return 0 if len(node.outputs) == 1 else None
    if node.op_type in ("Concat", "Split"):  # of channels that all follow from the level
        axis = node.attributes["axis"].as_int() if "axis" in node.attributes else 0
        parts = node.inputs if node.op_type == "Concat" else node.inputs[:1]
        is_fixed = any(v in network.plain.shapes.constants for v in parts)
        return 0 if axis in (1, -3) and not is_fixed else None
    if node.op_type in ELEMENTWISE:
        fixed = network.plain.shapes.constants
        others = [
            dims.get(v, ())
            for v in node.inputs
            if v is not None and (v.is_initializer() or v in fixed)
        ]
        uniform = all(side == 1 for other in others for side in other[-2:])
        return 0 if uniform else None
    if node.op_type != "Conv" or node.inputs[1] is None:
        return None
    kernel = dims[node.inputs[1]][2:]
    values = {name: attribute.value for name, attribute in node.attributes.items()}
    rank = len(kernel)
    strides, dilations = (list(values.get(name, [1] * rank)) for name in ("strides", "dilations"))
    pads = list(values.get("pads", [0] * 2 * rank))
    extents = [d * (int(k) - 1) for d, k in zip(dilations, kernel, strict=True)]  # type: ignore[arg-type]
    same = all(2 * p == extent for p, extent in zip(pads, extents * 2, strict=True))
    plain = values.get("auto_pad", "NOTSET") == "NOTSET"
    return max(extents) // 2 if same and plain and set(strides) == {1} else None


def _find_cells(
    network: Network, levels: Sequence[Level], ends: Sequence[ir.Value], end: ir.Value
) -> NDArray[np.int64] | None:
    """Find the cell of each candidate from the tail of the head."""
    try:
        tail = open_in_float64(
            ir.to_proto(submodel(network.plain.graph, ends, [end], network.plain.shapes))
        )
    except ExportError:
        return None  # it depends on the image in another way as well
    dims = network.plain.shapes.dims
    return find_cells(
        lambda feeds: np.asarray(tail.run(None, feeds)[0]),
        [level.layer.shape[1:] for level in levels],
        [
            [(str(value.name), int(dims[value][1])) for value in level.ends]  # type: ignore[arg-type]
            for level in levels
        ],
    )


def find_cells(
    run: Callable[[dict[str, NDArray[Any]]], NDArray[Any]],
    sizes: Sequence[tuple[int, int]],
    ends: Sequence[Sequence[tuple[str, int]]],
) -> NDArray[np.int64] | None:
    """Find the one cell that each candidate follows from; None where one follows from several.

    Cells are numbered. For each digit of the numbers the cells with a 1, and then those with a 0,
    are made NaN: a candidate that is NaN in both cases depends on two cells.

    Args:
        run: computes the candidates' numbers, [1, A, D], from maps [1, C, h, w] by name.
        sizes: (h, w) of each level.
        ends: of each level names and channels of its maps.

    Returns:
        Level, row and column of each candidate, int64 [A, 3].
    """
    starts = np.cumsum([0, *(height * width for height, width in sizes)])
    rng = np.random.default_rng(0)
    number: NDArray[np.int64] | None = None
    for digit in range(int(starts[-1]).bit_length()):
        found = []
        for wanted in (1, 0):
            feeds = {}
            for index, size in enumerate(sizes):
                numbers = np.arange(starts[index], starts[index + 1]).reshape(size)
                hidden = (numbers >> digit) & 1 == wanted
                for name, channels in ends[index]:
                    array = rng.standard_normal((1, channels, *size))
                    feeds[name] = np.where(hidden, np.nan, array)
            try:
                with np.errstate(all="ignore"):
                    answer = run(feeds)
            except (ValueError, IndexError, RuntimeError):
                return None  # operators that fail on NaN, as max-pools of the reference evaluator
            found.append(np.isnan(answer).any(-1)[0])
        if not (found[0] ^ found[1]).all():
            return None
        own = found[0].astype(np.int64) << digit
        number = own if number is None else number + own
    assert number is not None
    level_of = np.searchsorted(starts, number, side="right") - 1
    widths = np.array([width for _, width in sizes])[level_of]
    rows, columns = np.divmod(number - starts[level_of], widths)
    return np.stack([level_of, rows, columns], 1)
