"""Trained and untrained ONNX files of Keras and Paddle: explained alike, as they were."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from foreign import run_file, signature
from onnx.reference import ReferenceEvaluator

import whycam
from whycam.export import ExportResult, Overrides, to_onnx

pytestmark = pytest.mark.shared

# Task, classes, layout and channels of each; the numbers are those of ../shared/data/README.md.
FILES = {
    "keras_gray_softmax": ("softmax", 10, (48, 48, 1), Overrides(preprocess="raw")),
    "keras_mobilenetv2_nhwc_softmax": ("softmax", 10, (96, 96, 3), Overrides(preprocess="tf")),
    "keras_tiny_binary": ("binary", 2, (64, 64, 3), Overrides(preprocess="raw")),
    "keras_tiny_multilabel_sigmoid": ("sigmoid", 6, (64, 64, 3), Overrides(preprocess="raw")),
    "paddle_text_direction_softmax": (
        "softmax",
        2,
        (3, 48, 192),
        Overrides(preprocess="tf", image_size=(48, 192)),
    ),
}


@pytest.fixture(scope="module", params=FILES)
def explained(request, shared_data, tmp_path_factory) -> tuple[Path, ExportResult]:
    file = shared_data / "foreign" / f"{request.param}.onnx"
    target = tmp_path_factory.mktemp("foreign") / file.name
    return file, to_onnx(file, target, overrides=FILES[request.param][3], labels=None)


def inputs_and_outputs(file: Path, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """TensorFlow's, or for Paddle's file ONNX Runtime's on the original."""
    if file.with_suffix(".npz").is_file():
        with np.load(file.with_suffix(".npz")) as data:
            return data["x"], data["y"]
    image = np.random.default_rng(0).uniform(-1, 1, (2, *shape)).astype(np.float32)
    return image, run_file(file, image)[0]


def test_file_is_explained_as_what_it_is(explained):
    file, made = explained
    task, classes, shape, _ = FILES[file.stem]
    manifest = made.manifest
    assert (manifest.task, manifest.num_classes) == (task, classes)
    assert manifest.image_shape == shape
    assert signature(made.path, True, 1)[0][:2] == signature(file, True, 1)[0][:2]
    assert signature(made.path, False, 1) == signature(file, False, 1)
    assert made.verification.worst["differences"] < 1e-3
    assert made.verification.worst["own_outputs"] < 1e-6


def test_own_output_is_that_of_the_framework(explained):
    file, made = explained
    image, expected = inputs_and_outputs(file, FILES[file.stem][2])
    (name, _, _), *_ = signature(file, False, 1)
    (before,), (after,) = run_file(file, image), run_file(made.path, image, [name])
    np.testing.assert_allclose(after, before, atol=1e-6, rtol=1e-6)
    np.testing.assert_allclose(after, expected, atol=1e-5, rtol=1e-4)


def test_probabilities_are_what_the_output_says(explained):
    file, made = explained
    image, expected = inputs_and_outputs(file, FILES[file.stem][2])
    if made.manifest.task == "binary":
        expected = np.concatenate([1 - expected, expected], -1)
    engine = whycam.load(made.path, threads=1).engine
    target = np.full((len(image), 1), -1)
    names = ["probabilities", "targets", "maps"]
    found = engine.run({"image": image, "target": target}, names)
    np.testing.assert_allclose(found["probabilities"], expected, atol=1e-5, rtol=1e-4)
    np.testing.assert_array_equal(found["targets"][:, 0], expected.argmax(1))
    assert found["maps"].shape == (len(image), 1, *made.manifest.preprocess.size)
    assert 0 <= found["maps"].min() <= found["maps"].max() <= 1


def head_in_float64(file: Path, layer: str) -> tuple[ReferenceEvaluator, str, str]:
    """The original from a node's output to its logits; the names of both tensors."""
    graph = onnx.load(file).graph
    end = next(n for n in reversed(graph.node) if n.op_type in ("Softmax", "Sigmoid"))
    start = next(n for n in graph.node if layer in (n.name, *n.output)).output[0]
    logits = end.input[0]
    kept, wanted = [], {logits}
    for node in reversed(graph.node):
        if wanted & set(node.output) and start not in node.output:
            kept.insert(0, node)
            wanted |= set(node.input)
    weights = []
    tensors = [(tensor, tensor.name) for tensor in graph.initializer]
    for node in [each for each in kept if each.op_type == "Constant"]:
        tensors.append((node.attribute[0].t, node.output[0]))
        kept.remove(node)
    for tensor, name in tensors:
        array = onnx.numpy_helper.to_array(tensor)
        kind = np.float64 if array.dtype == np.float32 else array.dtype
        weights.append(onnx.numpy_helper.from_array(array.astype(kind), name))
    ends = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.DOUBLE, None)
        for name in (start, logits)
    ]
    head = onnx.helper.make_graph(kept, "head", ends[:1], ends[1:], weights)
    imports = onnx.load(file).opset_import
    return ReferenceEvaluator(onnx.helper.make_model(head, opset_imports=imports)), start, logits


def with_output(file: Path, name: str) -> bytes:
    model = onnx.load(file)
    model.graph.output.append(onnx.ValueInfoProto(name=name))
    return model.SerializeToString()


def test_gradient_is_that_of_the_original_files_head(explained):
    """In eight random directions, by central differences in float64."""
    file, made = explained
    manifest = made.manifest
    image, _ = inputs_and_outputs(file, FILES[file.stem][2])
    engine = whycam.load(made.path, threads=1).engine
    target = np.full((len(image), 1), -1)
    names = ["activations", "gradients", "targets"]
    found = engine.run({"image": image, "target": target}, names)
    activations = found["activations"].astype(np.float64)
    gradients = found["gradients"][:, 0].astype(np.float64)
    head, start, logits = head_in_float64(file, manifest.target_layer)
    session = onnxruntime.InferenceSession(with_output(file, start))
    (original,) = session.run([start], {session.get_inputs()[0].name: image})
    back = (0, 1, 2, 3) if original.shape == activations.shape else (0, 2, 3, 1)
    np.testing.assert_allclose(activations.transpose(back), original, atol=1e-5)

    rng, ties = np.random.default_rng(0), 0
    for _ in range(8):
        # Zeros, as ReLU leaves them, stay zeros: among them a max-pool has no derivative.
        direction = rng.normal(size=activations.shape) * (activations != 0)
        ahead, here, behind = (
            head.run([logits], {start: (activations + step * direction).transpose(back)})[0]
            for step in (1e-6, 0.0, -1e-6)
        )
        sides = []
        for slopes in ((ahead - here) / 1e-6, (here - behind) / 1e-6):
            slopes = slopes.reshape(len(image), -1)
            if manifest.task == "binary":
                sides.append((found["targets"][:, 0] - 0.5) * slopes[:, 0])
            else:
                sides.append(np.take_along_axis(slopes, found["targets"], 1)[:, 0])
        # Where two elements of a max-pool tie, the slope differs by side, and either is one.
        own = (gradients * direction).sum((1, 2, 3))
        tolerance = 1e-4 * np.linalg.norm(gradients)
        assert (own >= np.minimum(*sides) - tolerance).all()
        assert (own <= np.maximum(*sides) + tolerance).all()
        ties += int((np.abs(sides[0] - sides[1]) > tolerance).sum())
    assert ties <= 8  # of 16 slopes
