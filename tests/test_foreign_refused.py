"""ONNX files that hold more than a float graph: quantisation, vendors, control flow, damage."""

from __future__ import annotations

from pathlib import Path

import foreign
import numpy as np
import onnx
import pytest
from foreign import CHANNELS, CLASSES, PLACES, SIDE, File, check_answers, classifier, explain, saved
from hypothesis import settings
from onnx import TensorProto, helper

from whycam.export import Overrides, onnx_reading, to_onnx
from whycam.runtime.errors import ExportError, ModelFileError, VerificationError, WhyCamError

Y = {"y": ["N", CLASSES]}


def check_left_alone(folder: Path) -> None:
    assert not list(folder.glob("*.explained.onnx*"))
    assert not [path for path in folder.iterdir() if path.suffix not in (".onnx", ".bin")]


# --- quantisation ---


def quantised(file: File, value: str, scale: float) -> str:
    """Round to steps of ``scale``, as calibrated files do it."""
    step, zero = file.constant(scale), file.constant(0, np.int8)
    q = file.add("QuantizeLinear", value, step, zero)
    return file.add("DequantizeLinear", q, step, zero)


def quantised_weight(file: File, *shape: int) -> str:
    """A kernel in eight bits, with one step for each output channel."""
    steps = file.constant(np.full(shape[0], 1 / 127 / 3))
    zeros = file.constant(np.zeros(shape[0]), np.int8)
    whole = file.constant(file.rng.integers(-127, 128, shape), np.int8)
    return file.add("DequantizeLinear", whole, steps, zeros, axis=0)


@pytest.mark.parametrize("opset", [13, 18, 19])
def test_quantised_backbone_is_explained(opset, tmp_path):
    file = File()
    image = quantised(file, "x", 1 / 127)
    kernel = quantised_weight(file, 6, 3, 5, 5)
    first = file.add("Relu", file.add("Conv", image, kernel, strides=[2, 2]))
    kernel = quantised_weight(file, CHANNELS, 6, 3, 3)
    second = file.add("Relu", file.add("Conv", quantised(file, first, 0.02), kernel))
    file.add("Softmax", file.linear(file.pooled(second)), to="y", axis=1)
    path = saved(file.model(Y, opset), tmp_path)
    made = explain(path)
    assert made.manifest.activations == (CHANNELS, PLACES, PLACES)
    check_answers(path, made, foreign.linear_head(file))
    # Still computed in integers where the engine does so.
    kinds = [[node.op_type for node in onnx.load(each).graph.node] for each in (path, made.path)]
    for kind in ("QuantizeLinear", "DequantizeLinear"):
        assert kinds[0].count(kind) == kinds[1].count(kind)


def test_quantised_head_is_refused(tmp_path):
    file = File()
    vector = quantised(file, file.pooled(file.features()), 0.01)
    file.add("Softmax", file.linear(vector), to="y", axis=1)
    path = saved(file.model(Y), tmp_path)
    with pytest.raises(ExportError, match=r"QuantizeLinear\) quantises between.*--straight-thr"):
        explain(path)
    check_left_alone(tmp_path)


def test_gradient_passes_straight_through_quantisation_where_allowed(tmp_path):
    file = File()
    vector = quantised(file, file.pooled(file.features()), 0.01)
    file.add("Softmax", file.linear(vector), to="y", axis=1)
    path = saved(file.model(Y), tmp_path)
    made = explain(path, straight_through=True)
    matrix = file.weights[list(file.weights)[-2]]
    image = foreign.images(1, path)
    names = [made.manifest.names.get(n, n) for n in ("targets", "gradients")]
    before = foreign.run_file(path, image)[0]
    after, targets, gradients = foreign.run_file(made.path, image, ["y", *names])
    np.testing.assert_allclose(after, before, atol=1e-6)
    assert targets[0, 0] == before.argmax()
    # As if the quantisation were not there: W / (h w) at each place.
    expected = np.broadcast_to(matrix[targets[0, 0]][:, None, None] / PLACES**2, (8, 4, 4))
    np.testing.assert_allclose(gradients[0, 0], expected, rtol=1e-5)


