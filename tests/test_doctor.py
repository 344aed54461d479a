"""whycam doctor: what is here, what is missing, and whether it answers rightly."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from whycam.cli import main
from whycam.runtime.comparison import ENGINE
from whycam.runtime.doctor import check as doctor_check
from whycam.runtime.doctor import doctor as doctor_module
from whycam.runtime.doctor import job as doctor_job
from whycam.runtime.doctor.check import Settings
from whycam.runtime.doctor.compare import compare
from whycam.runtime.doctor.doctor import EngineState, Report, examine
from whycam.runtime.doctor.job import ANSWERS, Answers, Job, answers, run_job
from whycam.runtime.doctor.privacy import redact
from whycam.runtime.engines.nvidia import Driver
from whycam.runtime.engines.plan import Plan, Range, write_sidecar
from whycam.runtime.engines.registry import ENGINES
from whycam.runtime.errors import EngineError, RequestError, WhyCamError
from whycam.runtime.machine import conflicts
from whycam.runtime.onnxfile import read_manifest


@pytest.fixture
def doctor(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def run(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stop:
            main(["doctor", *map(str, arguments)])
        said = capsys.readouterr()
        return int(stop.value.code or 0), said.out, said.err

    return run


@pytest.fixture
def shadow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Puts a module in the place of an engine's, in other processes alone."""

    def put(name: str, code: str) -> None:
        (tmp_path / "shadow").mkdir(exist_ok=True)
        (tmp_path / "shadow" / f"{name}.py").write_text(code)
        found = os.pathsep.join(
            [str(tmp_path / "shadow"), *filter(None, [os.environ.get("PYTHONPATH")])]
        )
        monkeypatch.setenv("PYTHONPATH", found)

    return put


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[dict[str, Any]], None]], None]:
    """Answers come from this process; those of OpenVINO are ONNX Runtime's, changed."""

    def run(change: Callable[[dict[str, Any]], None]) -> None:
        def ask(job: Job, folder: Path, _limit: float, _kind: Any) -> Answers:
            with np.load(folder / doctor_job.IMAGES) as stored:
                images = [stored[name] for name in sorted(stored.files, key=int)]
            own = msgspec.structs.replace(job, engine="onnxruntime", precision="fp32")
            found = answers(own, images, folder)
            if job.engine == "openvino":
                with np.load(folder / ANSWERS) as stored:
                    arrays = {name: stored[name].copy() for name in stored.files}
                change(arrays)
                np.savez(folder / ANSWERS, **arrays)
            return found

        monkeypatch.setattr(doctor_check, "run_job", ask)

    return run


@pytest.fixture
def all_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    """Engines are not looked for: those on the CPU are said to be ready."""
    names = ("onnxruntime", "openvino")
    monkeypatch.setattr(
        doctor_module,
        "_state",
        lambda name, _: EngineState(name=name, state="ready" if name in names else "not installed"),
    )


QUICK = Settings(engines=("openvino",), rounds=1)


@pytest.mark.slow
def test_a_file_is_checked_in_every_engine_and_the_report_names_no_place(
    doctor, curved_onnx, sample_images, tmp_path
):
    home = tmp_path / "secret user"
    (home / "private images").mkdir(parents=True)
    model = home / "model.onnx"
    model.write_bytes(curved_onnx.read_bytes())
    (home / "private images" / "ex.png").write_bytes(sample_images[0].read_bytes())
    target = home / "report.json"
    code, out, err = doctor(
        "--check", model, "--images", home / "private images", "--rounds", 2, "-o", target
    )
    assert code == 0, err
    assert "every answer checked is right" in out
    text = target.read_text()
    for secret in ("secret", "private", "ex.png", str(tmp_path)):
        assert secret not in text
    found = msgspec.json.decode(text, type=Report)
    assert {each.name for each in found.engines} == set(ENGINES)
    assert found.images == 3
    assert not found.problems
    by_engine = {(each.engine, each.precision): each for each in found.checks}
    reference = by_engine["onnxruntime", "fp32"]
    assert (reference.model, reference.outcome) == ("model.onnx", "right")
    assert len(reference.references) == 2
    other = by_engine["openvino", "fp32"]
    assert other.outcome == "right", other.why
    assert other.comparison is not None
    differences = other.comparison.worst
    assert differences["class"] == differences["threshold"] == 0
    assert 0 < differences["probabilities"] < 1e-4
    assert "gradients" in differences
    assert set(other.median_ms) == {"classification", "explanation", "tft"}
    assert by_engine["openvino", "bf16"].outcome in ("right", "not possible")


