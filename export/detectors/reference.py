"""Run a detector's original graph from its levels on, in float64, to compare gradients with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ..data_flow import Layer
from ..gradient.reverse import find_path
from ..layers import Network
from ..references import STEP, Floats, open_in_float64, skip_rounding
from ..subgraph import open_model_session, submodel


class DetectorReference:
    """The network from all levels at once to scores and boxes, copied before maps are added."""

    def __init__(self, network: Network, layers: Sequence[Layer], ends: Sequence[ir.Value]) -> None:
        graph, shapes = network.plain.graph, network.plain.shapes
        # Names as they are now: what is added to the graph renames tensors.
        self._levels = [(str(layer.value.name), layer.arrangement) for layer in layers]
        self._image = str(network.plain.image.name)
        given = [layer.value for layer in layers]
        others = _find_bypasses(network, given, ends)
        self._names = [str(value.name) for value in (*given, *others)]
        whole = submodel(graph, [network.plain.image], [*given, *others, *ends], shapes)
        self._whole = open_model_session(whole, shapes.precision, is_fused=False)
        head = submodel(graph, [*given, *others], list(ends), shapes)
        skip_rounding(head.graph)
        self._head = open_in_float64(ir.to_proto(head))

    def run(self, image: NDArray[Any]) -> tuple[dict[str, NDArray[Any]], list[Floats]]:
        """Compute what enters the head, by name, float64; and its outputs in float32."""
        arrays = self._whole.run(None, {self._image: image})
        count = len(self._names)
        feeds = {
            name: array.astype(np.float64) if array.dtype.kind == "f" else array
            for name, array in zip(self._names, arrays[:count], strict=True)
        }
        return feeds, [np.asarray(array, np.float64) for array in arrays[count:]]

    def head(self, feeds: dict[str, NDArray[Any]]) -> list[Floats]:
        """Compute the outputs from what enters the head, float64."""
        return [np.asarray(array, np.float64) for array in self._head.run(None, feeds)]

    def draw_direction(
        self, feeds: dict[str, NDArray[Any]], rng: np.random.Generator
    ) -> list[Floats]:
        """Draw a change of each level, [N, K, h, w], of the size of its activations.

        Zeros and the smallest value stay as they are, as ReLU leaves them: there a max-pool has no
        derivative.
        """
        directions = []
        for name, arrangement in self._levels:
            own = arrangement.take(feeds[name])
            moving = (own != 0) & (own != own.min())
            directions.append(moving * rng.standard_normal(own.shape) * float(np.abs(own).max()))
        return directions

    def differentiate(
        self, feeds: dict[str, NDArray[Any]], directions: Sequence[Floats], index: int
    ) -> Floats:
        """Compute the central difference of an output along a change of the levels."""
        ends = []
        for sign in (1.0, -1.0):
            moved = dict(feeds)
            for (name, arrangement), direction in zip(self._levels, directions, strict=True):
                own = arrangement.take(feeds[name]) + sign * STEP * direction
                moved[name] = arrangement.put(feeds[name], own)
            ends.append(self.head(moved)[index])
        return (ends[0] - ends[1]) / (2 * STEP)


def _find_bypasses(
    network: Network, given: Sequence[ir.Value], ends: Sequence[ir.Value]
) -> list[ir.Value]:
    """Find what is read after the levels, and depends on the image but not on them."""
    nodes: list[ir.Node] = []
    for end in ends:
        path, _ = find_path(given, end, network.nodes, through_shapes=True)
        nodes += path
    depends = {network.plain.image}
    for node in network.nodes:
        if any(value in depends for value in node.inputs):
            depends.update(node.outputs)
    computed = {value for node in nodes for value in node.outputs}
    found = [
        value
        for node in nodes
        for value in node.inputs
        if value is not None and value in depends and value not in computed and value not in given
    ]
    return list(dict.fromkeys(found))
