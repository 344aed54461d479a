"""ONNX files of other origin are explained, without torch, or refused with what would help."""

from __future__ import annotations

from pathlib import Path

import foreign
import numpy as np
import onnx
import pytest
from foreign import CHANNELS, CLASSES, PLACES, SIDE, File, check_answers, classifier, explain, saved
from onnx import TensorProto, helper

import whycam
from whycam.export import Overrides
from whycam.runtime.errors import ExportError, ModelFileError, PreprocessError


def test_files_are_explained_without_torch(tmp_path, run_python):
    file = saved(classifier()[0], tmp_path)
    said = run_python(f"""
        import sys
        from whycam.export import Overrides, to_onnx
        made = to_onnx({str(file)!r}, {str(tmp_path / "out.onnx")!r},
                       overrides=Overrides(preprocess="imagenet"), outputs=["raw", "map", "tft"],
                       methods=["gradcam", "ablation"])
        heavy = {{"torch", "torchvision", "timm", "onnxscript"}}
        print(made.manifest.task, heavy & {{name.partition(".")[0] for name in sys.modules}})
    """)
    assert said == "softmax set()"


# --- versions, batches, sizes, layouts ---


@pytest.mark.parametrize("activation", ["Softmax", "Sigmoid", ""])
@pytest.mark.parametrize("opset", [9, 11, 13, 17, 18, 20])
def test_every_opset_gives_the_same_answers(opset, activation, tmp_path):
    model, head = classifier(opset, activation)
    file = saved(model, tmp_path)
    made = explain(file)
    assert made.manifest.task == ("sigmoid" if activation == "Sigmoid" else "softmax")
    assert made.manifest.activations == (CHANNELS, PLACES, PLACES)
    assert made.manifest.opset == max(opset, 18)
    check_answers(file, made, head)


def test_explained_file_keeps_inputs_and_outputs(tmp_path):
    file = saved(classifier()[0], tmp_path)
    made = explain(file)
    for inputs in (True, False):
        assert foreign.signature(made.path, inputs, 1) == foreign.signature(file, inputs, 1)
    assert made.manifest.own_outputs == ("y",)


@pytest.mark.parametrize("opset", [8, 9])
def test_weights_that_are_inputs_as_well_are_weights(opset, tmp_path):
    model, head = classifier(opset, ir_version=3)
    assert len(model.graph.input) > 1
    file = saved(model, tmp_path)
    made = explain(file)
    assert [name for name, _, _ in foreign.signature(made.path, True, 9)] == ["x", "target"]
    check_answers(file, made, head)


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("shape", ["own", "inferred"])
def test_fixed_batch_spelled_out_in_a_reshape_is_freed(batch, shape, tmp_path):
    file = File(image=(batch, 3, SIDE, SIDE))
    pooled = file.add("GlobalAveragePool", file.features())
    shape = [batch, CHANNELS] if shape == "own" else [batch, -1]
    flat = file.add("Reshape", pooled, file.constant(shape, np.int64))
    file.add("Softmax", file.linear(flat), to="y", axis=1)
    path = saved(file.model({"y": [batch, CLASSES]}), tmp_path)
    made = explain(path)
    assert any(f"batch size was fixed at {batch}" in note for note in made.notes)
    check_answers(path, made, foreign.linear_head(file), batch=batch)
    free = whycam.load(made.path).engine.run(
        {"image": np.zeros((3, 3, SIDE, SIDE), np.float32), "target": np.full((3, 1), -1)},
        ["gradients"],
    )
    assert free["gradients"].shape == (3, 1, CHANNELS, PLACES, PLACES)


def test_free_height_and_width_are_asked_for_and_then_fixed(tmp_path):
    model, head = classifier(image=("N", 3, "height", "width"))
    file = saved(model, tmp_path)
    with pytest.raises(ExportError, match=r"images of any size.*--image-size"):
        explain(file)
    made = explain(file, overrides=Overrides(preprocess="zero-one", image_size=SIDE))
    assert made.manifest.preprocess.size == (SIDE, SIDE)
    check_answers(file, made, head)


def test_another_size_than_the_files_is_refused(tmp_path):
    file = saved(classifier()[0], tmp_path)
    with pytest.raises(ExportError, match="16 x 16 pixels only, not 32 x 32"):
        explain(file, overrides=Overrides(preprocess="zero-one", image_size=32))