@pytest.mark.slow
def test_json_is_one_document(doctor):
    code, out, _ = doctor("--json")
    assert code == 0
    found = json.loads(out)
    assert found["checks"] == []
    states = {each["name"]: each for each in found["engines"]}
    assert states["onnxruntime"]["state"] == "ready"
    for each in states.values():
        assert (each["problem"] is None) == (each["state"] == "ready")


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_an_engine_that_crashes_is_a_line_in_the_report(shadow, curved_onnx):
    shadow("openvino", "import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)")
    found = examine([curved_onnx], settings=Settings(rounds=1))
    states = {each.name: each for each in found.engines}
    assert states["openvino"].state == "does not load"
    assert "ended by SIGSEGV" in str(states["openvino"].problem)
    outcomes = {each.engine: each.outcome for each in found.checks}
    assert outcomes.pop("onnxruntime") == "right"
    assert "openvino" not in outcomes  # plugins of ONNX Runtime may be there as well


def test_an_engine_asked_for_must_load_and_says_what_it_said(shadow, doctor):
    shadow("openvino", "raise ImportError('libsomething.so.4 is missing')")
    code, out, err = doctor("--engine", "openvino", "--json")
    assert code == 2
    states = {each["name"]: each for each in json.loads(out)["engines"]}
    assert states["openvino"]["state"] == "does not load"
    assert "libsomething.so.4 is missing" in states["openvino"]["problem"]
    assert "openvino was asked for and is not ready" in " ".join(err.split())


def test_an_engine_that_hangs_is_stopped(shadow, tmp_path):
    shadow("openvino", "import time\ntime.sleep(600)")
    with pytest.raises(EngineError, match="stopped after 8 seconds"):
        run_job(Job(kind="survey", engine="openvino"), tmp_path, 8, doctor_job.Survey)


@pytest.mark.slow
def test_wrong_maps_are_a_problem_and_exit_code_two(here, all_ready, doctor, curved_onnx):
    def change(arrays: dict[str, Any]) -> None:
        for name in arrays:
            if ".map." in name:
                arrays[name] = arrays[name][::-1]

    here(change)
    code, _, err = doctor("--check", curved_onnx, "--engine", "openvino", "--rounds", 1)
    assert code == 2
    assert "openvino fp32 answers wrongly: " in " ".join(err.split())
    assert "gradcam maps correlate by" in " ".join(err.split())


