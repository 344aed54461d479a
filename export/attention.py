"""Find the attention maps of a transformer by data flow, and the places of their keys."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ..runtime.errors import ExportError
from .arrangement import Arrangement, find_arrangement
from .data_flow import DataFlow, Layer
from .dims import BATCH, Dims, Size, dim_text
from .place_flow import concrete
from .places import IMAGES, Labels
from .tensors import Tensor


@dataclass(frozen=True)
class AttentionMaps:
    """The attention maps of one block, whose keys are places.

    Attributes:
        layer: the maps P = softmax(s Q K'), arranged as [N, keys, heads, queries].
        keys: how numbers of the keys, [N, 1, keys], become [N, 1, h, w].
    """

    layer: Layer
    keys: Arrangement

    @property
    def shape(self) -> tuple[int, int, int]:
        """Return (heads, h, w)."""
        return (self.layer.shape[1], *self.keys.shape[1:])

    def record(self, of_keys: Tensor) -> Tensor:
        """Record numbers of the keys [N, k, keys] as raw maps [N, k, h, w]."""
        count, classes, length = of_keys.shape
        rows = count * classes
        arranged = self.keys.record(of_keys.reshape((rows, 1, length)), rows)
        return arranged.reshape((count, classes, *self.keys.shape[1:]))

    def take(self, of_keys: NDArray[Any]) -> NDArray[Any]:
        """Arrange numbers of the keys [N, k, keys] as raw maps [N, k, h, w]."""
        count, classes, length = of_keys.shape
        arranged = self.keys.take(of_keys.reshape(count * classes, 1, length))
        return arranged.reshape(count, classes, *self.keys.shape[1:])


def find_attention(flow: DataFlow) -> AttentionMaps:
    """Find the last attention maps with places as keys and a gradient there.

    Raises:
        ExportError: there are none, with the reason.
    """
    if flow.plain.sizes is not None:
        raise _refusal("with dynamic_size the number of keys is not known; leave dynamic_size out")
    reason = (
        "the graph has no Softmax over elements that are proved to belong to places of the image"
    )
    for node in reversed(flow.path):
        if node.op_type == "Attention":
            raise _refusal(
                f"the attention of '{node.name}' is one operator (Attention), whose maps are no "
                "tensor of the graph; export the model with an opset below 23"
            )
        if node.op_type != "Softmax":
            continue
        labels = _find_key_labels(flow, node)
        if labels is None:
            continue
        found = _arrange(flow, node, labels)
        if isinstance(found, AttentionMaps):
            return found
        if node.outputs[0] in flow.reach:
            reason = f"of '{_name(flow, node)}', the last attention, {found}"
            break
    raise _refusal(reason)


def _refusal(reason: str) -> ExportError:
    return ExportError(
        f"'legrad' needs the attention maps of a transformer: {reason}. Use 'gradcam'"
    )


def _find_key_labels(flow: DataFlow, node: ir.Node) -> Labels | None:
    """Find the places that vary along the axis of a softmax; None where none do."""
    value = node.outputs[0]
    dims = flow.plain.shapes.dims.get(value, ())
    axis = node.attributes["axis"].as_int() if "axis" in node.attributes else -1
    if len(dims) not in (3, 4) or axis not in (-1, len(dims) - 1):
        return None
    for labels in flow.places.get(value, ()):
        if labels.shape[-1] > 1 and labels.max() >= 0:
            return labels
    return None


def _arrange(flow: DataFlow, node: ir.Node, labels: Labels) -> AttentionMaps | str:
    """Arrange attention maps; or say why they have no arrangement."""
    value = node.outputs[0]
    dims = flow.plain.shapes.dims[value]
    maps = _arrange_maps(dims)
    if maps is None:
        return f"the maps are {_describe(dims)}, not [N, heads, queries, keys], as in windows"
    heads = maps.shape[1]
    # The keys of all heads and queries must be the same.
    by_head = np.broadcast_to(labels, (*concrete(dims, flow.plain.shapes)[:-2], *labels.shape[-2:]))
    by_head = by_head.reshape(IMAGES, heads, *labels.shape[-2:])
    of_keys = by_head[:, :1, :1]
    if (by_head != of_keys).any():
        return "the keys are other places from query to query, as in windows"
    keys = find_arrangement((of_keys[:, :, 0],), (BATCH, 1, dims[-1]), flow.plain.shapes)
    if keys is None or keys.shape[1] * keys.shape[2] <= 1:
        return "the keys are not each place of the image once"
    reach = flow.reach.get(value)
    if reach is None or not (np.logical_and(*np.broadcast_arrays(labels >= 0, reach))).any():
        return "the class scores have no gradient with respect to the maps"
    layer = Layer(_name(flow, node), node.op_type, maps.shape, value, maps, is_cut_point=False)
    return AttentionMaps(layer, keys)


def _arrange_maps(dims: Dims) -> Arrangement | None:
    """Arrange maps [N, heads, queries, keys], or [N heads, queries, keys], with the keys first.

    In the order [N, keys, heads, queries] what the method averages are the last two axes.
    """
    batch, *inner = dims
    if not isinstance(batch, Size) or batch.symbols != BATCH.symbols:
        return None
    sides = [side for side in inner if isinstance(side, int)]
    if len(sides) < len(inner):
        return None
    if len(sides) == 3:
        heads, queries, keys = sides
        return Arrangement(dims, (keys, heads, queries), (0, 3, 1, 2)) if batch == BATCH else None
    queries, keys = sides
    heads = batch.factor
    split, order = ((0, heads), (0, 1, 2, 3)) if heads > 1 else (None, (0, 1, 2))
    return Arrangement(dims, (keys, heads, queries), order, split, tuple(range(heads * queries)))


def _name(flow: DataFlow, node: ir.Node) -> str:
    modules = flow.modules[node]
    return modules[-1] if modules else str(node.outputs[0].name).removesuffix(":0")


def _describe(dims: Dims) -> str:
    return f"[{', '.join(str(dim_text(side)) for side in dims)}]"