def test_quantised_weights_of_the_head_are_constants(tmp_path):
    """Only their dequantisation is in the file: nothing between layer and scores is rounded.

    ONNX Runtime's MatMulNBits does round activations, in the original, where it fuses the two.
    """
    file = File()
    vector = file.pooled(file.features())
    whole = file.constant(file.rng.integers(-127, 128, (CHANNELS, CLASSES)), np.int8)
    matrix = file.add("DequantizeLinear", whole, file.constant(0.02), file.constant(0, np.int8))
    file.add("Softmax", file.add("MatMul", vector, matrix), to="y", axis=1)
    path = saved(file.model(Y), tmp_path)
    values = 0.02 * file.weights[whole].astype(np.float64)
    made = explain(path)
    errors = made.verification.worst
    assert errors["own_outputs"] <= 4 * errors["fusing"]
    check_answers(path, made, lambda activations: activations.mean((2, 3)) @ values, fusing=1e-2)


def test_a_wrong_conversion_is_noticed(tmp_path, monkeypatch):
    """The user's own bytes are run, not what was made of them while reading."""
    file = File()
    file.add("Softmax", file.linear(file.pooled(file.features())), to="y", axis=1)
    path = saved(file.model(Y), tmp_path)
    convert = onnx_reading._upgrade

    def wrong(proto):
        converted = convert(proto)
        other = type(converted).FromString(converted.SerializeToString())
        weights = max(other.graph.initializer, key=lambda each: len(each.raw_data))
        values = onnx.numpy_helper.to_array(weights) * 1.00001
        weights.CopyFrom(onnx.numpy_helper.from_array(values.astype(np.float32), weights.name))
        return other

    explain(path)
    monkeypatch.setattr(onnx_reading, "_upgrade", wrong)
    with pytest.raises(VerificationError, match="the file's own outputs changed"):
        explain(path)


def test_integer_arithmetic_is_refused_by_name(tmp_path):
    file = File()
    step, zero = file.constant(0.01), file.constant(0, np.uint8)
    kernel_zero = file.constant(0, np.int8)
    q = file.add("QuantizeLinear", "x", step, zero)
    kernel = file.constant(file.rng.integers(-9, 9, (CHANNELS, 3, 3, 3)), np.int8)
    q = file.add("QLinearConv", q, step, zero, kernel, step, kernel_zero, step, zero)
    features = file.add("DequantizeLinear", q, step, zero)
    file.add("Softmax", file.linear(file.pooled(features)), to="y", axis=1)
    file.nodes[1].name = "stem"
    with pytest.raises(ExportError, match=r"'stem' \(QLinearConv\) computes in integers.*QDQ"):
        explain(saved(file.model(Y), tmp_path))
    check_left_alone(tmp_path)


@pytest.mark.parametrize(
    ("domain", "kind"), [("com.microsoft.nchwc", "Conv"), ("ai.onnx.contrib", "Swish")]
)
def test_operators_of_vendors_are_refused_by_name(domain, kind, tmp_path):
    file = File()
    features = file.features()
    if kind == "Conv":  # for one processor, with the channels in blocks
        kernel = file.weight(CHANNELS, CHANNELS, 1, 1)
        features = file.add(kind, features, kernel, domain=domain, activation="Relu")
    else:
        features = file.add(kind, features, domain=domain)
    file.nodes[-1].name = "last"
    file.add("Softmax", file.linear(file.pooled(features)), to="y", axis=1)
    path = tmp_path / "vendor.onnx"
    onnx.save(file.model(Y, domains=[domain]), path)
    with pytest.raises(ExportError, match=rf"'last' is {domain}::{kind}, an operator of a vendor"):
        explain(path)
    check_left_alone(tmp_path)