def test_a_check_that_fails_is_a_problem(monkeypatch, all_ready, curved_onnx):
    def crash(*_: object) -> Answers:
        raise EngineError(f"its process was ended by SIGSEGV: {Path.home()}/driver/lib.so")

    monkeypatch.setattr(doctor_check, "run_job", crash)
    found = examine([curved_onnx], settings=QUICK)
    assert {each.outcome for each in found.checks} == {"failed"}
    assert "onnxruntime fp32 failed: its process was ended by SIGSEGV: lib.so" in found.problems[0]
    assert len(found.problems) == len(found.checks)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--check", "nowhere.onnx"], "cannot read model file"),
        (["--engine", "tensorflow"], "there is no engine 'tensorflow'"),
        (["--images", "."], "--check MODEL"),
        (["--rounds", "0"], "must be positive"),
        (["--gpu", "-1"], "gpu must be 0 or more"),
        (["-o", "."], "it is a folder"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_requests_that_cannot_be_met(doctor, arguments, message):
    code, _, err = doctor(*arguments)
    assert code == 2
    assert message in " ".join(err.split())


@pytest.fixture
def plan_of(tmp_path) -> Callable[[Any], Path]:
    def write(manifest: Any) -> Path:
        plan = tmp_path / "model.plan"
        plan.write_bytes(b"a plan")
        one = Range(1, 1, 1)
        made = Plan(
            manifest=manifest, digest="", library="tensorrt", library_version="10",
            compute=("8.6",), batch=one, classes=one, inputs=(), outputs=(),
        )  # fmt: skip
        write_sidecar(plan, made)
        return plan

    return write


def test_a_plan_wants_the_file_it_was_built_from(manifest_of, plan_of):
    with pytest.raises(RequestError, match="against the ONNX file it was built from, tiny"):
        examine([plan_of(manifest_of(digest="sha256:abc"))])


def test_a_plan_that_nothing_here_runs_is_a_problem(here, all_ready, plan_of, curved_onnx):
    here(lambda _: None)
    plan = plan_of(read_manifest(curved_onnx))
    found = examine([curved_onnx, plan], settings=QUICK)
    outcomes = {(each.model, each.engine): each.outcome for each in found.checks}
    assert outcomes["model.plan", "tensorrt"] == "failed"
    assert outcomes[curved_onnx.name, "openvino"] == "right"
    (problem,) = found.problems
    assert "tensorrt is not ready here" in problem


def test_either_library_for_plans_will_do(monkeypatch):
    pytest.importorskip("tensorrt_rtx")
    monkeypatch.setattr(doctor_job, "driver", lambda: Driver(problem="no GPU"))
    backend = replace(ENGINES["onnxruntime"], package="tensorrt", extra="tensorrt")
    monkeypatch.setitem(ENGINES, "tensorrt", backend)
    found = doctor_job.survey("tensorrt", 0)
    assert "tensorrt_rtx 1." in str(found.version)
    assert (found.installed, found.problem) == (True, "no GPU")


# How answers are compared.

ALLOWED = ENGINE


def made(images: int = 3, seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    found: dict[str, Any] = {}
    for index in range(images):
        found |= {
            f"{index}.probabilities": np.array([0.7, 0.2, 0.1], np.float32),
            f"{index}.gradients": rng.standard_normal((1, 1, 4, 2, 2)),
            f"{index}.map.gradcam": rng.random((8, 8)),
            f"{index}.mask": (rng.random((8, 8)) > 0.5).astype(np.float32),
            f"{index}.threshold": np.float64(0.3),
            f"{index}.masked": np.array([0.7, 0.8, np.nan]),
        }
    return found


def judged(change: Callable[[dict[str, Any]], Any], exact: bool = True) -> tuple[str, ...]:
    other = {name: np.array(values) for name, values in made().items()}
    change(other)
    return compare(made(), other, [0, 0, 0], ALLOWED, exact).problems


def test_the_same_answers_have_no_problem_and_full_marks():
    found = compare(made(), made(), [0, 0, 0], ALLOWED, True)
    assert found.problems == ()
    exact = ("class", "threshold", "mask", "probabilities", "gradients", "masked", "pixels.gradcam")
    assert [found.worst[name] for name in exact] == [0] * len(exact)
    assert found.worst["similarity.gradcam"] == pytest.approx(0)


def test_one_wrong_image_is_a_problem_in_float32_and_not_in_less():
    def swap(other: dict[str, Any]) -> None:
        other["1.probabilities"] = np.array([0.2, 0.7, 0.1], np.float32)

    off, led = judged(swap)
    assert "probabilities are off by 5.0e-01" in off
    assert "another class leads by 5.0e-01" in led
    assert judged(swap, exact=False) == ()


def test_two_classes_that_tie_may_swap():
    ours, theirs = made(1), made(1)
    ours["0.probabilities"] = np.array([0.40001, 0.39999, 0.2], np.float32)
    theirs["0.probabilities"] = np.array([0.39999, 0.40001, 0.2], np.float32)
    found = compare(ours, theirs, [0], ALLOWED, True)
    assert found.worst["class"] == 1
    assert found.problems == ()


def test_a_map_that_hardly_moves_is_right_however_little_it_correlates():
    ours, theirs = made(1), made(1)
    rng = np.random.default_rng(1)
    for arrays in (ours, theirs):
        arrays["0.map.gradcam"] = 0.5 + 1e-4 * rng.random((8, 8))
    found = compare(ours, theirs, [0], ALLOWED, True)
    assert found.worst["similarity.gradcam"] > 0.1
    assert found.problems == ()


def test_wrong_masked_probabilities_are_a_problem():
    def change(other: dict[str, Any]) -> None:
        for index in range(3):
            other[f"{index}.masked"][1] += 0.1

    (problem,) = judged(change)
    assert "masked images" in problem


# What a report must not hold, and what must be said.


@given(st.lists(st.text("abcXYZ0 _-ü", min_size=1, max_size=8), min_size=1, max_size=4))
def test_no_folder_of_a_known_place_is_left(parts):
    folder = "/" + "/".join(part.strip() or "x" for part in parts)
    said = redact(f"cannot load {folder}/model.onnx: bad", [f"{folder}/model.onnx"])
    assert said == "cannot load model.onnx: bad"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"in {Path.home()}/models/a.onnx", "in a.onnx"),
        ("/usr/lib/libcuda.so.1: no", "libcuda.so.1: no"),
        (r"C:\Users\joe\a.onnx: no", "a.onnx: no"),
        ("see https://onnxruntime.ai/docs/x.html", "see https://onnxruntime.ai/docs/x.html"),
        ("1/2 of it and/or more", "1/2 of it and/or more"),
    ],
)
def test_places_go_and_the_rest_stays(text, expected):
    assert redact(text) == expected


