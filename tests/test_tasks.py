"""What a network's outputs mean: softmax, independent labels, one logit, plain values."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from tiny_file import write_tiny
from typer.testing import CliRunner

import whycam
from whycam.calibrate import open_dataset
from whycam.calibrate.evaluate import check_measurable
from whycam.calibrate.fidelity import compare
from whycam.calibrate.int8 import calibrate_int8
from whycam.cli import app
from whycam.cli.explain import explanations_table
from whycam.cli.manifest_text import manifest_table
from whycam.runtime.attribution import format_probability
from whycam.runtime.errors import ModelFileError, RequestError
from whycam.runtime.live.controls import Controls, Look
from whycam.runtime.manifest import Preprocess, parse
from whycam.runtime.onnxfile import read_manifest

IMAGE = np.random.default_rng(0).integers(0, 256, (11, 9, 3), np.uint8)


@pytest.fixture
def explainer_of(tmp_path, manifest_of, tiny_engine):
    """A file of one task, loaded; its last layer is larger than `TinyEngine`'s by a factor."""

    def load(task: str, factor: float = 1.0, **fields: Any) -> whycam.Explainer:
        tiny = tiny_engine()
        wanted: dict[str, Any] = {"methods": ("gradcam", "layercam"), "task": task} | fields
        path = tmp_path / f"{task}.onnx"
        manifest = manifest_of(**wanted)
        write_tiny(path, manifest, tiny.mix, factor * tiny.linear[: manifest.num_classes])
        return whycam.load(path, threads=1)

    return load


def test_independent_labels_need_not_sum_to_one(explainer_of):
    explainer = explainer_of("sigmoid")
    (row,) = explainer.classify([IMAGE])
    assert abs(row.sum() - 1) > 0.1
    for index, found in enumerate(explainer.explain(IMAGE, [0, 1, 2], tft=True)):
        assert found.probability == pytest.approx(row[index])
        # rpi = max(p_masked - p, 0) / p of this label alone.
        assert found.rpi.max() <= (1 - row[index]) / row[index] + 1e-4
        if found.improved:
            gain = (found.masked_probability - row[index]) / row[index]
            assert gain == pytest.approx(found.rpi.max(), rel=1e-3)


def test_one_logit_is_two_classes_with_names(explainer_of):
    explainer = explainer_of("binary", num_classes=2, labels=("not cat", "cat"))
    (row,) = explainer.classify([IMAGE])
    assert row.sum() == pytest.approx(1)
    both = explainer.explain(IMAGE, ["not cat", "cat"])
    assert [each.index for each in both] == [0, 1]
    assert [each.probability for each in both] == pytest.approx(row.tolist())


def test_values_are_explained_as_they_are(explainer_of):
    explainer = explainer_of("none", 40.0)
    (row,) = explainer.classify([IMAGE])
    assert np.abs(row).max() > 1
    found = explainer.explain(IMAGE, tft="naive")
    assert (found.index, found.probability) == (row.argmax(), pytest.approx(row.max()))
    assert found.task == found.to_dict()["task"] == "none"
    assert found.threshold is not None


@pytest.mark.parametrize("tft", [True, whycam.Tft(mask="soft")])
def test_values_have_no_best_threshold(explainer_of, tft):
    explainer = explainer_of("none")
    with pytest.raises(RequestError, match=r"outputs are values, not probabilities.*naive"):
        explainer.explain(IMAGE, tft=tft)
    with pytest.raises(RequestError, match="not probabilities"):
        Controls(explainer.manifest, Look(tft="track"))
    with pytest.raises(RequestError, match="not probabilities"):
        check_measurable(explainer.manifest)


def test_values_are_compared_by_maps_alone_and_have_no_int8(explainer_of, tmp_path):
    explainer = explainer_of("none")
    for index in range(20):
        Image.fromarray(np.roll(IMAGE, index, 0)).save(tmp_path / f"{index}.png")
    data = open_dataset(tmp_path)
    found = compare(explainer, explainer, data.samples)
    assert [maps.pearson for maps in found.maps.values()] == pytest.approx([1, 1])
    with pytest.raises(RequestError, match=r"not probabilities.*--no-tft"):
        compare(explainer, explainer, data.samples, tft=whycam.Tft())
    with pytest.raises(RequestError, match=r"not probabilities \(task none\)"):
        calibrate_int8(tmp_path / "none.onnx", data, tmp_path / "int8.onnx")
    assert not (tmp_path / "int8.onnx").exists()


@pytest.mark.parametrize("method", ["scorecam", "ablation"])
def test_values_weigh_no_channels(explainer_of, method):
    with pytest.raises(RequestError, match=r"not probabilities.*gradcam, layercam"):
        explainer_of("none").explain(IMAGE, method=method)


def test_values_are_printed_with_digits_of_their_own():
    assert format_probability(0.98765, "softmax", 3) == "0.988"
    assert format_probability(0.98765, "sigmoid", 2) == "0.99"
    assert format_probability(1234.5678, "none", 3) == "1235"
    assert format_probability(-0.00123456, "none", 3) == "-0.001235"


def test_tables_call_values_values(explainer_of):
    explainer = explainer_of("none", 40.0, labels=())
    found = explainer.explain(IMAGE)
    text = printed(explanations_table([{"file": "a.png", **found.to_dict()}], tft=False))
    assert "value" in text
    assert "probability" not in text
    assert format_probability(found.probability, "none", 4) in text


