"""ONNX classifiers as other tools write them, small and node by node, and what they must answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

import whycam
from whycam.export import ExportResult, Overrides, to_onnx

SIDE, CHANNELS, PLACES, CLASSES = 16, 8, 4, 5
AS_IS = Overrides(preprocess="zero-one")
Array = np.ndarray
Head = Callable[[Array], Array]


@dataclass
class File:
    """An ONNX file under construction.

    Attributes:
        image: shape of the input; text and None are free.
        name: of the input.
        dtype: of the input.
        floats: element type of the weights.
    """

    image: Sequence[int | str | None] = ("N", 3, SIDE, SIDE)
    name: str = "x"
    dtype: int = TensorProto.FLOAT
    floats: type = np.float32
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    weights: dict[str, Array] = field(default_factory=dict)
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(3))

    def add(self, kind: str, *inputs: str, to: str = "", **attributes: Any) -> str:
        """Add a node of one output, and return that output's name."""
        output = to or f"{kind.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [output], **attributes))
        return output

    def weight(self, *shape: int, scale: float | None = None) -> str:
        """A random weight, as large as keeps activations near 1."""
        spread = scale or int(np.prod(shape[1:])) ** -0.5
        return self.constant(spread * self.rng.normal(size=shape))

    def constant(self, value: Any, dtype: type | None = None, name: str = "") -> str:
        name = name or f"w{len(self.weights)}"
        self.weights[name] = np.asarray(value, dtype or self.floats)
        return name

    def features(self, image: str = "") -> str:
        """Two convolutions: [N, 8, 4, 4] of an image of 16 x 16 pixels, never negative."""
        image = image or self.name
        first = self.add("Conv", image, self.weight(6, 3, 5, 5), strides=[2, 2])
        first = self.add("Relu", first)
        bias = self.weight(CHANNELS, scale=0.3)
        return self.add("Relu", self.add("Conv", first, self.weight(CHANNELS, 6, 3, 3), bias))

    def pooled(self, features: str, axis: int = 1) -> str:
        return self.add("Flatten", self.add("GlobalAveragePool", features), axis=axis)

    def linear(
        self, vector: str, classes: int = CLASSES, inner: int = CHANNELS, to: str = ""
    ) -> str:
        matrix, bias = self.weight(classes, inner, scale=1.0), self.weight(classes, scale=0.5)
        return self.add("Gemm", vector, matrix, bias, transB=1, to=to)

    def model(
        self,
        outputs: dict[str, Sequence[int | str | None]],
        opset: int = 18,
        ir_version: int | None = None,
        kinds: dict[str, int] | None = None,
        functions: Sequence[onnx.FunctionProto] = (),
        domains: Sequence[str] = (),
    ) -> onnx.ModelProto:
        """The model.

        Args:
            outputs: shape of each.
            opset: of ONNX's own operators.
            ir_version: below 4 weights are inputs as well; None: the usual one of the opset.
            kinds: element types of outputs that are not float32.
            functions, domains: of the model.
        """
        inputs = [helper.make_tensor_value_info(self.name, self.dtype, self.image)]
        tensors = [numpy_helper.from_array(array, name) for name, array in self.weights.items()]
        usual = {9: 4, 11: 6, 13: 7, 17: 8, 18: 8, 20: 9}.get(opset, 8)
        version = ir_version or usual
        if version < 4:
            inputs += [
                helper.make_tensor_value_info(t.name, t.data_type, list(t.dims)) for t in tensors
            ]
        kinds = kinds or {}
        results = [
            helper.make_tensor_value_info(name, kinds.get(name, TensorProto.FLOAT), shape)
            for name, shape in outputs.items()
        ]
        graph = helper.make_graph(self.nodes, "graph", inputs, results, tensors)
        imports = [helper.make_opsetid("", opset)]
        imports += [helper.make_opsetid(domain, 1) for domain in domains]
        model = helper.make_model(graph, opset_imports=imports, functions=functions)
        model.ir_version = version
        return model


def linear_head(file: File) -> Head:
    """The pooled linear head whose weights were added last."""
    matrix, bias = (file.weights[name].astype(np.float64) for name in list(file.weights)[-2:])
    return lambda activations: activations.mean((2, 3)) @ matrix.T + bias


def classifier(
    opset: int = 18, activation: str = "Softmax", ir_version: int | None = None, **options: Any
) -> tuple[onnx.ModelProto, Head]:
    """A pooled linear classifier of one output ``y`` [N, 5], and its head in float64."""
    file = File(**options)
    batch = file.image[0]
    logits = file.linear(file.pooled(file.features()))
    if activation:
        axis = {} if activation == "Sigmoid" else {"axis": 1}
        file.add(activation, logits, to="y", **axis)
    else:
        file.add("Identity", logits, to="y")
    return file.model({"y": [batch, CLASSES]}, opset, ir_version), linear_head(file)


def saved(model: onnx.ModelProto, folder: Path, name: str = "foreign.onnx") -> Path:
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, folder / name)
    return folder / name


