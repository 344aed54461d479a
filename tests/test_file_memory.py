"""A model file is read without copies of it that stay, or that pile up."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import whycam
from whycam.runtime.onnxcut import without_outputs

_WEIGHTS = 4 << 20  # bytes


@pytest.fixture(scope="module")
def large(tmp_path_factory) -> Path:
    """A file that is nearly all weights, with two outputs."""
    weights = np.zeros((1, _WEIGHTS // 4), np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("ReduceSum", ["w"], ["total"]),
            helper.make_node("Add", ["x", "total"], ["a"]),
            helper.make_node("Neg", ["x"], ["b"]),
        ],
        "large",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in "ab"],
        [numpy_helper.from_array(weights, "w")],
    )
    path = tmp_path_factory.mktemp("large") / "large.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]), path)
    return path


def test_a_cut_file_is_copied_once(large):
    tracemalloc.start()
    cut = without_outputs(large, {"b"})
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(cut) > _WEIGHTS
    assert peak < 1.3 * len(cut)
    assert [value.name for value in onnx.load_model_from_string(cut).graph.output] == ["a"]


def test_nothing_of_the_file_stays_in_python_after_tft(lite0_onnx, chelsea):
    whycam.load(lite0_onnx, "onnxruntime", threads=1).explain(chelsea, tft=True)  # imports
    tracemalloc.start()
    explainer = whycam.load(lite0_onnx, "onnxruntime", threads=1)
    explainer.explain(chelsea, tft=True)
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert held < 0.25 * lite0_onnx.stat().st_size
