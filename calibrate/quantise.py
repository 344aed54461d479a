"""Quantise a graph's backbone: place QuantizeLinear and DequantizeLinear, with given ranges."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..runtime.backbone import backbone_runs
from ..runtime.engines.cpu_session import open_session
from ..runtime.engines.interface import graph_name, pad_batch
from ..runtime.errors import EngineError, MissingExtraError, ModelFileError, RequestError, reason_of
from ..runtime.manifest import Manifest
from ..runtime.onnxfile import read_manifest
from .ranges import Histogram

if TYPE_CHECKING:
    import onnx

_LAYERS = ("Conv", "Gemm", "MatMul")


@dataclass(frozen=True)
class Layer:
    """A convolution or linear layer that can be quantised.

    Attributes:
        name: its module's path if the file has it, else its node's name.
        kind: its operator and the shape of its weights, in words.
        reads: the tensor that it multiplies with its weights.
        nodes: the nodes with its weights: one, or two in a graph that runs the backbone again on
            masked images.
    """

    name: str
    kind: str
    reads: str
    nodes: tuple[str, ...]


@dataclass(frozen=True)
class Graph:
    """An ONNX model, and its layers and tensors that can be quantised.

    Attributes:
        model: with shapes inferred and a name for every node.
        layers: in the order in which they run.
        sums: names of the additions between layers.
        tensors: names of the activations whose ranges are needed.
        manifest: of the file.
    """

    model: onnx.ModelProto
    layers: tuple[Layer, ...]
    sums: tuple[str, ...]
    tensors: tuple[str, ...]
    manifest: Manifest


def read_graph(path: str | os.PathLike[str]) -> Graph:
    """Read an explaining graph and find the layers that can be quantised.

    These lie between image and activations; a graph that sweeps thresholds has them twice.

    Args:
        path: a file made by ``whycam export``.

    Raises:
        RequestError: there is nothing to quantise.
        ModelFileError: the file cannot be read.
        MissingExtraError: the package onnx is not installed.
    """
    try:
        # Imports onnx as well.
        from onnxruntime.quantization.quant_utils import load_model_with_shape_infer
    except ImportError as error:
        raise MissingExtraError(error.name or "onnx", "calibrate", "INT8 calibration") from error
    try:
        model = load_model_with_shape_infer(Path(path))
    except Exception as error:
        raise ModelFileError(f"cannot read {path} for quantisation: {reason_of(error)}") from error
    for index, node in enumerate(model.graph.node):
        node.name = node.name or f"node_{index}"
    weights = {weight.name: weight for weight in model.graph.initializer}
    shapes = _shapes(model)
    manifest = read_manifest(path)
    runs = backbone_runs(model.graph, manifest.target_tensor)
    chosen = [model.graph.node[index] for run in runs for index in run]
    of_weights: dict[str, list[onnx.NodeProto]] = {}
    for node in chosen:
        if node.op_type not in _LAYERS or len(node.input) < 2 or node.input[1] not in weights:
            continue
        if _has_extent(shapes.get(node.input[0])):
            of_weights.setdefault(node.input[1], []).append(node)
    layers = tuple(
        Layer(
            _layer_name(nodes[0]),
            _kind(nodes[0], weights[name]),
            nodes[0].input[0],
            tuple(node.name for node in nodes),
        )
        for name, nodes in of_weights.items()
    )
    if not layers:
        raise RequestError(f"{path} has no convolution or linear layer that can be quantised")
    quantised_nodes = [node for nodes in of_weights.values() for node in nodes]
    inside = _between(model, [node.name for node in quantised_nodes])
    sums = [
        node
        for node in model.graph.node
        if node.op_type == "Add" and node.name in inside and not set(node.input) & set(weights)
    ]
    read = [node.input[0] for node in quantised_nodes] + [i for node in sums for i in node.input]
    tensors = tuple(dict.fromkeys(read))
    return Graph(model, layers, tuple(node.name for node in sums), tensors, manifest)


def _between(model: onnx.ModelProto, layers: Collection[str]) -> set[str]:
    """Find the nodes on the paths from one of the layers to another, layers included."""
    of_layers = set(layers)
    behind: set[str] = set()
    after: set[str] = set()
    for node in model.graph.node:
        if node.name in of_layers or behind.intersection(node.input):
            behind.update(node.output)
            after.add(node.name)
    needed: set[str] = set()
    before: set[str] = set()
    for node in reversed(model.graph.node):
        if node.name in of_layers or needed.intersection(node.output):
            needed.update(node.input)
            before.add(node.name)
    return after & before


def _shapes(model: onnx.ModelProto) -> dict[str, list[int | None]]:
    return {
        value.name: [
            side.dim_value if side.HasField("dim_value") else None
            for side in value.type.tensor_type.shape.dim
        ]
        for value in [*model.graph.value_info, *model.graph.input, *model.graph.output]
        if value.type.tensor_type.HasField("shape")
    }


def _has_extent(shape: Sequence[int | None] | None) -> bool:
    """Tell whether a layer's input has more than one pixel; for others INT8 gains nothing."""
    return shape is None or len(shape) != 4 or tuple(shape[2:]) != (1, 1)