def test_packages_that_overwrite_each_other_are_said():
    versions = {"onnxruntime": "1", "onnxruntime-gpu": "1", "numpy": "2"}
    (said,) = conflicts(versions)
    assert "pip uninstall -y onnxruntime onnxruntime-gpu" in said
    assert 'pip install "whycam[gpu]"' in said
    (said,) = conflicts({"opencv-python": "5", "opencv-python-headless": "5"})
    assert "pip uninstall -y opencv-python opencv-python-headless" in said
    assert not conflicts({"onnxruntime-gpu": "1", "onnx": "1", "opencv-python-headless": "5"})


def test_images_that_no_threshold_helps_are_compared(curved_onnx, tmp_path):
    job = Job(kind="answers", engine="onnxruntime", model=str(curved_onnx), threads=1, rounds=1)
    found = answers(job, [np.full((40, 40, 3), 255, np.uint8)], tmp_path)
    with np.load(tmp_path / ANSWERS) as stored:
        arrays = {name: stored[name] for name in stored.files}
    assert np.isnan(arrays["0.threshold"])
    assert compare(arrays, arrays, found.targets, ENGINE, True).complaint is None
    other = arrays | {"0.threshold": np.float64(0.3)}
    differences = compare(arrays, other, found.targets, ENGINE, True).worst
    assert differences["threshold"] == 1


def test_a_precision_the_processor_lacks_is_not_a_failure(monkeypatch, curved_onnx, tmp_path):
    """The engine refuses to load, and says why."""

    def refuse(*_: object, **__: object) -> object:
        raise WhyCamError("this processor has no bf16 arithmetic")

    monkeypatch.setattr(doctor_job, "load", refuse)
    job = Job(kind="answers", engine="openvino", model=str(curved_onnx), precision="bf16")
    found = answers(job, [], tmp_path)
    assert (found.loaded, found.error) == (False, "this processor has no bf16 arithmetic")
    monkeypatch.setattr(doctor_check, "run_job", lambda *_: found)
    run = doctor_check._Run(curved_onnx, "openvino", "bf16", tmp_path, Settings(), (0,))
    assert run.outcome == "not possible"
    assert run.check(curved_onnx, read_manifest(curved_onnx), None).outcome == "not possible"
