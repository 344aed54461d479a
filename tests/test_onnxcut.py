"""Parts of an ONNX file are cut off, and the weights of convolutions stay where they are."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, external_data_helper, helper, numpy_helper

import whycam
from whycam.runtime.engines import ort
from whycam.runtime.engines.ort import OnnxRuntimeEngine
from whycam.runtime.errors import ModelFileError
from whycam.runtime.onnxcut import is_mapped, with_weights_in_place, without_outputs

_PACKS = pytest.mark.skipif(
    not ort._PACKS_WEIGHTS, reason="ONNX Runtime packs weights on x86-64, and Linux tells"
)


@pytest.fixture
def two_branches(tmp_path: Path) -> Path:
    """x -> a -> (b, c): b and c are outputs, c by way of two operations of its own."""
    value = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N", 5]) for n in "xbc"]
    nodes = [
        helper.make_node("Relu", ["x"], ["a"]),
        helper.make_node("Neg", ["a"], ["b"]),
        helper.make_node("Clip", ["a", "", "top"], ["d"]),
        helper.make_node("Exp", ["d"], ["c"]),
    ]
    top = helper.make_tensor("top", TensorProto.FLOAT, [], [0.5])
    body = helper.make_graph(nodes, "branches", value[:1], value[1:], [top])
    path = tmp_path / "branches.onnx"
    onnx.save(helper.make_model(body, opset_imports=[helper.make_opsetid("", 18)]), path)
    return path


@pytest.mark.parametrize(
    ("dropped", "left"),
    [
        ({"c"}, ["Relu", "Neg"]),
        ({"b"}, ["Relu", "Clip", "Exp"]),
        (set(), ["Relu", "Neg", "Clip", "Exp"]),
        ({"no such output"}, ["Relu", "Neg", "Clip", "Exp"]),
    ],
)
def test_output_is_dropped_with_the_operations_that_it_alone_needed(two_branches, dropped, left):
    model = onnx.load_model_from_string(without_outputs(two_branches, dropped))
    onnx.checker.check_model(model)
    assert [node.op_type for node in model.graph.node] == left
    assert {output.name for output in model.graph.output} == {"b", "c"} - dropped


def test_graph_with_fewer_outputs_computes_the_same(two_branches):
    import onnxruntime

    x = np.linspace(-2, 2, 10, dtype=np.float32).reshape(2, 5)
    answers = [
        onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"]).run(["b"], {"x": x})
        for model in (str(two_branches), without_outputs(two_branches, {"c"}))
    ]
    np.testing.assert_array_equal(*answers)


def test_operations_beside_a_subgraph_are_all_kept(tmp_path):
    value = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N"]) for n in "xyz"]
    inner = helper.make_graph(
        [helper.make_node("Neg", ["a"], ["r"])],
        "inner",
        [],
        [helper.make_tensor_value_info("r", TensorProto.FLOAT, ["N"])],
    )
    yes = helper.make_tensor("yes", TensorProto.BOOL, [], [True])
    nodes = [
        helper.make_node("Relu", ["x"], ["a"]),  # read by the subgraphs alone
        helper.make_node("If", ["yes"], ["y"], then_branch=inner, else_branch=inner),
        helper.make_node("Exp", ["x"], ["z"]),
    ]  # fmt: skip
    body = helper.make_graph(nodes, "g", value[:1], value[1:], [yes])
    path = tmp_path / "g.onnx"
    onnx.save(helper.make_model(body, opset_imports=[helper.make_opsetid("", 18)]), path)
    model = onnx.load_model_from_string(without_outputs(path, {"z"}))
    assert [node.op_type for node in model.graph.node] == ["Relu", "If", "Exp"]
    assert [output.name for output in model.graph.output] == ["y"]


@given(st.integers(0, 400))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_truncated_file_has_no_outputs_to_drop(tmp_path_factory, two_branches, length):
    whole = two_branches.read_bytes()
    if length < len(whole):
        path = tmp_path_factory.mktemp("cut") / "cut.onnx"
        path.write_bytes(whole[:length])
        with pytest.raises(ModelFileError):
            without_outputs(path, {"c"})


def _kernel(name: str, seed: int) -> TensorProto:
    values = np.random.default_rng(seed).normal(size=(64, 64, 3, 3)).astype(np.float32)
    return numpy_helper.from_array(values, name)


@pytest.fixture
def two_convolutions(tmp_path: Path) -> Path:
    """The kernel of the first is read by it alone, that of the second by another node as well."""
    nodes = [
        helper.make_node("Conv", ["x", "own"], ["a"], pads=[1, 1, 1, 1]),
        helper.make_node("Conv", ["a", "shared"], ["b"], pads=[1, 1, 1, 1]),
        helper.make_node("ReduceSum", ["shared"], ["total"], keepdims=0),
        helper.make_node("Add", ["b", "total"], ["y"]),
        helper.make_node("Conv", ["x", "lost"], ["z"], pads=[1, 1, 1, 1]),
    ]
    x, y, z = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 64, 8, 8]) for name in "xyz"
    )
    weights = [_kernel(name, seed) for seed, name in enumerate(("own", "shared", "lost"))]
    path = tmp_path / "two.onnx"
    body = helper.make_graph(nodes, "two", [x], [y, z], weights)
    onnx.save(helper.make_model(body, opset_imports=[helper.make_opsetid("", 18)]), path)
    return path


def test_kernels_that_convolutions_alone_read_are_found_in_the_file(two_convolutions):
    model = onnx.load_model_from_string(with_weights_in_place(two_convolutions, {"z"}))
    whole = onnx.load(two_convolutions)
    outside = {each.name for each in model.graph.initializer if each.external_data}
    assert outside == {"own"}
    assert {each.name for each in model.graph.initializer} == {"own", "shared"}
    external_data_helper.load_external_data_for_model(model, str(two_convolutions.parent))
    for found, stored in zip(model.graph.initializer, whole.graph.initializer, strict=False):
        np.testing.assert_array_equal(numpy_helper.to_array(found), numpy_helper.to_array(stored))


def test_file_of_which_little_would_be_referred_to_is_left_alone(two_branches, two_convolutions):
    assert with_weights_in_place(two_branches, {"c"}) is None
    model = onnx.load(two_convolutions)
    dense = np.zeros((64, 9 * 64), np.float32)  # as large as the kernel, and read by another node
    model.graph.initializer.append(numpy_helper.from_array(dense, "dense"))
    model.graph.node.append(helper.make_node("ReduceSum", ["dense"], ["sum"]))
    model.graph.node.append(helper.make_node("Add", ["y", "sum"], ["v"]))
    model.graph.output[0].name = "v"
    two_convolutions.write_bytes(model.SerializeToString())
    assert with_weights_in_place(two_convolutions, {"z"}) is None


@pytest.mark.parametrize("attribute", [False, True])
def test_file_that_refers_to_another_is_not_opened_in_its_folder(two_convolutions, attribute):
    model = onnx.load(two_convolutions)
    weight = model.graph.initializer[2]
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="beside.bin")
    if attribute:
        model.graph.node.insert(0, helper.make_node("Constant", [], ["lost"], value=weight))
        del model.graph.initializer[2]
    two_convolutions.write_bytes(model.SerializeToString())
    assert with_weights_in_place(two_convolutions, {"z"}) is None


@_PACKS
def test_an_engine_reads_weights_in_the_file_and_lets_it_go(lite0_onnx, monkeypatch):
    opened = []
    from_file = OnnxRuntimeEngine._from_file

    def kept(*arguments):
        opened.append(from_file(*arguments))
        return opened[-1]

    monkeypatch.setattr(OnnxRuntimeEngine, "_from_file", kept)
    whycam.load(lite0_onnx, "onnxruntime", threads=1)
    assert len(opened) == 1
    assert opened[0] is not None
    assert not is_mapped(lite0_onnx.resolve())


@_PACKS
def test_weights_read_in_the_file_give_the_same_answers(lite0_onnx, chelsea, monkeypatch):
    there = whycam.load(lite0_onnx, "onnxruntime", threads=1).explain(chelsea)
    monkeypatch.setattr(OnnxRuntimeEngine, "_from_file", lambda *_: None)
    copied = whycam.load(lite0_onnx, "onnxruntime", threads=1).explain(chelsea)
    assert there.top == copied.top
    np.testing.assert_array_equal(there.map, copied.map)


@_PACKS
def test_a_session_that_would_keep_the_file_is_not_used(lite0_onnx, chelsea, monkeypatch):
    monkeypatch.setattr(ort, "is_mapped", lambda _: True)
    sources = []
    session = OnnxRuntimeEngine._session

    def noted(self, model, *arguments):
        sources.append(len(model))
        return session(self, model, *arguments)

    monkeypatch.setattr(OnnxRuntimeEngine, "_session", noted)
    whycam.load(lite0_onnx, "onnxruntime", threads=1)
    referring, whole = sources
    assert referring < whole / 2


def test_a_file_that_changes_after_loading_changes_no_answer(lite0_onnx, chelsea, tmp_path):
    path = shutil.copy(lite0_onnx, tmp_path / "model.onnx")
    explainer = whycam.load(path, "onnxruntime", threads=1)
    before = explainer.explain(chelsea)
    with path.open("r+b") as file:
        file.write(bytes(path.stat().st_size))
    after = explainer.explain(chelsea)
    np.testing.assert_array_equal(before.map, after.map)
    path.write_bytes(b"")
    np.testing.assert_array_equal(before.map, explainer.explain(chelsea).map)


def test_a_model_is_loaded_through_a_link_and_from_a_folder_of_any_name(lite0_onnx, tmp_path):
    folder = tmp_path / "größe 'x' #1"
    folder.mkdir()
    (folder / "link.onnx").symlink_to(lite0_onnx)
    assert whycam.load(folder / "link.onnx", "onnxruntime", threads=1).manifest.labels
    shutil.copy(lite0_onnx, folder / "a, b=c.onnx")
    assert whycam.load(folder / "a, b=c.onnx", "onnxruntime", threads=1).manifest.labels


def test_a_mapped_file_is_seen(tmp_path):
    import mmap

    path = tmp_path / "some file"
    path.write_bytes(bytes(5000))
    assert not is_mapped(path)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ):
        assert is_mapped(path) or not Path("/proc/self/maps").exists()
    assert not is_mapped(path)