def images(batch: int, file: Path, seed: int = 0) -> Array:
    """Random images as a file's only used input takes them."""
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    one = next(each for each in session.get_inputs() if len(each.shape) == 4)
    shape = [batch, *(side if isinstance(side, int) else SIDE for side in one.shape[1:])]
    rng = np.random.default_rng(seed)
    if one.type == "tensor(uint8)":
        return rng.integers(0, 256, shape, np.uint8)
    kind = np.float16 if one.type == "tensor(float16)" else np.float32
    return rng.uniform(size=shape).astype(kind)


def run_file(file: Path, image: Array, outputs: Sequence[str] | None = None) -> list[Array]:
    """Outputs of a file in ONNX Runtime, other inputs than the image at their defaults."""
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]
    feeds = {names[0]: image}
    if "whycam" in session.get_modelmeta().custom_metadata_map and len(names) > 1:
        feeds[names[1]] = np.full((len(image), 1), -1, np.int64)
    return session.run(outputs, feeds)


def signature(file: Path, inputs: bool, count: int) -> list[tuple[str, str, tuple[Any, ...]]]:
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    values = session.get_inputs() if inputs else session.get_outputs()
    return [
        (v.name, v.type, tuple(s if isinstance(s, int) else None for s in v.shape))
        for v in values[:count]
    ]


def explain(file: Path, **options: Any) -> ExportResult:
    options.setdefault("overrides", AS_IS)
    options.setdefault("outputs", ["raw"])
    return to_onnx(file, file.with_suffix(".explained.onnx"), **options)


def softmax(logits: Array) -> Array:
    exponentials = np.exp(logits - logits.max(-1, keepdims=True))
    return exponentials / exponentials.sum(-1, keepdims=True)


def sigmoid(logits: Array) -> Array:
    return 1 / (1 + np.exp(-logits))


def both(logits: Array) -> Array:
    """Probabilities of no and of yes."""
    return np.concatenate([sigmoid(-logits), sigmoid(logits)], -1)


def score(task: str, logits: Array, target: Array) -> Array:
    """The score [N] that gradients are taken of; of one logit z: -z/2 or +z/2."""
    if task == "binary":
        return (target - 0.5) * logits[:, 0]
    return np.take_along_axis(logits, target[:, None], 1)[:, 0]


PROBABILITIES = {
    "softmax": softmax,
    "sigmoid": sigmoid,
    "binary": both,
    "none": lambda values: values,
}


def check_answers(
    file: Path,
    made: ExportResult,
    head: Head,
    tolerance: float = 1e-5,
    batch: int = 2,
    fusing: float = 1e-6,
) -> None:
    """Own outputs, probabilities and gradients of an explained file are what they must be.

    Args:
        file: the original.
        made: of it.
        head: logits [N, C] in float64 of activations [N, K, h, w].
        tolerance: of probabilities, and of gradients relative to the largest one.
        batch: how many images at once.
        fusing: of own outputs, what ONNX Runtime's fusing changes in the original.
    """
    image = images(batch, file)
    before = run_file(file, image)
    names = [name for name, _, _ in signature(file, False, len(before))]
    after = run_file(made.path, image, names)
    for name, old, new in zip(names, before, after, strict=True):
        assert new.dtype == old.dtype, name
        # One step of float16: the engine computes in float32 in between, in its own places.
        own = 1e-3 if old.dtype == np.float16 else fusing
        np.testing.assert_allclose(new, old, rtol=own, atol=own, err_msg=name)

    task = made.manifest.task
    explainer = whycam.load(made.path, threads=1)
    classes = made.manifest.num_classes
    target = np.array([[-1, index % classes] for index in range(batch)])
    wanted = ["probabilities", "targets", "activations", "gradients"]
    fed = image.astype(np.float32) if image.dtype == np.float16 else image
    found = explainer.engine.run({"image": fed, "target": target}, wanted)
    activations = found["activations"].astype(np.float64)
    assert activations.shape[1:] == made.manifest.activations
    expected = PROBABILITIES[task](head(activations))
    np.testing.assert_allclose(found["probabilities"], expected, atol=tolerance, rtol=tolerance)
    assert (found["targets"][:, 0] == expected.argmax(1)).all()
    assert (found["targets"][:, 1] == target[:, 1]).all()

    rng = np.random.default_rng(1)
    step = 1e-6
    for column in range(2):
        chosen, gradient = found["targets"][:, column], found["gradients"][:, column]
        largest = np.linalg.norm(gradient.astype(np.float64))
        for _ in range(4):
            # Zeros after ReLU stay zeros: a max-pool over nothing else has no derivative.
            direction = rng.normal(size=activations.shape) * (activations != 0)
            ahead, behind = (
                score(task, head(activations + sign * step * direction), chosen) for sign in (1, -1)
            )
            slope = (ahead - behind) / (2 * step)
            found_slope = (gradient * direction).sum((1, 2, 3))
            np.testing.assert_allclose(found_slope, slope, atol=20 * tolerance * largest)