@pytest.mark.parametrize("place", ["transposed at the door", "channels last to the end"])
def test_channels_last_input_stays(place, tmp_path):
    file = File(image=("N", SIDE, SIDE, 3))
    features = file.features(file.add("Transpose", "x", perm=[0, 3, 1, 2]))
    if place == "transposed at the door":
        vector = file.pooled(features)
    else:
        last = file.add("Transpose", features, perm=[0, 2, 3, 1])
        axes = file.constant([1, 2], np.int64)
        vector = file.add("ReduceMean", last, axes, keepdims=0)
    file.add("Softmax", file.linear(vector), to="y")
    path = saved(file.model({"y": ["N", CLASSES]}), tmp_path)
    made = explain(path)
    assert made.manifest.layout == "NHWC"
    assert made.manifest.activations == (CHANNELS, PLACES, PLACES)
    check_answers(path, made, foreign.linear_head(file))


def test_layout_that_shapes_do_not_tell_can_be_said(tmp_path):
    def four(image: tuple[int | str, ...]) -> Path:
        file = File(image=image)
        # What a reshape does to the axes is not followed to the convolution.
        spread = file.add("Reshape", "x", file.constant([0, 3, 9, 3], np.int64))
        file.add("Softmax", file.linear(file.pooled(conv(file, spread), 1), inner=6), to="y")
        return saved(file.model({"y": ["N", CLASSES]}), tmp_path)

    def conv(file: File, image: str) -> str:
        return file.add("Relu", file.add("Conv", image, file.weight(6, 3, 3, 2)))

    path = four(("N", 3, 9, 3))
    with pytest.raises(ExportError, match=r"which axis.*--layout NCHW or --layout NHWC"):
        explain(path)
    made = explain(path, overrides=Overrides(preprocess="zero-one", layout="NCHW"))
    assert (made.manifest.layout, made.manifest.preprocess.size) == ("NCHW", (9, 3))


@pytest.mark.parametrize("channels", [2, 4])
def test_images_of_other_channels_are_bands(channels, tmp_path):
    file = File(image=("N", channels, SIDE, SIDE))
    mixed = file.add("Conv", "x", file.weight(3, channels, 1, 1))
    file.add("Softmax", file.linear(file.pooled(file.features(mixed))), to="y")
    path = saved(file.model({"y": ["N", CLASSES]}), tmp_path)
    manifest = explain(path).manifest
    assert (manifest.preprocess.color, manifest.preprocess.channels) == ("bands", channels)


# --- names ---


def test_names_that_are_whycams_own_are_kept_apart(tmp_path):
    file = File(name="target")
    features = file.add("Identity", file.features(), to="activations")
    vector = file.add("Identity", file.pooled(features), to="maps")
    logits = file.linear(vector, to="whycam/gradient/logits")
    file.add("Softmax", logits, to="probabilities", axis=1)
    for index, node in enumerate(file.nodes[::2]):
        node.name = f"whycam/gradient/{index}"
    path = saved(file.model({"probabilities": ["N", CLASSES]}), tmp_path)
    made = explain(path, outputs=["raw", "map"])
    (image, kind, shape), *others = foreign.signature(made.path, True, 9)
    assert (image, kind, shape) == ("target", "tensor(float)", (None, 3, SIDE, SIDE))
    assert made.manifest.own_outputs == ("probabilities",)
    assert made.manifest.names["image"] == "target"
    assert [name for name, _, _ in others] == [made.manifest.names["target"]]
    check_answers(path, made, foreign.linear_head(file))


def test_own_output_called_gradients_stays_the_files_own(tmp_path):
    file = File()
    logits = file.linear(file.pooled(file.features()))
    head = foreign.linear_head(file)
    file.add("Softmax", logits, to="gradients", axis=1)
    path = saved(file.model({"gradients": ["N", CLASSES]}), tmp_path)
    made = explain(path)
    assert made.manifest.own_outputs == ("gradients",)
    assert made.manifest.names["gradients"] != "gradients"
    check_answers(path, made, head)


def test_probabilities_that_are_logits_stay_as_they_were(tmp_path):
    """An output of that name that holds something else keeps its name and values."""
    file = File()
    file.linear(file.pooled(file.features()), to="probabilities")
    path = saved(file.model({"probabilities": ["N", CLASSES]}), tmp_path)
    made = explain(path)
    assert made.manifest.names["probabilities"] != "probabilities"
    check_answers(path, made, foreign.linear_head(file))


def test_nodes_without_names_are_told_from_named_ones(tmp_path):
    model, head = classifier()
    model.graph.node[2].name = "Relu_1"  # as the nameless second node may be called
    file = saved(model, tmp_path)
    check_answers(file, explain(file), head)


# --- how files are stored ---


