"""Explainer.detect on files that whycam exported, of every format: engines and ways agree."""

from __future__ import annotations

from pathlib import Path

import detector_networks as networks
import msgspec
import numpy as np
import pytest
import torch
from test_cli import whycam as whycam_verb  # noqa: F401
from test_detector_export import FORMATS, write

import whycam
from whycam.export import to_onnx
from whycam.runtime.boxes import overlaps
from whycam.runtime.errors import WrongAnswerError
from whycam.runtime.onnxfile import with_manifest


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory):
    """Each format's explaining file, made where it is asked for."""
    folder, made = tmp_path_factory.mktemp("exported"), {}

    def make(name: str, **options: object) -> Path:
        key = f"{name}{''.join(options)}"
        if key not in made:
            network, own = FORMATS[name]
            outputs = ("logits", "pred_boxes") if name == "detr" else ()
            file = write(networks.fill(network()), folder / f"{key}.onnx", *outputs)
            made[key] = folder / f"{key}.explained.onnx"
            to_onnx(file, made[key], **own, **options)
        return made[key]

    return make


def image(seed: int = 0) -> np.ndarray:
    """Twice as wide as high, so that most formats see it in a letterbox."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (4, 8, 3), np.uint8).repeat(16, 0).repeat(16, 1)


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
def test_engines_find_and_explain_the_same(exported, name):
    found = [
        whycam.load(exported(name), engine, threads=1).detect(image(), k=5, min_score=0.05)
        for engine in ("onnxruntime", "openvino")
    ]
    assert 0 < len(found[0]) == len(found[1])
    for one, other in zip(*found, strict=True):
        assert (one.index, one.candidate) == (other.index, other.candidate)
        assert one.score == pytest.approx(other.score, abs=1e-4)
        np.testing.assert_allclose(one.box, other.box, atol=0.05)
        np.testing.assert_allclose(one.map, other.map, atol=2e-3)
        left, top, right, bottom = one.box
        assert 0 <= left <= right <= 128
        assert 0 <= top <= bottom <= 64
    scores = [one.score for one in found[0]]
    assert scores == sorted(scores, reverse=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["yolov8", "detr"])
def test_candidates_named_one_by_one_are_those_of_the_ranks(exported, name):
    explainer = whycam.load(exported(name), threads=1)
    ranked = explainer.detect(image(), k=4, min_score=0.05)
    named = explainer.detect(image(), [(one.candidate, one.index) for one in ranked])
    for one, other in zip(ranked, named, strict=True):
        assert one.box == other.box
        assert one.score == pytest.approx(other.score, rel=1e-6)
        np.testing.assert_allclose(one.map, other.map, atol=1e-5)


@pytest.mark.slow
def test_files_without_suppression_are_suppressed_outside(exported):
    inside = whycam.load(exported("yolov8"), threads=1)
    outside = whycam.load(exported("yolov8", ranks=False), threads=1)
    assert not outside.manifest.detector.ranks
    for seed in range(3):
        ours, theirs = (one.detect(image(seed), k=6) for one in (inside, outside))
        assert [(one.index, one.candidate) for one in ours] == [
            (one.index, one.candidate) for one in theirs
        ]
        for one, other in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(one.map, other.map, atol=1e-5)


@pytest.mark.slow
def test_tft_of_an_exported_file_by_the_network_itself(exported):
    """The score of the masked image, from the PyTorch network's own outputs."""
    path = exported("yolov8")
    model = networks.fill(networks.Yolo8())
    explainer = whycam.load(path, threads=1)
    (first,) = explainer.detect(image(), k=1, tft=True)
    prepared = whycam.runtime.pipeline.prepare([image()], explainer.manifest).inputs

    def candidates(inputs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        with torch.no_grad():
            out = model(torch.from_numpy(inputs).float())[0].T.numpy()
        corners = [out[:, :2] - out[:, 2:4] / 2, out[:, :2] + out[:, 2:4] / 2]
        return np.concatenate(corners, 1).astype(np.float32), out[:, 4 + first.index]

    box = candidates(prepared)[0][[first.candidate]]
    tried = [step for step, value in enumerate(first.rpi) if not np.isnan(value)]
    assert len(tried) == 10
    for tau, rpi in zip(first.tft.taus, first.rpi, strict=True):
        mask = (first.original_map >= tau) & (first.original_map != 0)
        corners, scores = candidates(prepared * mask)
        best = scores[overlaps(box, corners)[0] >= 0.5].max(initial=0)
        assert rpi == pytest.approx(max(best - first.score, 0) / first.score, abs=1e-4)


@pytest.mark.slow
def test_files_hold_answers_that_every_engine_must_reproduce(whycam_verb, exported, tmp_path):  # noqa: F811
    path = exported("yolov8")
    said = whycam_verb("verify", path, "--engine", "openvino")
    assert said.code == 0, said.err
    assert "gives the export's reference answers" in said.out
    manifest = whycam.load(path, "openvino", threads=1).manifest  # reproduces them
    references = manifest.detector.references
    assert {one.pattern for one in references} == {0, 1}
    assert len({one.candidate for one in references}) >= 3
    first = references[0]
    for changes, message in (
        ({"score": first.score + 0.01}, "score differs"),
        ({"box": tuple(edge + 1 for edge in first.box)}, "box differs"),
        ({"map": tuple(1 - value for value in first.map)}, "map differs"),
    ):
        wrong = msgspec.structs.replace(first, **changes)
        detector = msgspec.structs.replace(manifest.detector, references=(wrong,))
        other = with_manifest(
            path, tmp_path / "wrong.onnx", msgspec.structs.replace(manifest, detector=detector)
        )
        with pytest.raises(WrongAnswerError, match=message):
            whycam.load(other, "openvino", threads=1)
        assert whycam.load(other, "onnxruntime", threads=1)  # where exports are checked
        refused = whycam_verb("verify", other, "--engine", "openvino", "--json")
        assert (refused.code, refused.json()["ok"]) == (2, False)
