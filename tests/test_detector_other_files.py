"""Detectors in half precision, as TensorRT plans, and in every engine: what is compared."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from detector_networks import Yolo8, fill
from documents import deploy
from onnx import numpy_helper

import whycam
from whycam.export import to_half, to_onnx
from whycam.runtime import cam
from whycam.runtime.comparison import HALF
from whycam.runtime.doctor import job
from whycam.runtime.doctor.compare import compare
from whycam.runtime.doctor.job import Job
from whycam.runtime.engines.selftest import tolerances_of
from whycam.runtime.errors import ExportError, RequestError, VerificationError


def made(folder: Path, ranks: bool) -> Path:
    deploy(fill(Yolo8()), folder / "plain.onnx")
    path = folder / "detector.onnx"
    to_onnx(folder / "plain.onnx", path, ranks=ranks)
    return path


@pytest.fixture(scope="module")
def ranked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(tmp_path_factory.mktemp("ranked"), True)


@pytest.fixture(scope="module")
def explicit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(tmp_path_factory.mktemp("explicit"), False)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_a_detector_in_half_precision_is_compared_with_the_float_file(
    precision: str, ranked: Path, tmp_path: Path
) -> None:
    result = to_half(ranked, tmp_path / "half.onnx", precision)  # type: ignore[arg-type]
    assert result.operations > 10
    worst = result.check.worst
    assert set(worst) == {"probabilities", "boxes", "correlation"}
    assert all(0 < worst[name] < HALF[precision][name] for name in worst)


def test_detections_in_fp16_are_those_of_the_float_file(ranked: Path, tmp_path: Path) -> None:
    to_half(ranked, tmp_path / "half.onnx", "fp16")
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    exact, half = (
        whycam.load(path, engine="onnxruntime").detect(image, min_score=0.3, k=1)
        for path in (ranked, tmp_path / "half.onnx")
    )
    assert exact[0].index == half[0].index
    assert half[0].score == pytest.approx(exact[0].score, abs=2e-2)
    assert 0 < np.abs(half[0].map - exact[0].map).max() < 0.1


def test_weights_beyond_fp16_are_refused(ranked: Path, tmp_path: Path) -> None:
    from whycam.runtime.onnxfile import append_manifest, digest, read_manifest

    manifest, model = read_manifest(ranked), onnx.load(ranked)
    del model.metadata_props[:]
    kernel = next(each for each in model.graph.initializer if len(each.dims) == 4)
    kernel.CopyFrom(numpy_helper.from_array(1e6 * numpy_helper.to_array(kernel), kernel.name))
    onnx.save(model, tmp_path / "large.onnx")
    changed = digest(tmp_path / "large.onnx")
    append_manifest(tmp_path / "large.onnx", msgspec.structs.replace(manifest, digest=changed))
    with pytest.raises((ExportError, VerificationError)):
        to_half(tmp_path / "large.onnx", tmp_path / "half.onnx", "fp16")
    assert not (tmp_path / "half.onnx").exists()


def test_doctor_compares_candidates_and_maps_of_a_detector(ranked: Path, tmp_path: Path) -> None:
    images = [
        np.random.default_rng(seed).integers(0, 256, (64, 64, 3), np.uint8) for seed in (0, 1)
    ]
    found = job.answers(
        Job(kind="answers", model=str(ranked), engine="onnxruntime", rounds=1), images, tmp_path
    )
    assert found.wrong == ()
    assert set(found.milliseconds) == {"classification", "explanation"}
    with np.load(tmp_path / job.ANSWERS) as stored:
        arrays = {name: stored[name] for name in stored.files}
    explainer = whycam.load(ranked, engine="onnxruntime")
    for index, image in enumerate(images):
        scores = arrays[f"{index}.probabilities"]
        assert scores.argmax() == found.targets[index]
        pair = divmod(found.targets[index], explainer.manifest.num_classes)
        (one,) = explainer.detect(image, pair)
        assert one.score == pytest.approx(scores.max(), abs=1e-6)
        expected = np.asarray(cam.finish(one.original_map[None, None], (64, 64)))[0, 0]
        assert np.abs(expected - arrays[f"{index}.map.layercam"]).max() < 1e-5
    changed = {**arrays, "0.map.layercam": 1 - arrays["0.map.layercam"]}
    allowed = tolerances_of(explainer.manifest)
    assert not compare(arrays, arrays, found.targets, allowed, exact=True).problems
    assert compare(arrays, changed, found.targets, allowed, exact=True).problems


def test_a_plan_has_no_suppression(ranked: Path, tmp_path: Path) -> None:
    from whycam.export import to_plan

    with pytest.raises(RequestError, match="--explicit-targets"):
        to_plan(ranked, tmp_path / "x.plan", compute=["8.6"])
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize(("compute", "precision"), [("8.6", None), ("7.5", None), ("8.9", "fp16")])
def test_plans_of_detectors_take_pairs(
    compute: str, precision: str | None, explicit: Path, tmp_path: Path
) -> None:
    pytest.importorskip("tensorrt_rtx")
    from whycam.export import to_plan

    plan = to_plan(explicit, tmp_path / "x.plan", compute=[compute], precision=precision).plan  # type: ignore[arg-type]
    assert [(one.name, tuple(one.shape)[2:]) for one in plan.inputs][1] == ("target", (2,))
    assert plan.classes.most == 10