def test_info_says_what_the_outputs_are(tmp_path, manifest_of, tiny_engine):
    tiny = tiny_engine()
    path = tmp_path / "a.onnx"
    manifest = write_tiny(
        path,
        manifest_of(
            task="sigmoid",
            layout="NHWC",
            methods=("gradcam", "layercam"),
            outputs=("raw", "map"),
            map_methods=("layercam", "gradcam"),
            own_outputs=("dense",),
            names={"image": "input_1"},
            batch=2,
            top=3,
        ),
        tiny.mix,
        tiny.linear,
    )
    text = printed(manifest_table(path, manifest))
    for expected in (
        "independent labels",
        "float32 [2, 8, 8, 3] (NHWC)",
        "map (layercam, gradcam); of the 3 most probable classes; and the original ones: dense",
    ):
        assert expected in text


def printed(table: Any) -> str:
    console = Console(file=io.StringIO(), width=200)
    console.print(table)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


TFT_OF_VALUES = {
    "task": "none",
    "methods": ("gradcam",),
    "outputs": ("tft",),
    "map_methods": ("gradcam",),
}


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"task": "binary"}, "task binary has 2 classes, not 3"),
        ({"task": "none"}, r"\['ablation', 'scorecam'\] need probabilities"),
        (TFT_OF_VALUES, "outputs tft need probabilities"),
        ({"top": 4}, "top 4 of 3 classes"),
        ({"top": 0}, "top 0 of 3 classes"),
        ({"batch": 0}, "a batch of 0"),
        ({"names": {"frame": "x"}}, r"\['frame'\]"),
        ({"names": {"image": "target"}}, "one name"),
        ({"names": {"image": ""}}, "or none"),
        ({"image_dtype": "uint8"}, "mean 0 and std 1/255"),
        ({"map_methods": ("gradcam",)}, "do not go with"),
        ({"outputs": ("raw", "map")}, "do not go with"),
        ({"outputs": ("map",), "map_methods": ("gradcam",)}, "need raw outputs"),
        ({"outputs": ("raw", "map"), "map_methods": ("gradcam", "gradcam")}, "each once"),
    ],
)
def test_manifest_that_contradicts_itself_is_refused(manifest_of, fields, says):
    with pytest.raises(ValueError, match=says):
        manifest_of(**fields)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"color": "L"}, "1 numbers each for color L"),
        ({"mean": (0.5,)}, "3 numbers each for color RGB"),
        ({"color": "BGR", "std": (1.0, 1.0)}, "3 numbers each for color BGR"),
    ],
)
def test_mean_and_std_are_one_for_each_channel(fields, says):
    with pytest.raises(ValueError, match=says):
        Preprocess(size=(8, 8), resize=(8,), **fields)


def test_every_new_field_survives_being_written(manifest_of):
    manifest = manifest_of(
        task="sigmoid",
        layout="NHWC",
        preprocess=Preprocess(size=(8, 8), resize=(), color="L", mean=(0.0,), std=(1 / 255,)),
        image_dtype="uint8",
        names={"image": "input_1"},
        own_outputs=("dense",),
        top=2,
        batch=1,
        methods=("layercam", "gradcam"),
        outputs=("map",),
        map_methods=("gradcam", "layercam"),
    )
    assert parse(manifest.to_json(), "x.onnx") == manifest
    assert manifest.image_shape == (8, 8, 1)
    assert manifest.map_method == "gradcam"
    assert list(manifest.output_shapes)[2:] == ["maps", "maps_layercam"]
    with pytest.raises(ModelFileError, match="task"):
        parse(manifest.to_json().replace('"sigmoid"', '"softplus"'), "x.onnx")


@pytest.mark.parametrize(
    "arguments",
    [
        ["explain", "{}", "cat.jpg"],
        ["info", "{}"],
        ["verify", "{}"],
        ["bench", "{}"],
        ["evaluate", "{}", "."],
        ["stream", "{}", "--source", "cat.mp4"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_file_that_does_not_explain_is_answered_with_the_command_that_makes_it(
    tmp_path, manifest_of, tiny_engine, arguments
):
    tiny = tiny_engine()
    path = tmp_path / "my model.onnx"
    write_tiny(path, manifest_of(methods=("gradcam",)), tiny.mix, tiny.linear)
    strip_metadata(path)
    done = CliRunner().invoke(app, [each.format(path) for each in arguments])
    said = " ".join((done.output + str(done.exception or "")).split())
    explained = str(path).replace("my model.onnx", "my model.explained.onnx")
    command = f"whycam export '{path}' -o '{explained}' --preprocess imagenet"
    assert command in said
    assert "whycam export --help" in said


def strip_metadata(path: Path) -> None:
    import onnx

    model = onnx.load(path)
    del model.metadata_props[:]
    onnx.save(model, path)
    with pytest.raises(ModelFileError):
        read_manifest(path)


def test_json_of_an_explanation_says_its_task(explainer_of):
    found = explainer_of("sigmoid").explain(IMAGE)
    assert json.loads(msgspec.json.encode(found.to_dict()))["task"] == "sigmoid"
