"""One gradient rule by itself: a graph of a few nodes, its recorded gradient, and the reference."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import torch
from onnx import helper
from onnx.reference import ReferenceEvaluator

from whycam.export.dims import BATCH, CLASSES, Size
from whycam.export.gradient.reverse import reverse
from whycam.export.recorder import Recorder
from whycam.export.shapes import find_shapes
from whycam.export.tensors import Tensor

# What ONNX Runtime, OpenVINO and TensorRT all take.
PORTABLE = {
    "Abs", "Add", "And", "Cast", "Clip", "Concat", "Conv", "ConvTranspose", "Cos", "DepthToSpace",
    "Div", "Einsum", "Equal", "Erf", "Exp", "Expand", "Gather", "Gemm", "Greater",
    "GreaterOrEqual", "Less", "LessOrEqual", "Log", "MatMul", "Max", "Min", "Mul", "Neg", "Not",
    "Or", "Pad", "Pow", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum", "Relu",
    "Reshape", "Shape", "Sigmoid", "Sign", "Sin", "Slice", "Softmax", "Softplus", "SpaceToDepth",
    "Sqrt", "Squeeze", "Sub", "Tanh", "Transpose", "Unsqueeze", "Where",
}  # fmt: skip

Draw = Callable[[np.random.Generator, Sequence[int]], np.ndarray]


def normal(rng: np.random.Generator, shape: Sequence[int]) -> np.ndarray:
    return rng.normal(size=shape)


def positive(rng: np.random.Generator, shape: Sequence[int]) -> np.ndarray:
    return rng.uniform(0.3, 2.0, size=shape)


def ties(rng: np.random.Generator, shape: Sequence[int]) -> np.ndarray:
    return rng.integers(-1, 2, size=shape).astype(float)


def weights(*shape: int) -> np.ndarray:
    """Constants that the shape decides."""
    return np.random.default_rng(shape).normal(size=shape).astype(np.float32)


def numbers(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def in_double(constant: np.ndarray) -> torch.Tensor:
    return torch.tensor(constant, dtype=torch.float64)


def node(kind: str, inputs: str = "x", outputs: str = "y", **attributes: Any) -> onnx.NodeProto:
    """A node; names are parted by spaces, and ``_`` is an input left out."""
    names = ["" if name == "_" else name for name in inputs.split()]
    return helper.make_node(kind, names, outputs.split(), name=f"{kind}_{outputs}", **attributes)


@dataclass(frozen=True)
class Case:
    """Operators from inputs to the output ``y``.

    Attributes:
        nodes: in order.
        inputs: the shape of each differentiated input, without its batch.
        constants: of the graph.
        function: the same in torch, of the inputs in order, float64; None: central differences of
            onnx's reference evaluator.
        draw: the inputs' values.
        outer: see ``Step.outer``; of ``y``.
    """

    nodes: Sequence[onnx.NodeProto]
    inputs: dict[str, tuple[int, ...]]
    constants: dict[str, np.ndarray] = field(default_factory=dict)
    function: Callable[..., torch.Tensor] | None = None
    draw: Draw = normal
    opset: int = 20
    dtype: type = np.float32
    tolerance: float = 1e-4
    outer: int = 1


def forward_model(case: Case, dtype: type) -> onnx.ModelProto:
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    graph = helper.make_graph(
        case.nodes,
        "case",
        [helper.make_tensor_value_info(n, kind, ["N", *s]) for n, s in case.inputs.items()],
        [helper.make_tensor_value_info("y", kind, None)],
        [
            onnx.numpy_helper.from_array(
                each.astype(dtype) if each.dtype.kind == "f" else each, name
            )
            for name, each in case.constants.items()
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", case.opset)])


@dataclass(frozen=True)
class Recorded:
    """A graph with its gradients, the tensors recorded, and the forward shape of ``y``."""

    proto: onnx.ModelProto
    tensors: dict[str, tuple[Any, ...]]
    gradients: list[Tensor]
    y: tuple[Any, ...]
    operators: list[str]
    nodes: int


def record(case: Case, classes: int | Size = CLASSES) -> Recorded:
    """Append the gradient of every input to the case's graph; outputs: ``y`` and all recorded."""
    model = ir.from_proto(forward_model(case, case.dtype))
    graph = model.graph
    images = list(graph.inputs)
    shapes = find_shapes(graph, {value: case.inputs[str(value.name)] for value in images})
    nodes = list(graph)
    recorder = Recorder(graph)
    first = Tensor(recorder, images[0], (BATCH, *case.inputs[str(images[0].name)]), images[0].dtype)
    recorder.symbols["N"] = recorder.op("Shape", [first], (1,), ir.DataType.INT64, start=0, end=1)
    k = ir.Value(name="k", shape=ir.Shape([1]), type=ir.TensorType(ir.DataType.INT64))
    recorder.symbols["k"] = Tensor(recorder, k, (1,), ir.DataType.INT64)
    end = graph.outputs[0]
    y = shapes.dims[end]
    lifted = tuple(side * classes if isinstance(side, Size) else side for side in y)
    value = ir.Value(
        name="seed",
        shape=ir.Shape([s if isinstance(s, int) else None for s in lifted]),
        type=ir.TensorType(ir.DataType.FLOAT),
    )
    graph.inputs.extend([k, value])
    seed = Tensor(recorder, value, lifted, ir.DataType.FLOAT)
    gradients, operators = reverse(nodes, recorder, shapes, end, seed, images, classes)
    new = [each for each in graph if each not in set(nodes)]
    tensors = {}
    for each in new:
        for output in each.outputs:
            assert output.shape is not None
            tensors[str(output.name)] = tuple(
                side if isinstance(side, int) else side.value for side in output.shape
            )
            graph.outputs.append(output)
    for gradient in gradients:
        if gradient.value is value:
            same = recorder.op("Identity", [gradient], gradient.shape)
            tensors[str(same.value.name)] = ()
            graph.outputs.append(same.value)
            gradients = [same if each is gradient else each for each in gradients]
    end.shape = None
    proto = ir.to_proto(model)
    assert {each.op_type for each in new} <= PORTABLE
    used = {name for each in graph for name in each.inputs} | {g.value for g in gradients}
    # Of two reshapes that follow each other the first is left over; cleaning up takes it away.
    moved = ("Shape", "Reshape", "Unsqueeze")
    idle = [o for each in new for o in each.outputs if o not in used and each.op_type not in moved]
    assert not idle, f"recorded but not used: {[each.name for each in idle]}"
    return Recorded(proto, tensors, gradients, y, operators, len(new))


