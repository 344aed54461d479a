"""Operators as older opsets wrote them, between the backbone and the scores of a file."""

from __future__ import annotations

import math
from collections.abc import Callable

import foreign
import numpy as np
import pytest
from foreign import CHANNELS, CLASSES, PLACES, File, Head, check_answers, explain, saved

Array = np.ndarray
# What each adds to features [N, 8, 4, 4], and the same in NumPy.
Block = Callable[[File, str], tuple[str, Head]]


def clip_by_attributes(file: File, x: str) -> tuple[str, Head]:
    return file.add("Clip", x, min=0.1, max=0.6), lambda a: a.clip(0.1, 0.6)


def clip_by_inputs(file: File, x: str) -> tuple[str, Head]:
    low, high = file.constant(0.1), file.constant(0.6)
    return file.add("Clip", x, low, high), lambda a: a.clip(np.float32(0.1), np.float32(0.6))


def batch_norm(file: File, x: str) -> tuple[str, Head]:
    values = [file.rng.uniform(0.5, 1.5, CHANNELS).astype(np.float32) for _ in range(4)]
    scale, bias, mean, variance = (v.astype(np.float64)[:, None, None] for v in values)
    y = file.add("BatchNormalization", x, *(file.constant(v) for v in values), epsilon=1e-3)
    epsilon = float(np.float32(1e-3))
    return y, lambda a: (a - mean) / np.sqrt(variance + epsilon) * scale + bias


def padded(a: Array, value: float) -> Array:
    return np.pad(a, ((0, 0), (0, 0), (0, 0), (0, 1)), constant_values=value)


def pad_by_attributes(file: File, x: str) -> tuple[str, Head]:
    y = file.add("Pad", x, pads=[0, 0, 0, 0, 0, 0, 0, 1], value=0.5)
    return y, lambda a: padded(a, 0.5)


def pad_by_inputs(file: File, x: str) -> tuple[str, Head]:
    pads = file.constant([0, 0, 0, 0, 0, 0, 0, 1], np.int64)
    return file.add("Pad", x, pads, file.constant(0.5)), lambda a: padded(a, 0.5)


def prelu(file: File, x: str) -> tuple[str, Head]:
    below = file.add("Sub", x, file.constant(0.2))
    y = file.add("PRelu", below, file.constant(np.full((CHANNELS, 1, 1), 0.25)))
    return y, lambda a: np.where(a >= np.float32(0.2), 1, 0.25) * (a - np.float32(0.2))


def dropout(file: File, x: str) -> tuple[str, Head]:
    return file.add("Dropout", x, ratio=0.4), lambda a: a


def enlarged_by_upsample(file: File, x: str) -> tuple[str, Head]:
    y = file.add("Upsample", x, file.constant([1, 1, 2, 2], np.float32), mode="nearest")
    squared = file.add("Mul", y, y)
    return squared, lambda a: a.repeat(2, 2).repeat(2, 3) ** 2


def squeezed_by_attributes(file: File, x: str) -> tuple[str, Head]:
    longer = file.add("Unsqueeze", x, axes=[2])
    return file.add("Squeeze", longer, axes=[2]), lambda a: a


def sliced_by_attributes(file: File, x: str) -> tuple[str, Head]:
    y = file.add("Slice", x, axes=[2, 3], starts=[1, 0], ends=[100, -1])
    return y, lambda a: a[:, :, 1:, :-1]


def split_by_attributes(file: File, x: str) -> tuple[str, Head]:
    from onnx import helper

    file.nodes.append(helper.make_node("Split", [x], ["left", "right"], axis=1, split=[3, 5]))
    y = file.add("Concat", "right", "left", axis=1)
    return y, lambda a: np.concatenate([a[:, 3:], a[:, :3]], 1)


