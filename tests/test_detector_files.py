"""Detectors and classifiers are not mistaken for each other: refused, before any work."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest
from test_cli import whycam  # noqa: F401
from tiny_detector import CANDIDATES, DETECTOR, SIZE, write_tiny_detector

from whycam.runtime.engines.base import Engine
from whycam.runtime.errors import EngineError, RequestError
from whycam.runtime.load import load
from whycam.runtime.manifest import Manifest, parse

IMAGE = np.zeros((SIZE, SIZE, 3), np.uint8)


@pytest.fixture(scope="module")
def detector_onnx(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("detector") / "tiny.onnx"
    write_tiny_detector(path)
    return path


def test_a_detectors_manifest_is_read_as_it_was_written(detector_onnx):
    assert parse(DETECTOR.to_json(), "here") == DETECTOR
    assert load(detector_onnx, threads=1).manifest.detector == DETECTOR.detector


@pytest.mark.parametrize(
    "changes",
    [
        {"task": "softmax"},
        {"detector": None},
        {"outputs": ("raw",), "map_methods": ()},
        {"top": 1},
        {"embedded_preprocess": True},
    ],
)
def test_manifests_that_contradict_themselves_are_refused(changes):
    with pytest.raises(ValueError, match=r"detector|top|outputs"):
        msgspec.structs.replace(DETECTOR, **changes)


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_parts_are_computed_where_they_are_asked_for(detector_onnx, name):
    engine = load(detector_onnx, name, threads=1).engine
    image = np.zeros((2, 3, SIZE, SIZE), np.float32)
    image[1, 2, :8, 56:] = 1  # the cell in the upper right corner, blue
    ranks = np.full((2, 2, 2), -1, np.int64)
    found = engine.run({"image": image, "target": ranks}, ["detections", "scores", "maps"])
    assert found["detections"].tolist() == [[[-1, -1]] * 2, [[7, 2], [-1, -1]]]
    assert found["scores"][0].tolist() == [0, 0]
    np.testing.assert_allclose(found["scores"][1], [1 / (1 + np.exp(-5)), 0], rtol=1e-5)
    assert np.unravel_index(found["maps"][1, 0].argmax(), (8, 8)) == (0, 7)
    all_of_them = engine.run(
        {"image": image, "target": ranks}, ["candidate_scores", "candidate_boxes"]
    )
    assert all_of_them["candidate_scores"].shape == (2, CANDIDATES, 3)
    given = np.array([[[5, 1], [6, 0]]] * 2)
    found = engine.run({"image": image, "target": given}, ["detections", "scores"])
    assert found["detections"].tolist() == given.tolist()
    np.testing.assert_allclose(found["scores"], 1 / (1 + np.exp(5)), rtol=1e-5)


def test_targets_of_classifiers_are_refused_by_the_engine(detector_onnx):
    engine: Engine = load(detector_onnx, threads=1).engine
    image = np.zeros((1, 3, SIZE, SIZE), np.float32)
    with pytest.raises(EngineError, match=r"\[any, any, 2\]"):
        engine.run({"image": image, "target": np.full((1, 1), -1, np.int64)}, ["maps"])


@pytest.mark.parametrize("call", ["explain", "classify"])
def test_a_detector_classifies_nothing(detector_onnx, call):
    with pytest.raises(RequestError, match=r"is a detector.*Explainer\.detect"):
        getattr(load(detector_onnx, threads=1), call)(IMAGE)


@pytest.mark.parametrize(
    "command",
    [
        ["calibrate", "int8", "-o", "{folder}/int8.onnx"],
        ["calibrate", "thresholds", "-o", "{folder}"],
    ],
)
def test_verbs_for_classifiers_refuse_a_detector(whycam, detector_onnx, tmp_path, command):  # noqa: F811
    (tmp_path / "images").mkdir()
    for index in range(2):
        np.save(tmp_path / "images" / f"{index}.npy", IMAGE)
    words = [word.format(file=detector_onnx, folder=tmp_path) for word in command]
    result = whycam(*words[:2], detector_onnx, tmp_path / "images", *words[2:])
    assert result.code == 2
    assert "is a detector" in result.err


def test_manifest_of_a_classifier_has_no_detector(curved_onnx):
    manifest: Manifest = load(curved_onnx, threads=1).manifest
    assert manifest.detector is None


def test_verify_refuses_a_detector_without_reference_answers(whycam, detector_onnx):  # noqa: F811
    result = whycam("verify", detector_onnx, "--engine", "openvino")
    assert result.code == 2
    assert "holds no reference answers" in result.err