def test_scores_in_dictionaries_are_refused_with_the_call_that_takes_them_out(tmp_path):
    """As Custom Vision and converters of scikit-learn write files."""
    file = File()
    scores = file.add("Softmax", file.linear(file.pooled(file.features())), to="scores", axis=1)
    file.add("ZipMap", scores, to="loss", domain="ai.onnx.ml", classlabels_int64s=[*range(5)])
    model = file.model({}, 13, domains=["ai.onnx.ml"])
    pairs = onnx.helper.make_map_type_proto(
        TensorProto.INT64, onnx.helper.make_tensor_type_proto(TensorProto.FLOAT, [])
    )
    kind = onnx.helper.make_sequence_type_proto(pairs)
    model.graph.output.append(onnx.helper.make_value_info("loss", kind))
    path = tmp_path / "pairs.onnx"
    onnx.save(model, path)
    with pytest.raises(
        ExportError, match=r"'loss' \(ZipMap\) returns .* as a dictionary"
    ) as caught:
        explain(path)
    call = str(caught.value).rpartition(": ")[2]
    assert call == "onnx.utils.extract_model('pairs.onnx', 'scores.onnx', ['x'], ['scores'])"
    check_left_alone(tmp_path)
    taken = tmp_path / "scores.onnx"
    onnx.utils.extract_model(str(path), str(taken), ["x"], ["scores"])
    assert explain(taken).manifest.task == "softmax"


# --- control flow ---


def branch(name: str, value: str, kind: str) -> onnx.GraphProto:
    result = helper.make_tensor_value_info(f"{name}_y", TensorProto.FLOAT, None)
    return helper.make_graph([helper.make_node(kind, [value], [f"{name}_y"])], name, [], [result])


@pytest.mark.parametrize("training", [False, True])
def test_condition_that_is_constant_is_resolved(training, tmp_path):
    """As a file that was exported with its training mode inside has it."""
    file = File()
    logits = file.linear(file.pooled(file.features()))
    plain = foreign.linear_head(file)
    flag = file.constant(training, np.bool_, "training")
    branches = {
        "then_branch": branch("train", logits, "Neg"),
        "else_branch": branch("eval", logits, "Identity"),
    }
    chosen = file.add("If", flag, **branches)
    file.add("Softmax", chosen, to="y", axis=1)
    path = saved(file.model(Y), tmp_path)
    sign = -1 if training else 1
    check_answers(path, explain(path), lambda activations: sign * plain(activations))


def test_condition_of_shapes_is_resolved(tmp_path):
    """PyTorch's older exporter writes a squeeze of an unknown axis so."""
    file = File()
    pooled = file.add("GlobalAveragePool", file.features())
    axis = file.add("Gather", file.add("Shape", pooled), file.constant(3, np.int64))
    is_one = file.add("Equal", axis, file.constant(1, np.int64))
    condition = file.add("If", is_one, then_branch=branch("flat", pooled, "Flatten"),
                         else_branch=branch("full", pooled, "Identity"))  # fmt: skip
    file.add("Softmax", file.linear(condition), to="y", axis=1)
    path = saved(file.model(Y), tmp_path)
    check_answers(path, explain(path), foreign.linear_head(file))


def test_condition_that_depends_on_the_image_is_refused(tmp_path):
    file = File()
    logits = file.linear(file.pooled(file.features()))
    mean = file.add("ReduceMean", "x", keepdims=0)
    bright = file.add("Greater", mean, file.constant(0.5))
    chosen = file.add("If", bright, then_branch=branch("a", logits, "Neg"),
                      else_branch=branch("b", logits, "Identity"), name="switch")  # fmt: skip
    file.add("Softmax", chosen, to="y", axis=1)
    path = saved(file.model(Y), tmp_path)
    with pytest.raises(ExportError, match=r"'switch' \(If\) depends on the image's contents"):
        explain(path)
    check_left_alone(tmp_path)


def test_loop_is_refused(tmp_path):
    file = File()
    features = file.features()
    values = [
        helper.make_tensor_value_info("i", TensorProto.INT64, []),
        helper.make_tensor_value_info("go", TensorProto.BOOL, []),
        helper.make_tensor_value_info("state", TensorProto.FLOAT, None),
    ]
    results = [
        helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
        helper.make_tensor_value_info("next", TensorProto.FLOAT, None),
    ]
    nodes = [
        helper.make_node("Identity", ["go"], ["go_on"]),
        helper.make_node("Relu", ["state"], ["next"]),
    ]
    body = helper.make_graph(nodes, "body", values, results)
    count, start = file.constant(3, np.int64), file.constant(True, np.bool_)
    features = file.add("Loop", count, start, features, body=body, name="again")
    file.add("Softmax", file.linear(file.pooled(features)), to="y", axis=1)
    with pytest.raises(ExportError, match=r"'again' \(Loop\) is a loop.*unrolled"):
        explain(saved(file.model(Y), tmp_path))
    check_left_alone(tmp_path)