def run(proto: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    proto = onnx.ModelProto.FromString(proto.SerializeToString())
    proto.ir_version = 10
    session = onnxruntime.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    names = [each.name for each in session.get_outputs()]
    wanted = {each.name for each in session.get_inputs()}
    return dict(
        zip(names, session.run(names, {n: v for n, v in feeds.items() if n in wanted}), strict=True)
    )


def batch_first(y: np.ndarray, dims: Sequence[Any], n: int, outer: int) -> np.ndarray:
    """[.., o n m, ..] as [n, ..]."""
    place = next(axis for axis, side in enumerate(dims) if isinstance(side, Size))
    split = y.reshape(*y.shape[:place], outer, n, -1, *y.shape[place + 1 :])
    return np.moveaxis(split, place + 1, 0)


def by_class(y: np.ndarray, dims: Sequence[Any], n: int, outer: int, k: int) -> np.ndarray:
    """Of gradient rows [.., o n k m, ..]: [k, .., o n m, ..]."""
    place = next(axis for axis, side in enumerate(dims) if isinstance(side, Size))
    split = y.reshape(*y.shape[:place], outer, n, k, -1, *y.shape[place + 1 :])
    rows = np.moveaxis(split, place + 2, 0)
    return rows.reshape(k, *y.shape[:place], y.shape[place] // k, *y.shape[place + 1 :])


def torch_reference(
    case: Case, images: Sequence[np.ndarray], seeds: np.ndarray
) -> tuple[np.ndarray, list[np.ndarray]]:
    assert case.function is not None
    given = [torch.tensor(each, dtype=torch.float64, requires_grad=True) for each in images]
    y = case.function(*given)
    grads = [
        torch.autograd.grad(y, given, torch.tensor(seed, dtype=torch.float64), retain_graph=True)
        for seed in seeds
    ]
    return y.detach().numpy(), [np.stack([g[i].numpy() for g in grads]) for i in range(len(given))]


def numeric_reference(
    case: Case, images: Sequence[np.ndarray], seeds: np.ndarray, dims: Sequence[Any]
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Central differences; all changes of one image are one batch."""
    evaluator = ReferenceEvaluator(forward_model(case, np.float64))
    names = list(case.inputs)
    n, h = len(images[0]), 1e-5
    exact = [each.astype(np.float64) for each in images]
    y = evaluator.run(None, dict(zip(names, exact, strict=True)))[0]
    weights = [batch_first(seed, dims, n, case.outer) for seed in seeds]
    results = []
    for index, image in enumerate(exact):
        result = np.zeros((len(seeds), *image.shape))
        size = image[0].size
        for row in range(n):
            feeds = {
                name: np.repeat(each[row : row + 1], 2 * size, 0)
                for name, each in zip(names, exact, strict=True)
            }
            moves = np.concatenate([np.eye(size) * h, np.eye(size) * -h])
            feeds[names[index]] = feeds[names[index]] + moves.reshape(-1, *image.shape[1:])
            moved = batch_first(evaluator.run(None, feeds)[0], dims, 2 * size, case.outer)
            slopes = (moved[:size] - moved[size:]).reshape(size, -1) / (2 * h)
            for c, weight in enumerate(weights):
                result[c, row] = (slopes @ weight[row].ravel()).reshape(image.shape[1:])
        results.append(result)
    return y, results


def differences(case: Case, n: int = 2, k: int = 2, static: bool = False, seed: int = 0) -> float:
    """The largest error of any gradient, of the size of the largest element of the reference.

    Checks on the way that the reference computes what ONNX Runtime computes, and that every tensor
    recorded has the shape that it was announced with.
    """
    rng = np.random.default_rng(seed)
    recorded = record(case, k if static else CLASSES)
    images = [case.draw(rng, (n, *shape)).astype(case.dtype) for shape in case.inputs.values()]
    place = next(axis for axis, side in enumerate(recorded.y) if isinstance(side, Size))
    sides = [side if isinstance(side, int) else side.factor * n for side in recorded.y]
    sides[place] *= k
    rows = rng.normal(size=sides).astype(np.float32)
    feeds = dict(zip(case.inputs, images, strict=True))
    results = run(recorded.proto, {**feeds, "k": np.array([k]), "seed": rows})
    for name, dims in recorded.tensors.items():
        if dims:
            scope = {"__builtins__": {}, "N": n, "k": k}
            announced = tuple(eval(str(side), scope) for side in dims)
            assert results[name].shape == announced, f"{name}: {results[name].shape}, {dims}"
    seeds = by_class(rows, recorded.y, n, case.outer, k)
    if case.function is None:
        y, expected = numeric_reference(case, images, seeds, recorded.y)
    else:
        y, expected = torch_reference(case, images, seeds)
    np.testing.assert_allclose(results["y"], y, rtol=1e-3, atol=20 * case.tolerance)
    worst = 0.0
    for gradient, reference in zip(recorded.gradients, expected, strict=True):
        found = results[str(gradient.value.name)]
        found = found.reshape(n, k, *found.shape[1:]).swapaxes(0, 1)
        assert found.shape == reference.shape
        assert np.isfinite(reference).all()
        worst = max(worst, float(np.abs(found - reference).max() / (1 + np.abs(reference).max())))
        worst = worst if not math.isnan(found.sum()) else math.inf
    return worst


def check(case: Case, seed: int = 0) -> None:
    """One image and class, three images and two classes, and a number of classes that is fixed."""
    for n, k, static in ((1, 1, False), (3, 2, False), (2, 2, True), (2, 1, True)):
        error = differences(case, n, k, static, seed)
        assert error < case.tolerance, f"{error:.2g} for {n} images, {k} classes, {static=}"