def average_pool(file: File, x: str) -> tuple[str, Head]:
    y = file.add("AveragePool", x, kernel_shape=[2, 2], strides=[2, 2])
    squared = file.add("Mul", y, y)
    return squared, lambda a: a.reshape(*a.shape[:2], 2, 2, 2, 2).mean((3, 5)) ** 2


def max_pool(file: File, x: str) -> tuple[str, Head]:
    y = file.add("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
    return y, lambda a: a.reshape(*a.shape[:2], 2, 2, 2, 2).max((3, 5))


def summed_by_attributes(file: File, x: str) -> tuple[str, Head]:
    total = file.add("ReduceSum", x, axes=[1], keepdims=1)
    y = file.add("Div", x, file.add("Add", total, file.constant(1.0)))
    return y, lambda a: a / (a.sum(1, keepdims=True) + 1)


def hard_swish_in_parts(file: File, x: str) -> tuple[str, Head]:
    """As exporters wrote it before opset 14."""
    moved = file.add("Add", x, file.constant(3.0))
    gate = file.add("Div", file.add("Clip", moved, min=0.0, max=6.0), file.constant(6.0))
    return file.add("Mul", x, gate), lambda a: a * (a + 3).clip(0, 6) / 6


def exact_gelu(a: Array) -> Array:
    return a * (1 + np.vectorize(math.erf)(a / np.sqrt(2))) / 2


def gelu_in_parts(file: File, x: str) -> tuple[str, Head]:
    """As PyTorch's exporter writes it."""
    scaled = file.add("Erf", file.add("Div", x, file.constant(np.sqrt(2))))
    gate = file.add("Mul", file.add("Add", scaled, file.constant(1.0)), file.constant(0.5))
    return file.add("Mul", x, gate), exact_gelu


def gelu(file: File, x: str) -> tuple[str, Head]:
    return file.add("Gelu", x), exact_gelu


def gelu_by_tanh(file: File, x: str) -> tuple[str, Head]:
    def function(a: Array) -> Array:
        return a * (1 + np.tanh(np.sqrt(2 / np.pi) * (a + 0.044715 * a**3))) / 2

    return file.add("Gelu", x, approximate="tanh"), function


BLOCKS: list[tuple[Block, tuple[int, ...]]] = [
    (clip_by_attributes, (8, 9, 10)),
    (clip_by_inputs, (11, 13, 20)),
    (batch_norm, (8, 9, 13, 14, 15)),
    (pad_by_attributes, (8, 10)),
    (pad_by_inputs, (11, 13, 18)),
    (prelu, (8, 9, 13)),
    (dropout, (8, 9, 11)),
    (enlarged_by_upsample, (9,)),
    (squeezed_by_attributes, (8, 11, 12)),
    (sliced_by_attributes, (8, 9)),
    (split_by_attributes, (8, 11, 12)),
    (average_pool, (8, 10, 11, 19)),
    (max_pool, (8, 10, 11, 12)),
    (summed_by_attributes, (8, 11, 12)),
    (hard_swish_in_parts, (8, 9, 10)),
    (gelu_in_parts, (9, 13, 18)),
    (gelu, (20,)),
    (gelu_by_tanh, (20,)),
]


@pytest.mark.parametrize(
    ("block", "opset"),
    [
        pytest.param(block, opset, id=f"{block.__name__}-{opset}")
        for block, opsets in BLOCKS
        for opset in opsets
    ],
)
def test_operator_of_an_older_opset_is_read_and_differentiated(
    block: Block, opset: int, tmp_path
) -> None:
    file = File()
    features = file.features()
    after, function = block(file, features)
    file.add("Softmax", file.linear(file.pooled(after)), to="y", axis=1)
    linear = foreign.linear_head(file)
    path = saved(file.model({"y": ["N", CLASSES]}, opset), tmp_path)
    made = explain(path, target_layer=features)
    assert made.manifest.activations == (CHANNELS, PLACES, PLACES)
    assert made.verification.worst["differences"] < 1e-5
    check_answers(path, made, lambda activations: linear(function(activations)))
