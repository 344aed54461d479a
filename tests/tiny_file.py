"""An ONNX file that computes what `conftest.TinyEngine` does, as any manifest wants it.

Written node by node, so that the runtime is tested without the export: any layout, colour order,
element type, names, task, fixed batch, and with or without an input for the class.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from whycam.runtime.manifest import Manifest
from whycam.runtime.onnxfile import append_manifest, digest

RANKS = 5


class Writer:
    """Nodes and constants, as they are added."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def add(self, operator: str, *inputs: Any, outputs: int = 1, **attributes: Any) -> Any:
        """One node; inputs are names or arrays."""
        names = [each if isinstance(each, str) else self.constant(each) for each in inputs]
        made = [f"t{len(self.nodes)}_{index}" for index in range(outputs)]
        self.nodes.append(helper.make_node(operator, names, made, **attributes))
        return made[0] if outputs == 1 else made

    def constant(self, values: Any) -> str:
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(values), name))
        return name


def write_tiny(
    path: Path,
    manifest: Manifest,
    mix: np.ndarray,
    linear: np.ndarray,
    bias: np.ndarray | None = None,
) -> Manifest:
    """Write the file, with a manifest that has its digest; returns that.

    Args:
        path: where to.
        manifest: what the file shall be like.
        mix, linear: weights of `TinyEngine`, [K, channels] and [C, K].
        bias: pixel means and standard deviations [2, channels] that a uint8 input is normalised by
            inside the graph.
    """
    w = Writer()
    name = {
        key: manifest.names.get(key, key) for key in ("image", "target", *manifest.output_shapes)
    }
    spec = manifest.preprocess
    x = w.add("Cast", name["image"], to=TensorProto.FLOAT)
    if manifest.layout == "NHWC":
        x = w.add("Transpose", x, perm=[0, 3, 1, 2])
    if bias is not None:
        mean, std = (each.reshape(1, -1, 1, 1).astype(np.float32) for each in bias)
        x = w.add("Div", w.add("Sub", w.add("Div", x, np.float32(255)), mean), std)
    x = w.add("AveragePool", x, kernel_shape=[2, 2], strides=[2, 2])
    weights = mix[:, : spec.channels, None, None].astype(np.float32)
    activations = w.add("Relu", w.add("Conv", x, weights))
    pooled = w.add("Flatten", w.add("GlobalAveragePool", activations))
    logits = w.add("MatMul", pooled, linear.T.astype(np.float32))
    probabilities = {
        "softmax": lambda: w.add("Softmax", logits, axis=1),
        "sigmoid": lambda: w.add("Sigmoid", logits),
        "binary": lambda: w.add("Softmax", logits, axis=1),
        "none": lambda: w.add("Identity", logits),
    }[manifest.task]()
    ranks = manifest.top or min(RANKS, manifest.num_classes)
    _, targets = w.add("TopK", probabilities, np.array([ranks]), outputs=2, axis=1)
    if manifest.top is None:
        place = w.add("Clip", w.add("Sub", w.add("Neg", name["target"]), np.int64(1)),
                      np.int64(0), np.int64(ranks - 1))  # fmt: skip
        ranked = w.add("GatherElements", targets, place, axis=1)
        targets = w.add("Where", w.add("Less", name["target"], np.int64(0)), ranked, name["target"])
    k, height, width = manifest.activations
    rows = w.add("Gather", (linear / (height * width)).astype(np.float32), targets, axis=0)
    shape = w.add("Concat", w.add("Shape", rows), np.array([height, width]), axis=0)
    column = w.add("Unsqueeze", rows, np.array([3, 4]))
    tensors = {
        "probabilities": w.add("Identity", probabilities),
        "targets": w.add("Identity", targets),
        "activations": w.add("Identity", activations),
        "gradients": w.add("Expand", column, shape),
    }
    flat = w.add("Reshape", activations, np.array([0, k, height * width]))
    for method in manifest.map_methods:
        alpha = w.add("Relu", rows) if method == "layercam" else rows
        raw = w.add("Relu", w.add("MatMul", alpha, flat))
        raw = w.add("Reshape", raw, np.array([0, 0, height, width]))
        scales = np.array([1, 1, spec.size[0] / height, spec.size[1] / width], np.float32)
        large = w.add("Resize", _stretched(w, raw), "", scales, mode="linear")
        tensors[manifest.map_output(method) or ""] = _stretched(w, large)
    wanted = {key: tensors[key] for key in manifest.output_shapes}
    outputs = [
        (name[key], tensor, TensorProto.INT64 if key == "targets" else TensorProto.FLOAT)
        for key, tensor in wanted.items()
    ]
    outputs += [(each, logits, TensorProto.FLOAT) for each in manifest.own_outputs]
    for output, tensor, _ in outputs:
        w.nodes.append(helper.make_node("Identity", [tensor], [output]))
    element = {
        "float32": TensorProto.FLOAT,
        "float16": TensorProto.FLOAT16,
        "uint8": TensorProto.UINT8,
    }
    batch = manifest.batch or "N"
    inputs = [
        helper.make_tensor_value_info(
            name["image"], element[manifest.image_type], [batch, *manifest.image_shape]
        )
    ]
    if manifest.top is None:
        inputs.append(
            helper.make_tensor_value_info(name["target"], TensorProto.INT64, [batch, "k"])
        )
    graph = helper.make_graph(
        w.nodes,
        "tiny",
        inputs,
        [helper.make_tensor_value_info(output, kind, None) for output, _, kind in outputs],
        w.constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, str(path))
    manifest = msgspec.structs.replace(manifest, digest=digest(path))
    append_manifest(path, manifest)
    return manifest


def _stretched(w: Writer, maps: str) -> str:
    """Min-max of each map, all zero where it is constant."""
    low = w.add("ReduceMin", maps, np.array([2, 3]))
    spread = w.add("Sub", w.add("ReduceMax", maps, np.array([2, 3])), low)
    constant = w.add("LessOrEqual", spread, np.float32(1e-7))
    divisor = w.add("Where", constant, np.float32(1), spread)
    return str(w.add("Div", w.add("Sub", maps, low), divisor))
