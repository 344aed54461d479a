"""Recorded arithmetic is NumPy's, and shapes are told for any batch."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from gradients import node, normal, run
from hypothesis import assume, given
from hypothesis import strategies as st
from onnx import helper

from whycam.export.dims import BATCH, Size, divide
from whycam.export.recorder import Recorder
from whycam.export.shapes import find_shapes
from whycam.export.tensors import Tensor
from whycam.runtime.errors import ExportError


def recorded(shape, function, n=2):
    """What a function of a tensor [N, *shape] gives when recorded, and what NumPy gives."""
    graph = ir.Graph([], [], nodes=[], opset_imports={"": 18}, name="recorded")
    kind = ir.TensorType(ir.DataType.FLOAT)
    value = ir.Value(name="x", shape=ir.Shape(["N", *shape]), type=kind)
    graph.inputs.append(value)
    recorder = Recorder(graph)
    x = Tensor(recorder, value, (BATCH, *shape), ir.DataType.FLOAT)
    recorder.symbols["N"] = recorder.op("Shape", [x], (1,), ir.DataType.INT64, start=0, end=1)
    y = function(x, recorder.xp)
    graph.outputs.append(recorder.op("Identity", [y], y.shape).value)
    given = normal(np.random.default_rng(0), (n, *shape)).astype(np.float32)
    proto = ir.to_proto(ir.Model(graph, ir_version=10))
    found = next(iter(run(proto, {"x": given}).values()))
    assert found.shape == tuple(s if isinstance(s, int) else s.factor * n for s in y.shape)
    return found, function(given, np), len([each for each in graph if each.op_type == "Reshape"])


slices = st.builds(
    slice,
    st.none() | st.integers(-6, 6),
    st.none() | st.integers(-6, 6),
    st.sampled_from([None, -2, -1, 1, 2, 3]),
)


@given(st.lists(slices | st.integers(-3, 2) | st.none(), min_size=1, max_size=3))
def test_indexing_is_numpys(keys):
    key = (slice(None), *keys)
    assume(sum(each is not None for each in keys) <= 2)
    assume(np.empty((2, 3, 4))[key].size)
    found, expected, _ = recorded((3, 4), lambda x, _: x[key])
    np.testing.assert_array_equal(found, expected)


def test_arithmetic_is_numpys():
    def function(x, xp):
        y = 2.0 - (1.0 / (x * x + 1.0)) * xp.exp(-x) + xp.maximum(x, 0.5) - xp.clip(x, -1.0, 1.0)
        y = xp.where((y > 0.0) & (y <= 3.0), y, xp.abs(y))
        whole = xp.mean(y, axis=(1, 2), keepdims=True) + xp.max(y, axis=2)[:, :, None]
        return xp.concat([y, whole, xp.sqrt(xp.sum(y * y, axis=1, keepdims=True)) + whole], axis=-1)

    found, expected, _ = recorded((3, 4), function)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_reshapes_that_follow_each_other_are_one():
    def function(x, xp):
        flat = x.reshape((-1, 2, 2))
        return flat.reshape((x.shape[0], 2, 6)) * 1.0

    found, expected, reshapes = recorded((3, 4), function)
    np.testing.assert_array_equal(found, expected)
    assert reshapes == 2  # the first is left over, and nothing reads it

    def back(x, xp):
        return x.reshape((-1, 4)).reshape(x.shape) + 0.0

    found, expected, reshapes = recorded((3, 4), back)
    np.testing.assert_array_equal(found, expected)
    assert reshapes == 1


def test_sizes_multiply_and_divide():
    rows = BATCH * 6
    assert rows == Size(6, ("N",))
    assert (divide(rows, BATCH), divide(rows, 2)) == (6, BATCH * 3)
    for part in (4, Size(1, ("k",))):
        with pytest.raises(ExportError, match="cannot be divided"):
            divide(rows, part)


def shapes_of(nodes, shape, constants):
    graph = helper.make_graph(
        nodes,
        "shapes",
        [helper.make_tensor_value_info("x", 1, ["N", *shape])],
        [helper.make_tensor_value_info("y", 1, None)],
        [helper.make_tensor(n, 7, [len(v)], v) for n, v in constants.items()],
    )
    model = ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)]))
    shapes = find_shapes(model.graph, {model.graph.inputs[0]: shape})
    return shapes.dims[model.graph.outputs[0]]


def test_the_batch_is_followed_through_windows_and_shape_arithmetic():
    nodes = [
        node("Shape", "x", "s"),
        node("Gather", "s zero", "n"),
        node("Mul", "n four", "rows"),
        node("Concat", "rows side", "shape", axis=0),
        node("Reshape", "x shape"),
    ]
    constants = {"zero": [0], "four": [4], "side": [6]}
    assert shapes_of(nodes, (3, 8), constants) == (Size(4, ("N",)), 6)


def test_a_shape_that_does_not_grow_with_the_batch_in_proportion_is_refused():
    nodes = [node("Pad", "x pads")]
    with pytest.raises(ExportError, match="'y' has 3 elements along one axis for 2 images"):
        shapes_of(nodes, (4,), {"pads": [1, 0, 0, 0]})


@pytest.mark.parametrize("kind", ["MaxPool", "AveragePool"])
def test_pooling_that_rounds_up_leaves_out_windows_in_the_padding(kind):
    nodes = [node(kind, kernel_shape=[1], strides=[3], ceil_mode=1)]
    assert shapes_of(nodes, (2, 3), {}) == (BATCH, 2, 1)
    assert shapes_of(nodes, (2, 5), {}) == (BATCH, 2, 2)
