"""Take parts of a detector's outputs from where its graph computes them, and activate them.

A gradient that begins before the outputs were joined does not pass through the branches that have
no part in it, as those of the boxes have none in the score of a class.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ...runtime.background import is_background
from ...runtime.errors import ExportError
from ...runtime.manifest_parts import Activation
from ..graph_inputs import tensor_of
from ..plain_model import PlainModel
from ..recorder import Recorder
from ..subgraph import run
from ..tensors import Tensor, concat
from ..verify_subject import draw_random_fields
from .activations import MOVING, PRODUCTS, find_activations


@dataclass(frozen=True)
class Reading:
    """What a format reads a detector's outputs with.

    Attributes:
        plain: the model.
        recorder: appends to its graph.
        activation: of class scores, as the user states it; None: as the graph says.
        labels: the classes' names as far as they are known.
        is_stated: whether the user names the format.
    """

    plain: PlainModel
    recorder: Recorder
    activation: Activation | None
    labels: tuple[str, ...]
    is_stated: bool = False

    def output(self, value: ir.Value) -> Tensor:
        """Return an output, float32."""
        return tensor_of(value, self.plain.shapes, self.recorder).cast(ir.DataType.FLOAT)

    def take_all(self, value: ir.Value) -> Tensor:
        """Take an output, float32, from where the graph computes it."""
        return self._before_split(self.output(value))

    def take(self, tensor: Tensor, axis: int, start: int, stop: int) -> Tensor:
        """Take a part of an axis of known length, where the graph computes it."""
        length = tensor.shape[axis]
        if (start, stop) == (0, length):
            return self._before_split(tensor)
        known = self.plain.shapes.dims
        node = tensor.value.producer()
        sources = [] if node is None else [v for v in node.inputs if v is not None]
        if node is None or any(v not in known for v in sources[:1]):
            return self._slice(tensor, axis, start, stop)
        of_source = [tensor_of(v, self.plain.shapes, self.recorder) for v in sources if v in known]
        if node.op_type == "Concat" and len(of_source) == len(sources):
            at = node.attributes["axis"].as_int() % tensor.ndim
            return self._take_of_parts(of_source, at, axis, start, stop)
        if node.op_type == "Transpose" and "perm" in node.attributes:
            order = list(node.attributes["perm"].as_ints())
            return self.take(of_source[0], order[axis], start, stop).transpose(order)
        if node.op_type == "Sigmoid":
            part = self.take(of_source[0], axis, start, stop)
            return self.recorder.op("Sigmoid", [part], part.shape)
        if node.op_type == "Cast":
            return self.take(of_source[0], axis, start, stop).cast(tensor.dtype)
        if node.op_type == "Split":
            at, before = self._find_split(tensor)
            if at == axis:
                return self.take(of_source[0], axis, before + start, before + stop)
        if node.op_type == "Slice" and (cut := self._find_slice(tensor)) is not None:
            at, before = cut
            if at == axis:
                return self.take(of_source[0], axis, before + start, before + stop)
            side = tensor.shape[at]
            assert isinstance(side, int)
            part = self.take(of_source[0], axis, start, stop)
            return self._slice(part, at, before, before + side)
        if node.op_type == "Reshape":
            source, after = of_source[0], tensor.ndim - axis
            if source.shape[: axis + 1] == tensor.shape[: axis + 1]:
                at = axis
            elif source.shape[-after:] == tensor.shape[axis:]:
                at = source.ndim - after
            else:
                return self._slice(tensor, axis, start, stop)
            part = self.take(source, at, start, stop)
            return part.reshape((*tensor.shape[:axis], stop - start, *tensor.shape[axis + 1 :]))
        return self._slice(tensor, axis, start, stop)

    def _find_split(self, tensor: Tensor) -> tuple[int, int]:
        """Return the axis of the Split that a tensor is a part of, and where the part begins."""
        node = tensor.value.producer()
        assert node is not None
        axis = node.attributes["axis"].as_int() % tensor.ndim if "axis" in node.attributes else 0
        before = 0
        for value in node.outputs:
            if value is tensor.value:
                break
            side = self.plain.shapes.dims[value][axis]
            assert isinstance(side, int)
            before += side
        return axis, before

    def _find_slice(self, tensor: Tensor) -> tuple[int, int] | None:
        """Return the one axis that a Slice cuts, and where it begins; None of other cuts."""
        node = tensor.value.producer()
        assert node is not None
        constants = self.plain.shapes.constants
        values = [constants.get(v) if v is not None else None for v in node.inputs[1:]]
        starts, _, axes, steps = (*values, None, None)[:4]
        is_plain = steps is None or not (np.asarray(steps) != 1).any()
        source = self._known(node.inputs[0])
        if starts is None or axes is None or np.size(axes) != 1 or not is_plain or source is None:
            return None
        axis, begin = int(np.ravel(axes)[0]) % tensor.ndim, int(np.ravel(starts)[0])
        length = source.shape[axis]
        if not isinstance(length, int) or not isinstance(tensor.shape[axis], int):
            return None
        return axis, min(max(begin + length if begin < 0 else begin, 0), length)

    def comes_from(self, tensor: Tensor, kind: str) -> bool:
        """Tell whether an operator computes a tensor after the last product with weights."""
        pending, visited = [tensor.value], set[ir.Value]()
        while pending:
            value = pending.pop()
            node = value.producer()
            if node is None or value in visited or node.op_type in PRODUCTS:
                continue
            if node.op_type == kind:
                return True
            visited.add(value)
            pending += [source for source in node.inputs if source is not None]
        return False

    def _before_split(self, tensor: Tensor) -> Tensor:
        """Take a part of a Split or Slice from where it is computed, also behind a Transpose."""
        node = tensor.value.producer()
        if node is not None and node.op_type == "Transpose" and "perm" in node.attributes:
            whole = self._known(node.inputs[0])
            part = None if whole is None else self._before_split(whole)
            if part is None or whole is None or part.value is whole.value:
                return tensor
            return part.transpose(list(node.attributes["perm"].as_ints()))
        if node is None or node.op_type not in ("Split", "Slice"):
            return tensor
        source = self._known(node.inputs[0])
        cut = self._find_split(tensor) if node.op_type == "Split" else self._find_slice(tensor)
        if cut is None:
            return tensor
        axis, before = cut
        side = tensor.shape[axis]
        if source is None or not isinstance(side, int):
            return tensor
        return self.take(source, axis, before, before + side)

    def _take_of_parts(
        self, parts: Sequence[Tensor], joined: int, axis: int, start: int, stop: int
    ) -> Tensor:
        if joined != axis:
            return concat([self.take(part, axis, start, stop) for part in parts], joined)
        taken, begin = [], 0
        for part in parts:
            side = part.shape[axis]
            assert isinstance(side, int)
            first, last = max(start - begin, 0), min(stop - begin, side)
            if first < last:
                taken.append(self.take(part, axis, first, last))
            begin += side
        return taken[0] if len(taken) == 1 else concat(taken, axis)

    def _slice(self, tensor: Tensor, axis: int, start: int, stop: int) -> Tensor:
        key = [slice(None)] * tensor.ndim
        key[axis] = slice(start, stop)
        return tensor[tuple(key)]

    def sample(self, value: ir.Value) -> NDArray[Any]:
        """Compute an output for two random images, float64."""
        plain = self.plain
        fields = draw_random_fields(np.random.default_rng(0), 2, plain.size, plain.channels)
        if plain.shapes.dtypes[plain.image] == ir.DataType.UINT8:
            fields = np.clip(128 + 50 * fields, 0, 255)
        images = fields.astype(plain.shapes.dtypes[plain.image].numpy())
        if plain.layout == "NHWC":
            images = np.moveaxis(images, 1, -1)
        feeds = {plain.image: np.ascontiguousarray(images)}
        return np.asarray(run(plain.graph, feeds, [value], plain.shapes)[0], np.float64)

    def activate(
        self, tensor: Tensor, otherwise: Activation | None
    ) -> tuple[Tensor, Tensor, Activation]:
        """Return class scores in [0, 1], logits where a score is the sigmoid of one, and by what.

        Args:
            tensor: class scores or logits as the file has them, classes last.
            otherwise: what logits are activated by where the user does not say; None: unknown.

        Raises:
            ExportError: nothing says whether they are activated, or by what.
        """
        found = find_activations(tensor.value)
        if found == {"Sigmoid"}:
            logits = self._before_sigmoid(tensor)
            return tensor, tensor if logits is None else logits, "sigmoid"
        if found == {"product"}:
            return tensor, tensor, "sigmoid"
        if found == {"Softmax"}:
            return tensor, tensor, "softmax"
        if found != {None}:
            sources = sorted(kind or "products with weights" for kind in found)
            raise ExportError(
                f"class scores of this detector come from {' and '.join(sources)}: export "
                "the network with sigmoid or softmax over all of them, or with neither. Outputs "
                "that also hold masks, keypoints or angles, or no objectness where the format has "
                "it, are not read"
            )
        kind = self.activation or otherwise
        if kind is None:
            raise ExportError(
                "the file ends in logits of classes, and nothing says whether they are independent "
                "(sigmoid, as in RT-DETR, RetinaNet and FCOS) or exclusive (softmax with a class "
                "for the background, as in DETR and SSD): add --activation sigmoid or softmax"
            )
        if kind == "sigmoid":
            return self.recorder.op("Sigmoid", [tensor], tensor.shape), tensor, "sigmoid"
        scores = self.recorder.op("Softmax", [tensor], tensor.shape, axis=-1)
        return scores, scores, "softmax"

    def _before_sigmoid(self, tensor: Tensor) -> Tensor | None:
        """Record the logits of class scores, in their arrangement; None where that is not plain."""
        node = tensor.value.producer()
        if node is None or any(v is None for v in node.inputs):
            return None
        sources = [self._known(value) for value in node.inputs]
        first = sources[0] if sources else None
        if first is None:
            return None
        if node.op_type == "Sigmoid":
            return self._before_split(first)
        if node.op_type == "Concat":
            parts = [None if each is None else self._before_sigmoid(each) for each in sources]
            whole = [part for part in parts if part is not None]
            axis = node.attributes["axis"].as_int() % tensor.ndim
            return concat(whole, axis) if len(whole) == len(parts) else None
        before = self._before_sigmoid(first) if node.op_type in MOVING else None
        if before is None:
            return None
        if node.op_type == "Cast":
            return before.cast(tensor.dtype)
        if node.op_type == "Reshape":
            return before.reshape(tensor.shape)
        if node.op_type == "Transpose":
            return before.transpose(list(node.attributes["perm"].as_ints()))
        if node.op_type == "Split":
            axis, start = self._find_split(tensor)
            length = tensor.shape[axis]
            assert isinstance(length, int)
            return self._slice(before, axis, start, start + length)
        attributes = {name: attribute.value for name, attribute in node.attributes.items()}
        return self.recorder.op(node.op_type, [before, *sources[1:]], tensor.shape, **attributes)

    def _known(self, value: ir.Value | None) -> Tensor | None:
        if value in self.recorder.recorded:
            return self.recorder.recorded[value]
        if value is None or value not in self.plain.shapes.dims:
            return None
        return tensor_of(value, self.plain.shapes, self.recorder)

    def drop_background(self, scores: Tensor, is_first: bool) -> tuple[Tensor, tuple[str, ...]]:
        """Leave out the class for the background of a softmax, with a note where it is assumed."""
        count = scores.shape[-1]
        assert isinstance(count, int)
        names = [is_background(label) for label in self.labels]
        place = 0 if is_first else count - 1
        note: tuple[str, ...] = ()
        if len(names) == count and any(names):
            place = names.index(True)
        else:
            which = "first" if is_first else "last"
            note = (f"of {count} classes the {which} one was taken for the background",)
        if place not in (0, count - 1):
            raise ExportError(
                f"the background is class {place} of {count}: whycam takes it as the first or last"
            )
        key = slice(1, None) if place == 0 else slice(0, count - 1)
        return scores[:, :, key], note