def _layer_name(node: onnx.NodeProto) -> str:
    """Name a layer by its module, whose path PyTorch's exporter keeps in the weights' name."""
    module, _, kind = node.input[1].rpartition(".")
    return module if module and kind.startswith("weight") else node.name


def _kind(node: onnx.NodeProto, weight: onnx.TensorProto) -> str:
    return f"{node.op_type} {'x'.join(map(str, weight.dims))}"


def observe(
    graph: Graph, images: Iterable[NDArray[Any]], threads: int | None = None
) -> dict[str, Histogram]:
    """Run images through the float graph, and count the magnitudes of its activations.

    Args:
        graph: from ``read_graph``.
        images: batches as the graph takes them; they are not kept.
        threads: of the engine.

    Raises:
        EngineError: the engine failed, or an activation is not finite.
    """
    import onnx

    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    inputs = {value.name for value in model.graph.input}
    names = [name for name in graph.tensors if name not in inputs]
    del model.graph.output[:]
    model.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names)
    histograms = {name: Histogram() for name in graph.tensors}
    try:
        # Fused operations would hide the tensors between them.
        session = open_session(model.SerializeToString(), fusion="basic", threads=threads)
        for batch in images:
            feeds = _feeds(batch, graph.manifest)
            values = dict(zip(names, session.run(names, feeds), strict=True))
            for name in graph.tensors:
                activations = values[name] if name in values else feeds[name]
                if not np.isfinite(activations).all():
                    raise EngineError(f"activations are NaN or infinite (tensor {name})")
                histograms[name].add(activations)
    except EngineError:
        raise
    except Exception as error:
        raise EngineError(f"ONNX Runtime failed while calibrating: {reason_of(error)}") from error
    return histograms


def _feeds(images: NDArray[Any], manifest: Manifest) -> dict[str, NDArray[Any]]:
    """Return the graph's inputs for some images, by name."""
    count = manifest.batch or len(images)
    image = pad_batch(images, count).astype(manifest.image_type, copy=False)
    feeds = {graph_name("image", manifest): image}
    if manifest.top is None:
        feeds[graph_name("target", manifest)] = np.full((count, 1), -1, np.int64)
    return feeds


def quantise(
    graph: Graph,
    magnitudes: Mapping[str, float],
    floating: Collection[str] = (),
    weight_bits: int = 8,
) -> onnx.ModelProto:
    """Quantise layers, in the form that ONNX Runtime, OpenVINO and TensorRT accept.

    Symmetric, weights per output channel and stored in 8 bits, biases in float. A tensor is
    quantised where a layer or an addition reads it, and nowhere else: between a convolution and
    its activation it would lose what the activation clips (docs/performance.md).

    Args:
        graph: from ``read_graph``.
        magnitudes: for each of its tensors, the value that 127 stands for.
        floating: ``Layer.name`` of those that stay in float.
        weight_bits: 8, or 7 for processors without VNNI, which add pairs of products in 16 bits;
            with 8-bit weights these sums overflow.
    """
    import onnx
    from onnxruntime.quantization import QuantType
    from onnxruntime.quantization.calibrate import CalibrationMethod, TensorData, TensorsData
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    ranges = {
        name: TensorData(lowest=np.float32(-value), highest=np.float32(value))
        for name, value in magnitudes.items()
    }
    layers = [node for layer in graph.layers if layer.name not in floating for node in layer.nodes]
    if not layers:
        return model
    quantizer = QDQQuantizer(
        model,
        per_channel=True,
        reduce_range=weight_bits == 7,  # of weights alone
        weight_qType=QuantType.QInt8,
        activation_qType=QuantType.QInt8,
        tensors_range=TensorsData(CalibrationMethod.MinMax, ranges),
        nodes_to_quantize=[*layers, *_sums_among(graph, layers)],
        nodes_to_exclude=[],
        op_types_to_quantize=[*_LAYERS, "Add"],
        extra_options={
            "ActivationSymmetric": True,
            "WeightSymmetric": True,
            "QuantizeBias": False,
            "AddQDQPairToWeight": False,
            "MatMulConstBOnly": True,
            "OpTypesToExcludeOutputQuantization": [*_LAYERS, "Add"],
        },
    )
    quantizer.quantize_model()
    quantizer.model.topological_sort()  # what was inserted stands at the end
    quantised: onnx.ModelProto = quantizer.model.model
    return quantised


def _sums_among(graph: Graph, layers: Sequence[str]) -> list[str]:
    """Find the additions that lie between quantised layers."""
    inside = _between(graph.model, layers)
    return [name for name in graph.sums if name in inside]
