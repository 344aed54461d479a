"""Networks that read patches as tokens: half precision, INT8 and engines take their files whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from foreign import AS_IS, CLASSES, File, saved, softmax
from onnx import TensorProto

import whycam
from whycam.calibrate.quantise import read_graph
from whycam.export import to_half, to_onnx
from whycam.export.onnx_graph import read_onnx
from whycam.runtime.backbone import backbone_runs
from whycam.runtime.errors import ExportError
from whycam.runtime.onnxfile import read_manifest

PATCH, SIDE, WIDTH = 4, 16, 12
CELLS = SIDE // PATCH


def tokens(file: File) -> tuple[str, str]:
    """Patches times a matrix, a transpose and two linear layers: tokens [N, 16, 12]; their scores.

    As ViTs that are written without a convolution. The product after the transpose is what ONNX
    Runtime fuses.
    """
    shape = [0, 3, CELLS, PATCH, CELLS, PATCH]
    x = file.add("Reshape", file.name, file.constant(shape, np.int64))
    x = file.add("Transpose", x, perm=[0, 2, 4, 3, 5, 1])
    x = file.add("Reshape", x, file.constant([0, CELLS**2, 3 * PATCH**2], np.int64))
    x = file.add("MatMul", x, file.weight(3 * PATCH**2, WIDTH))
    x = file.add("Transpose", file.add("Relu", x), perm=[1, 0, 2])
    x = file.add("MatMul", x, file.weight(WIDTH, WIDTH))
    x = file.add("Relu", file.add("Transpose", x, perm=[1, 0, 2]))
    mean = file.add("ReduceMean", x, file.constant([1], np.int64), keepdims=0)
    return x, file.linear(mean, inner=WIDTH)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = File()
    _, logits = tokens(file)
    file.add("Softmax", logits, to="y", axis=1)
    return saved(file.model({"y": ["N", CLASSES]}), tmp_path_factory.mktemp("tokens"))


def explained(source: Path, folder: Path, outputs: str) -> Path:
    return to_onnx(source, folder / f"{outputs}.onnx", outputs=[outputs], overrides=AS_IS).path


def answers(path: Path, names: list[str]) -> dict[str, np.ndarray]:
    image = np.random.default_rng(4).uniform(size=(2, 3, SIDE, SIDE)).astype(np.float32)
    feeds = {"image": image, "target": np.array([[-1], [2]])}
    return whycam.load(path, threads=1).engine.run(feeds, names)


@pytest.mark.parametrize(("outputs", "runs"), [("raw", 1), ("map", 1), ("tft", 2)])
def test_backbone_begins_at_the_patches_and_ends_at_the_layer(source, tmp_path, outputs, runs):
    path = explained(source, tmp_path, outputs)
    assert [len(layer.nodes) for layer in read_graph(path).layers] == [runs, runs]
    half = to_half(path, tmp_path / "half.onnx")
    graph = read_onnx(half.path).graph
    stored = {tensor.name: tensor for tensor in graph.initializer}
    products = [
        stored[n.input[1]] for n in graph.node if n.op_type == "MatMul" and n.input[1] in stored
    ]
    kept = [each for each in products if each.data_type == TensorProto.FLOAT16]
    assert len(kept) == 2 * runs
    name = "original_maps" if outputs == "tft" else "maps"
    names = ["probabilities"] if outputs == "raw" else ["probabilities", name]
    before, after = answers(path, names), answers(half.path, names)
    for each in names:
        np.testing.assert_allclose(after[each], before[each], atol=5e-3, err_msg=each)


def test_a_graph_without_a_layer_before_its_target_says_what_is_missing(source, tmp_path):
    graph = onnx.load(explained(source, tmp_path, "raw")).graph
    with pytest.raises(ExportError, match=r"no convolution or linear layer .* \(the tensor 'x'\)"):
        backbone_runs(graph, "x")


def test_a_transformer_in_half_precision_is_explained_and_does_not_end_the_process(tmp_path):
    file = File(dtype=TensorProto.FLOAT16, floats=np.float16)
    tensor, logits = tokens(file)
    file.add("Softmax", logits, to="y", axis=1)
    kinds = {"y": TensorProto.FLOAT16}
    path = saved(file.model({"y": ["N", CLASSES]}, kinds=kinds), tmp_path)
    made = explained(path, tmp_path, "raw")
    manifest = read_manifest(made)
    assert (manifest.precision, manifest.target_tensor) == ("fp16", tensor)
    found = answers(made, ["activations", "probabilities"])
    matrix, bias = (file.weights[name].astype(np.float64) for name in list(file.weights)[-2:])
    expected = softmax(found["activations"].astype(np.float64).mean((2, 3)) @ matrix.T + bias)
    np.testing.assert_allclose(found["probabilities"], expected, atol=3e-3)