# --- files that are none, and networks that are no classifiers ---


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"# weights of the model\n", "not a readable ONNX file|not an ONNX model"),
        (bytes(range(256)) * 8, "not a readable ONNX file|not an ONNX model"),
        (b"PK\x03\x04" + b"\0" * 60, "not a readable ONNX file|not an ONNX model"),
    ],
    ids=["empty", "text", "bytes", "zip"],
)
def test_file_that_is_no_onnx_file_is_refused(content, message, tmp_path):
    file = tmp_path / "model.onnx"
    file.write_bytes(content)
    with pytest.raises(ModelFileError, match=message) as caught:
        explain(file)
    assert str(file) in str(caught.value)
    check_left_alone(tmp_path)


def test_missing_file_is_refused(tmp_path):
    with pytest.raises(ModelFileError, match=r"cannot read .*nothing.onnx: No such file"):
        explain(tmp_path / "nothing.onnx")
    check_left_alone(tmp_path)


def test_file_cut_anywhere_is_refused_in_words(tmp_path):
    whole = classifier()[0].SerializeToString()
    file = tmp_path / "cut.onnx"
    for share in range(1, 40):
        file.write_bytes(whole[: len(whole) * share // 40])
        with pytest.raises(WhyCamError):
            explain(file)
        check_left_alone(tmp_path)


def test_file_with_changed_bytes_is_explained_or_refused_in_words(tmp_path):
    whole = bytearray(classifier()[0].SerializeToString())
    rng = np.random.default_rng(0)
    file = tmp_path / "changed.onnx"
    refused = 0
    for _ in range(settings.default.max_examples // 2):
        changed = whole.copy()
        # Weights fill most of a file; its structure is at both ends.
        place = int(rng.integers(0, 400)) * (1 if rng.random() < 0.5 else -1)
        changed[place] = int(rng.integers(0, 256))
        file.write_bytes(changed)
        try:
            explain(file)
        except WhyCamError:
            refused += 1
    assert refused


def test_explained_file_is_not_explained_again(tmp_path):
    made = explain(saved(classifier()[0], tmp_path))
    with pytest.raises(
        ExportError, match=r"was made by whycam export already.*Start from the file"
    ):
        to_onnx(made.path, tmp_path / "twice.onnx", overrides=Overrides(preprocess="tf"))
    assert not (tmp_path / "twice.onnx").exists()


def test_opset_that_is_too_old_is_refused(tmp_path):
    model, _ = classifier(9)
    model.opset_import[0].version = 6
    onnx.save(model, tmp_path / "old.onnx")
    with pytest.raises(ExportError, match="opset 6 is older"):
        explain(tmp_path / "old.onnx")


@pytest.mark.parametrize("kind", ["vector", "two images"])
def test_network_of_other_inputs_is_refused_with_those_it_has(kind, tmp_path):
    file = File(image=("N", 3, SIDE, SIDE) if kind == "two images" else ("N", CHANNELS))
    if kind == "vector":
        file.linear("x", to="y")
        model = file.model(Y)
    else:
        both = file.add("Add", "x", "second")
        file.linear(file.pooled(file.features(both)), to="y")
        model = file.model(Y)
        second = helper.make_tensor_value_info("second", TensorProto.FLOAT, file.image)
        model.graph.input.append(second)
    with pytest.raises(ExportError, match=r"one input of four axes.*this one has: 'x'"):
        explain(saved(model, tmp_path))


def test_weights_do_not_go_with_a_file_that_has_its_own(tmp_path):
    with pytest.raises(WhyCamError, match="an ONNX file holds its weights"):
        explain(saved(classifier()[0], tmp_path), weights="other.pth")


def test_operator_without_a_gradient_is_refused_by_name(tmp_path):
    file = File()
    vector = file.add("Det", file.add("Conv", file.features(), file.weight(5, CHANNELS, 1, 1)))
    file.add("Softmax", vector, to="y", axis=1)
    file.nodes[-2].name = "volume"
    with pytest.raises(ExportError, match="Det") as caught:
        explain(saved(file.model(Y), tmp_path), target_layer=file.nodes[-3].output[0])
    assert "volume" in str(caught.value)
    check_left_alone(tmp_path)
