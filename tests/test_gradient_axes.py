"""Gradients over ranks, axes, broadcasting, slices and permutations."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gradient_cases.reductions import first_along
from gradients import Case, differences, node, numbers, positive, ties
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import mutually_broadcastable_shapes

shapes = st.lists(st.integers(1, 4), min_size=1, max_size=3).map(tuple)


@pytest.mark.parametrize(
    ("kind", "function"),
    [("Add", torch.add), ("Sub", torch.sub), ("Mul", torch.mul), ("Div", torch.div)],
)
@given(
    mutually_broadcastable_shapes(num_shapes=2, min_dims=1, max_dims=3, max_side=3),
    st.sampled_from([(1, 1), (2, 2), (3, 1)]),
)
def test_operands_that_are_broadcast(kind, function, drawn, counts):
    first, second = drawn.input_shapes
    rank = max(len(first), len(second))  # both have the batch in front
    one, other = ((1,) * (rank - len(shape)) + shape for shape in (first, second))
    case = Case([node(kind, "x x1")], {"x": one, "x1": other}, {}, function, positive)
    assert differences(case, *counts) < 1e-4


@given(shapes, st.data())
def test_product_of_matrices_with_batches(shape, data):
    rows, inner, columns = (data.draw(st.integers(1, 3)) for _ in range(3))
    lead = shape[:2]
    other = tuple(data.draw(st.sampled_from([1, side])) for side in lead)
    case = Case(
        [node("MatMul", "x x1")],
        {"x": (*lead, rows, inner), "x1": (*other, inner, columns)},
        {},
        torch.matmul,
    )
    assert differences(case, n=2, k=3) < 1e-4


@pytest.mark.parametrize("kind", ["ReduceSum", "ReduceMean", "ReduceMax", "ReduceL2"])
@given(shapes, st.data(), st.booleans())
def test_reductions_over_any_axes(kind, shape, data, keep):
    rank = len(shape) + 1
    axes = tuple(data.draw(st.lists(st.integers(1, rank - 1), min_size=1, max_size=3, unique=True)))
    signed = tuple(axis - rank if data.draw(st.booleans()) else axis for axis in axes)
    functions = {
        "ReduceSum": lambda x: x.sum(axes, keep),
        "ReduceMean": lambda x: x.mean(axes, keep),
        "ReduceMax": lambda x: first_along(x, axes, keep, 1.0),
        "ReduceL2": lambda x: torch.linalg.vector_norm(x, 2, axes, keep),
    }
    case = Case(
        [node(kind, "x axes", keepdims=int(keep))],
        {"x": shape},
        {"axes": numbers(*signed)},
        functions[kind],
        ties if kind == "ReduceMax" else positive,
    )
    assert differences(case, n=2, k=2) < 1e-4


@given(
    st.integers(1, 7),
    st.integers(-9, 9),
    st.integers(-9, 9),
    st.sampled_from([-3, -2, -1, 1, 2, 3]),
    st.sampled_from([1, 2, -1, -2]),
)
def test_slices_of_any_step(side, start, end, step, axis):
    taken = np.arange(side)[start:end:step].copy()
    # NumPy and ONNX read an end of -1 alike: the last element.
    assume(len(taken))
    place = axis % 3
    shape = (side, 2) if place == 1 else (2, side)
    columns = (start, end, axis, step)
    case = Case(
        [node("Slice", "x a b c d")],
        {"x": shape},
        {name: numbers(each) for name, each in zip("abcd", columns, strict=True)},
        lambda x: x.index_select(place, torch.from_numpy(taken)),
    )
    assert differences(case, n=2, k=2) < 1e-4


@given(st.permutations(range(4)))
def test_permutations_that_move_the_batch(order):
    inverse = [order.index(axis) for axis in range(4)]
    case = Case(
        [
            node("Transpose", "x", "t", perm=order),
            node("Sigmoid", "t", "s"),
            node("Transpose", "s", "u", perm=inverse),
            node("Mul", "u x"),
        ],
        {"x": (2, 3, 4)},
        {},
        lambda x: torch.sigmoid(x) * x,
    )
    assert differences(case, n=3, k=2) < 1e-4


@given(st.integers(1, 5), st.lists(st.integers(-5, 4), min_size=1, max_size=6), st.booleans())
def test_gathered_elements_that_repeat_are_summed(side, indices, last):
    indices = [index % side - (side if index < 0 else 0) for index in indices]
    shape = (3, side) if last else (side, 3)
    axis = 2 if last else 1
    case = Case(
        [node("Gather", "x i", axis=axis)],
        {"x": shape},
        {"i": numbers(*indices)},
        lambda x: x.index_select(axis, torch.tensor(indices) % side),
    )
    assert differences(case, n=2, k=2) < 1e-4
