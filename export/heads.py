"""Bring the heads of a network together, so that one gradient explains a class of any of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ..runtime.manifest_parts import OutputHead
from .dims import BATCH
from .output_meaning import HeadMeaning
from .shapes import Shapes
from .zero_shot import Similarity


@dataclass(frozen=True)
class PlaceScores:
    """A score of each class at each place, and the region whose mean is explained.

    Attributes:
        value: the logits, in the network's own layout.
        order: its axes in the order N, C, h, w.
        shape: (C, h, w).
        region: the input of the graph with the weight of each place, float32 [N, h, w].
    """

    value: ir.Value
    order: tuple[int, ...]
    shape: tuple[int, int, int]
    region: ir.Value

    @property
    def size(self) -> tuple[int, int]:
        """Return (h, w)."""
        return self.shape[1:]


@dataclass(frozen=True)
class OutputMeaning:
    """What a network's outputs mean.

    Attributes:
        heads: those to explain, one or several.
        logits: the tensor to differentiate: the head's own in any shape, or those of all heads
            side by side, [N, R]; of a segmentation network the means over a region, [N, C].
        place_scores: of a segmentation network; else None.
    """

    heads: tuple[HeadMeaning, ...]
    logits: ir.Value
    place_scores: PlaceScores | None = None

    @property
    def single(self) -> HeadMeaning | None:
        """Return the head, if there is only one."""
        return self.heads[0] if len(self.heads) == 1 else None

    @property
    def similarity(self) -> Similarity | None:
        """Return how an image embedding becomes class scores; None where scores are outputs."""
        return self.heads[0].similarity

    @property
    def has_probabilities(self) -> bool:
        """Whether classes are explained, and not values as regression gives them."""
        return all(head.task != "none" for head in self.heads)

    @property
    def num_classes(self) -> int:
        """Count the classes of all heads."""
        return sum(head.num_classes for head in self.heads)

    @property
    def output_heads(self) -> tuple[OutputHead, ...]:
        """Describe the heads as the manifest does."""
        return tuple(OutputHead(head.name, head.task, head.num_classes) for head in self.heads)

    @property
    def places(self) -> tuple[slice, ...]:
        """Locate each head's classes among all classes."""
        ends = np.cumsum([head.num_classes for head in self.heads]).tolist()
        return tuple(slice(a, b) for a, b in zip([0, *ends], ends, strict=False))

    @property
    def raw_places(self) -> tuple[slice, ...]:
        """Locate each head's own scores, of which a binary head has one, in ``logits``."""
        ends = np.cumsum([count_raw(head) for head in self.heads]).tolist()
        return tuple(slice(a, b) for a, b in zip([0, *ends], ends, strict=False))

    @property
    def notes(self) -> tuple[str, ...]:
        """List what was assumed, for the user."""
        return tuple(head.note for head in self.heads if head.note is not None)


def count_raw(head: HeadMeaning) -> int:
    """Count the numbers that the network itself gives for a head."""
    return 1 if head.task == "binary" else head.num_classes


def join_heads(graph: ir.Graph, shapes: Shapes, heads: Sequence[HeadMeaning]) -> OutputMeaning:
    """Join the logits of several heads by a node of the graph; of one head they stay as they are.

    Args:
        graph: extended in place, in the shapes as well.
        shapes: of its tensors.
        heads: from ``interpret_outputs``.
    """
    if len(heads) == 1:
        return OutputMeaning(tuple(heads), heads[0].logits)
    flat = [_flatten(graph, shapes, head, index) for index, head in enumerate(heads)]
    width = sum(count_raw(head) for head in heads)
    joined = _append(graph, shapes, "Concat", flat, (BATCH, width), {"axis": 1}, "whycam/heads")
    return OutputMeaning(tuple(heads), joined)


def _flatten(graph: ir.Graph, shapes: Shapes, head: HeadMeaning, index: int) -> ir.Value:
    """Record a head's scores as float32 [N, R]."""
    value, name = head.logits, f"whycam/heads/{index}"
    if shapes.dtypes[value] != ir.DataType.FLOAT:
        kind = {"to": int(ir.DataType.FLOAT)}
        value = _append(graph, shapes, "Cast", [value], shapes.dims[value], kind, f"{name}/cast")
    wanted = (BATCH, count_raw(head))
    if shapes.dims[value] == wanted:
        return value
    shape = np.array([0, count_raw(head)], np.int64)
    constant = ir.Value(
        name=f"{name}/shape",
        shape=ir.Shape([2]),
        type=ir.TensorType(ir.DataType.INT64),
        const_value=ir.tensor(shape, name=f"{name}/shape"),
    )
    graph.register_initializer(constant)
    shapes.constants[constant], shapes.dims[constant] = shape, (2,)
    shapes.dtypes[constant] = ir.DataType.INT64
    return _append(graph, shapes, "Reshape", [value, constant], wanted, {}, f"{name}/flat")


def _append(
    graph: ir.Graph,
    shapes: Shapes,
    op: str,
    inputs: Sequence[ir.Value],
    dims: tuple[object, ...],
    attributes: dict[str, int],
    name: str,
) -> ir.Value:
    integers = [ir.AttrInt64(key, number) for key, number in attributes.items()]
    node = ir.Node("", op, list(inputs), integers, name=name, num_outputs=1)
    output = node.outputs[0]
    output.name = name
    output.type = ir.TensorType(ir.DataType.FLOAT)
    graph.append(node)
    shapes.dims[output], shapes.dtypes[output] = dims, ir.DataType.FLOAT  # type: ignore[assignment]
    return output
