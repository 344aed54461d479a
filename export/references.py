"""Run the network itself, in float64 where possible, as the reference of an exported graph.

There are two kinds. ``TorchReference`` (in ``references_torch``) runs the PyTorch
model and autograd at the module's hook; ``OnnxReference`` runs the original file in ONNX Runtime,
and its head in float64 by ONNX's reference evaluator, whose gradients are central differences.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import onnx
import onnx_ir as ir
import onnx_ir.passes.common as passes
from numpy.typing import NDArray

from ..runtime.errors import ExportError, reason_of
from ..runtime.place_weights import example_region
from .data_flow import Layer
from .heads import OutputMeaning
from .layers import Network
from .place_scores import fix_region
from .subgraph import open_model_session, submodel

Floats = NDArray[np.float64]

# Step of central differences, relative to the largest activation: small enough to miss the kinks
# of max-pools and ReLUs. Where scores hardly change with a layer, as the mean of a region does, the
# smallest step would leave few digits of the difference.
STEP, LARGEST_STEP = 1e-8, 1e-5
_ROUNDING = 30 * np.finfo(np.float64).eps  # of a score, relative; measured on networks of 20 layers
_ROUNDED_SHARE = 1e-4  # that rounding may have in a difference
_PILOTS = 2


class Reference(Protocol):
    """The original network, which can be run whole and from the target layer on.

    Attributes:
        description: of the reference, for messages.
        is_exact: whether ``forward`` computes in float64; else in float32, as engines do.
    """

    description: str
    is_exact: bool

    def forward(self, image: NDArray[Any]) -> tuple[Floats | None, Floats]:
        """Compute activations [N, K, h, w] (None where not accessible) and raw scores [N, C]."""
        ...

    def forward32(self, image: NDArray[Any]) -> tuple[Floats | None, Floats]:
        """Compute the same in float32."""
        ...

    def head(self, activations: Floats, images: NDArray[Any]) -> Floats:
        """Compute raw scores [M, C] in float64 from activations [M, K, h, w].

        What else the scores depend on, as class tokens and what goes around the layer, is that of
        ``images``, [M, ...] as the network takes them.
        """
        ...

    def gradient(self, activations: Floats, seed: Floats, images: NDArray[Any]) -> Floats | None:
        """Compute d (sum of seed * scores) / d A, [M, K, h, w], float64; None without autograd."""
        ...


class OnnxReference:
    """The original graph, copied before anything was added to it."""

    is_exact = False

    def __init__(
        self,
        network: Network,
        meaning: OutputMeaning,
        layer: Layer,
        description: str = "the original file",
    ) -> None:
        self.description = description
        graph, shapes = network.plain.graph, network.plain.shapes
        self._arrangement = layer.arrangement
        self._image = str(network.plain.image.name)
        self._layer = str(layer.value.name)
        bypasses = network.find_bypasses(layer)
        self._is_alone = layer.arrangement.is_complete and not bypasses
        self._bypasses = [str(value.name) for value in bypasses]
        outputs = [layer.value, meaning.logits, *bypasses]
        given = [] if meaning.place_scores is None else [meaning.place_scores.region]
        whole = submodel(graph, [network.plain.image, *given], outputs, shapes)
        if meaning.place_scores is not None:
            fix_region(whole, meaning.place_scores, example_region(meaning.place_scores.size))
        self._whole = open_model_session(  # fusion may change rounding
            whole, shapes.precision, is_fused=False
        )
        head = submodel(graph, [layer.value, *bypasses, *given], [meaning.logits], shapes)
        skip_rounding(head.graph)
        if meaning.place_scores is not None:
            fix_region(head, meaning.place_scores, example_region(meaning.place_scores.size))
        self._head = open_in_float64(ir.to_proto(head))
        self._last: tuple[NDArray[Any], list[NDArray[Any]]] | None = None

    def forward(self, image: NDArray[Any]) -> tuple[Floats | None, Floats]:
        """See ``Reference``."""
        activations, scores = self._whole.run(None, {self._image: image})[:2]
        return (
            np.ascontiguousarray(self._arrangement.take(np.asarray(activations, np.float64))),
            np.asarray(scores, np.float64).reshape(len(image), -1),
        )

    forward32 = forward

    def head(self, activations: Floats, images: NDArray[Any]) -> Floats:
        """See ``Reference``."""
        if self._is_alone:
            whole, feeds = None, {}
        else:
            whole, _, *others = self._run_whole(images)
            feeds = {
                name: value.astype(np.float64) if value.dtype.kind == "f" else value
                for name, value in zip(self._bypasses, others, strict=True)
            }
        feeds[self._layer] = self._arrangement.put(whole, activations)
        (scores,) = self._head.run(None, feeds)
        return np.asarray(scores, np.float64).reshape(len(activations), -1)

    def _run_whole(self, images: NDArray[Any]) -> list[NDArray[Any]]:
        """Run the network; the last result is cached."""
        if self._last is None or not np.array_equal(self._last[0], images):
            self._last = images, self._whole.run(None, {self._image: images})
        return self._last[1]

    def gradient(self, activations: Floats, seed: Floats, images: NDArray[Any]) -> Floats | None:
        """Return None: only differences are available, see ``directional_differences``."""
        del activations, seed, images
        return None


def directional_differences(
    reference: Reference,
    activations: Floats,
    seed: Floats,
    images: NDArray[Any],
    directions: Sequence[Floats],
) -> Floats:
    """Compute central differences of sum(seed * scores) along directions in A, for each row.

    Args:
        reference: whose head is evaluated.
        activations: [M, K, h, w].
        seed: [M, C].
        images: [M, ...], as the network takes them.
        directions: [M, K, h, w] each.

    Returns:
        [M, directions].
    """
    largest = max(float(np.abs(activations).max()), 1e-30)

    def differences(step: float, some: Sequence[Floats]) -> Floats:
        rows = []
        for direction in some:
            ahead, behind = (
                reference.head(activations + sign * step * direction, images)
                for sign in (1.0, -1.0)
            )
            rows.append((seed * (ahead - behind)).sum(-1) / (2 * step))
        return np.stack(rows, axis=-1)

    slopes = differences(LARGEST_STEP * largest, directions[:_PILOTS])
    slope = float(np.sqrt((slopes**2).mean(-1)).min())
    noise = _ROUNDING * float(np.abs(seed * reference.head(activations, images)).max()) / 2
    needed = noise / (_ROUNDED_SHARE * slope * largest) if slope > 0 else LARGEST_STEP
    return differences(min(max(needed, STEP), LARGEST_STEP) * largest, directions)


def skip_rounding(graph: ir.Graph) -> None:
    """Bypass each pair of quantise and dequantise, as a straight-through gradient does."""
    for node in list(graph):
        source = node.inputs[0]
        if node.op_type != "QuantizeLinear" or source is None or source.is_initializer():
            continue
        for use in list(node.outputs[0].uses()):
            if use.node.op_type == "DequantizeLinear" and use.idx == 0:
                use.node.outputs[0].replace_all_uses_with(source, replace_graph_outputs=True)
    passes.RemoveUnusedNodesPass()(ir.Model(graph, ir_version=10))


def open_in_float64(model: onnx.ModelProto) -> Any:
    """Create an evaluator of a graph whose float tensors are all float64."""
    from onnx.reference import ReferenceEvaluator

    double = onnx.TensorProto.DOUBLE
    floats = {onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16}
    graph = model.graph
    for index, tensor in enumerate(graph.initializer):
        if tensor.data_type in floats:
            values = onnx.numpy_helper.to_array(tensor).astype(np.float64)
            graph.initializer[index].CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    for value in (*graph.input, *graph.output):
        if value.type.tensor_type.elem_type in floats:
            value.type.tensor_type.elem_type = double
    del graph.value_info[:]
    for node in graph.node:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i in floats:
                attribute.i = double
            if attribute.type == onnx.AttributeProto.TENSOR and attribute.t.data_type in floats:
                values = onnx.numpy_helper.to_array(attribute.t).astype(np.float64)
                attribute.t.CopyFrom(onnx.numpy_helper.from_array(values))
    try:
        return ReferenceEvaluator(model, new_ops=_exact_operators())
    except Exception as error:
        raise ExportError(
            f"ONNX's reference evaluator cannot run the head: {reason_of(error)}"
        ) from error


def _exact_operators() -> list[Any]:
    """Define the operators that the evaluator rounds to float32, or cannot run."""
    from onnx.reference.op_run import OpRun

    error_function = np.vectorize(math.erf, otypes=[np.float64])

    class Erf(OpRun):
        def _run(self, x: Floats) -> tuple[Floats]:
            return (error_function(x),)

    class Gelu(OpRun):
        def _run(self, x: Floats, approximate: str | None = None) -> tuple[Floats]:
            if approximate == "tanh":
                return (x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))) / 2,)
            return (x * (1 + error_function(x / np.sqrt(2))) / 2,)

    class ConvTranspose(OpRun):
        """The evaluator's own goes through single elements."""

        def _run(
            self,
            x: Floats,
            weight: Floats,
            bias: Floats | None = None,
            auto_pad: str | None = None,
            dilations: Sequence[int] | None = None,
            group: int | None = None,
            kernel_shape: Sequence[int] | None = None,  # noqa: ARG002 - the weight has it
            output_padding: Sequence[int] | None = None,
            output_shape: Sequence[int] | None = None,
            pads: Sequence[int] | None = None,
            strides: Sequence[int] | None = None,
        ) -> tuple[Floats]:
            if auto_pad not in (None, "NOTSET") or output_shape or x.ndim != 4:
                raise NotImplementedError("ConvTranspose with automatic padding, or not in 2D")
            step, spread = (list(each or (1, 1)) for each in (strides, dilations))
            edges, further = list(pads or (0, 0, 0, 0)), list(output_padding or (0, 0))
            kernel, groups = weight.shape[2:], group or 1
            whole = [
                (side - 1) * s + (k - 1) * d + 1 + more
                for side, s, k, d, more in zip(
                    x.shape[2:], step, kernel, spread, further, strict=True
                )
            ]
            parts = []
            for part, own in zip(np.split(x, groups, 1), np.split(weight, groups, 0), strict=True):
                full = np.zeros((len(x), own.shape[1], *whole))
                for row, column in np.ndindex(*kernel):
                    ends = [
                        at * d + (side - 1) * s + 1
                        for at, d, side, s in zip(
                            (row, column), spread, x.shape[2:], step, strict=True
                        )
                    ]
                    rows = slice(row * spread[0], ends[0], step[0])
                    columns = slice(column * spread[1], ends[1], step[1])
                    full[:, :, rows, columns] += np.einsum(
                        "nchw,ck->nkhw", part, own[:, :, row, column], optimize=True
                    )
                parts.append(full)
            found = np.concatenate(parts, 1)
            found = found[:, :, edges[0] : whole[0] - edges[2], edges[1] : whole[1] - edges[3]]
            return (found if bias is None else found + bias[:, None, None],)

    class GatherElements(OpRun):
        """The evaluator's own takes no more than 64 rows."""

        def _run(self, x: NDArray[Any], indices: NDArray[Any], axis: int = 0) -> tuple[Any]:
            return (np.take_along_axis(x, indices, axis),)

    return [Erf, Gelu, ConvTranspose, GatherElements]
