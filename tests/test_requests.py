"""Requests that cannot be met and engines that misbehave: errors that say what to do."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

import whycam
from whycam import Explainer, Tft
from whycam.runtime.errors import EngineError, ImageError, ModelFileError, RequestError


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


# The tiny engine has the classes ant, bee and cat.


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (3, r"no class 3: indices go from 0 to 2"),
        (-4, r"no class -4: .* to -3"),
        (10**30, "no class 1000"),
        ("dog", "no class is called 'dog'"),
        ("ants", "did you mean 'ant'"),
        ("", "no class is called ''"),
        (1.0, "a target is"),
        (True, "a target is"),
        ({0}, "a target is"),
        ([], "empty list of targets"),
        ([0, "dog"], "'dog'"),
        ([[0], [1]], "a target is"),
    ],
)
def test_unusable_target_is_refused(tiny, targets, message):
    with pytest.raises(RequestError, match=message):
        tiny.explain(noise(8, 8), targets=targets)


@pytest.mark.parametrize("targets", [[0], [0, 1, 2], [[0, 1]], ()])
def test_list_of_targets_of_the_wrong_length_is_refused(tiny, targets):
    with pytest.raises(RequestError, match="targets for 2 images"):
        tiny.explain([noise(8, 8), noise(8, 8)], targets=targets)


def test_ambiguous_label_is_refused(tiny_engine, manifest_of):
    explainer = Explainer(tiny_engine(), manifest_of(labels=("crane", "bee", "crane")))
    with pytest.raises(RequestError, match=r"'crane' names the classes \[0, 2\]"):
        explainer.explain(noise(8, 8), targets="crane")
    assert explainer.explain(noise(8, 8), targets=2).label == "crane"


def test_file_without_labels_numbers_its_classes(tiny_engine, manifest_of):
    explainer = Explainer(tiny_engine(), manifest_of(labels=()))
    assert explainer.explain(noise(8, 8), targets=2).label == "2"
    with pytest.raises(RequestError, match=r"holds no class names.*--labels"):
        explainer.explain(noise(8, 8), targets="bee")


def test_there_are_no_more_ranks_than_five(lite0, chelsea):
    with pytest.raises(RequestError, match=r"ranks from -1 .* to -5"):
        lite0.explain(chelsea, targets=-6)


@pytest.mark.parametrize("method", ["smoothgrad", "", "GradCAM"])
def test_unknown_method_is_refused(tiny, method):
    with pytest.raises(RequestError, match=r"no method .*gradcam\+\+"):
        tiny.explain(noise(8, 8), method=method)


def test_method_the_file_lacks_is_refused(tiny_engine, manifest_of):
    explainer = Explainer(tiny_engine(), manifest_of(methods=("gradcam", "layercam")))
    with pytest.raises(RequestError, match=r"gradcam, layercam.*--method ablation"):
        explainer.explain(noise(8, 8), method="ablation")
    with pytest.raises(RequestError, match="'cam' needs a head of global average pooling"):
        explainer.explain(noise(8, 8), method="cam")


@pytest.mark.parametrize("tft", [0.5, 1, "best", {"mask": "soft"}, (0.1, 0.2), Tft])
def test_unusable_thresholding_is_refused(tiny, tft):
    with pytest.raises(RequestError, match="tft must be"):
        tiny.explain(noise(8, 8), tft=tft)


def test_naive_thresholding_of_a_method_without_custom_is_refused(tiny):
    with pytest.raises(RequestError, match="'hirescam'"):
        tiny.explain(noise(8, 8), method="hirescam", tft="naive")


def test_unknown_geometry_is_refused(tiny):
    with pytest.raises(RequestError, match="'screen'"):
        tiny.explain(noise(8, 8), geometry="screen")


@pytest.mark.parametrize("images", [noise(8, 8) / 255, [noise(8, 8), noise(8, 8) / 255]])
def test_float_image_is_refused(tiny, images):
    with pytest.raises(ImageError, match=r"uint8.*not float64"):
        tiny.explain(images)


def test_unreadable_image_among_many_is_named(tiny, tmp_path):
    with pytest.raises(ImageError, match=r"missing\.png"):
        tiny.explain([noise(8, 8), tmp_path / "missing.png"])


@pytest.mark.parametrize("memory_mb", [0, -1])
def test_memory_bound_below_one_is_refused(tiny_engine, manifest_of, memory_mb):
    with pytest.raises(RequestError, match="memory_mb"):
        Explainer(tiny_engine(), manifest_of(), memory_mb)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"engine": "abacus"}, "'abacus'.*onnxruntime"),
        ({"threads": 0}, "threads must be 1 or more"),
    ],
)
def test_unusable_engine_options_are_refused(lite0_onnx, options, message):
    with pytest.raises(EngineError, match=message):
        whycam.load(lite0_onnx, **options)


def test_graph_that_the_engine_cannot_load_is_a_model_file_error(lite0_onnx, tmp_path):
    # Well-formed on the outside: only the engine knows that there is no such operator.
    data = lite0_onnx.read_bytes()
    operator = b"\x22\x04Conv"  # NodeProto.op_type
    assert operator in data
    (tmp_path / "odd.onnx").write_bytes(data.replace(operator, b"\x22\x04Conx"))
    with pytest.raises(ModelFileError, match=r"odd\.onnx"):
        whycam.load(tmp_path / "odd.onnx")


def test_file_whose_graph_is_not_what_its_manifest_says_is_refused(
    lite0_onnx, tmp_path, manifest_of
):
    # Its own manifest comes first, so its key is spoilt.
    data = lite0_onnx.read_bytes().replace(b"\x0a\x06whycam", b"\x0a\x06whycan")
    entry = onnx.StringStringEntryProto(key="whycam", value=manifest_of().to_json())
    data += onnx.ModelProto(metadata_props=[entry]).SerializeToString()
    (tmp_path / "swapped.onnx").write_bytes(data)
    with pytest.raises(ModelFileError, match=r"swapped\.onnx does not match its manifest"):
        whycam.load(tmp_path / "swapped.onnx")


# Engines that misbehave.


def breaking(output: str, value: float, from_call: int = 0):
    calls = []

    def break_it(found):
        calls.append(1)
        if len(calls) > from_call and output in found:
            found[output][...] = value

    return break_it


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_network_that_returns_nan_is_an_engine_error(tiny_engine, manifest_of, value):
    explainer = Explainer(tiny_engine(breaking("probabilities", value)), manifest_of())
    with pytest.raises(EngineError, match="NaN or infinite"):
        explainer.explain(noise(8, 8))


def test_network_that_returns_nan_under_a_mask_is_an_engine_error(tiny_engine, manifest_of):
    explainer = Explainer(tiny_engine(breaking("probabilities", np.nan, 1)), manifest_of())
    with pytest.raises(EngineError, match="NaN or infinite"):
        explainer.explain(noise(8, 8), tft=True)


def test_classifying_with_a_network_that_returns_nan_is_an_engine_error(tiny_engine, manifest_of):
    explainer = Explainer(tiny_engine(breaking("probabilities", np.nan)), manifest_of())
    with pytest.raises(EngineError, match="NaN or infinite"):
        explainer.classify(noise(8, 8))


@pytest.mark.parametrize("output", ["activations", "gradients"])
def test_nan_in_a_map_never_comes_out(tiny_engine, manifest_of, output):
    explainer = Explainer(tiny_engine(breaking(output, np.nan)), manifest_of())
    found = explainer.explain(noise(8, 8), tft=True)
    assert np.isfinite(found.map).all()
    assert np.isfinite(found.rpi).all()