def test_local_functions_are_inlined(tmp_path):
    file = File()
    features = file.features()
    swish = helper.make_function(
        "maker", "Swish", ["x"], ["y"],
        [helper.make_node("Sigmoid", ["x"], ["s"]), helper.make_node("Mul", ["x", "s"], ["y"])],
        [helper.make_opsetid("", 18)],
    )  # fmt: skip
    hidden = file.linear(file.pooled(features), classes=6)
    matrix, bias = (file.weights[name].astype(np.float64) for name in list(file.weights)[-2:])
    swished = file.add("Swish", hidden, domain="maker")
    file.add("Softmax", file.linear(swished, inner=6), to="y", axis=1)
    last, last_bias = (file.weights[name].astype(np.float64) for name in list(file.weights)[-2:])
    model = file.model({"y": ["N", CLASSES]}, functions=[swish], domains=["maker"])
    path = saved(model, tmp_path)

    def head(activations):
        z = activations.mean((2, 3)) @ matrix.T + bias
        return z * foreign.sigmoid(z) @ last.T + last_bias

    check_answers(path, explain(path), head)


def test_weights_in_other_files_are_read(tmp_path):
    model, head = classifier()
    file = tmp_path / "foreign.onnx"
    onnx.save(model, file, save_as_external_data=True, location="weights.bin", size_threshold=0)
    assert (tmp_path / "weights.bin").is_file()
    made = explain(file)
    check_answers(file, made, head)
    (tmp_path / "weights.bin").rename(tmp_path / "elsewhere.bin")
    with pytest.raises(ModelFileError, match=r"weights.bin"):
        explain(file)
    whycam.load(made.path)  # which holds its weights itself


def test_weights_as_constant_nodes_are_read(tmp_path):
    model, head = classifier()
    constants = [
        helper.make_node("Constant", [], [tensor.name], value=tensor)
        for tensor in model.graph.initializer
    ]
    nodes = [*constants, *model.graph.node]
    del model.graph.initializer[:], model.graph.node[:]
    model.graph.node.extend(nodes)
    file = saved(model, tmp_path)
    check_answers(file, explain(file), head)


@pytest.mark.parametrize("inside", ["whole graph", "weights only"])
def test_float16_is_read(inside, tmp_path):
    half = inside == "whole graph"
    kind = TensorProto.FLOAT16 if half else TensorProto.FLOAT
    file = File(dtype=kind, floats=np.float16)
    logits = file.linear(file.pooled(file.features()))
    head = foreign.linear_head(file)
    file.add("Softmax", logits, to="y", axis=1)
    model = file.model({"y": ["N", CLASSES]}, kinds={"y": kind})
    if not half:  # as compressed files have it: stored in half, computed in float32
        casts = [
            helper.make_node("Cast", [f"{name}_half"], [name], to=TensorProto.FLOAT)
            for name in file.weights
        ]
        for tensor in model.graph.initializer:
            tensor.name += "_half"
        nodes = [*casts, *model.graph.node]
        del model.graph.node[:]
        model.graph.node.extend(nodes)
    path = saved(model, tmp_path)
    made = explain(path)
    assert made.manifest.image_dtype == ("float16" if half else "float32")
    check_answers(path, made, head, tolerance=3e-3 if half else 1e-5)


@pytest.mark.parametrize("opset", [13, 18])
def test_nodes_in_any_order_are_read(opset, tmp_path):
    """Converters to float16 append the casts of inputs and outputs behind all other nodes."""
    model, head = classifier(opset)
    nodes = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([*nodes[1:], nodes[0]])
    file = tmp_path / "unsorted.onnx"
    onnx.save(model, file)
    check_answers(file, explain(file), head)


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_uint8_images_that_the_graph_casts_stay(layout, tmp_path):
    shape = (3, SIDE, SIDE) if layout == "NCHW" else (SIDE, SIDE, 3)
    file = File(image=("N", *shape), dtype=TensorProto.UINT8)
    image = cast(file, "x")
    if layout == "NHWC":
        image = file.add("Transpose", image, perm=[0, 3, 1, 2])
    image = file.add("Div", image, file.constant(255.0))
    file.add("Softmax", file.linear(file.pooled(file.features(image))), to="y", axis=1)
    path = saved(file.model({"y": ["N", CLASSES]}), tmp_path)
    with pytest.raises(PreprocessError, match=r"--preprocess raw$"):  # the one that fits
        explain(path, overrides=Overrides())
    made = explain(path, overrides=Overrides(preprocess="raw"))
    assert (made.manifest.image_dtype, made.manifest.layout) == ("uint8", layout)
    check_answers(path, made, foreign.linear_head(file))


def cast(file: File, value: str, to: int = TensorProto.FLOAT) -> str:
    file.nodes.append(helper.make_node("Cast", [value], [f"{value}_cast"], to=to))
    return f"{value}_cast"
