"""Engines behind one face: the same answers, chosen for a reason, each part compiled by itself."""

from __future__ import annotations

import sys
import threading
from pathlib import Path

import numpy as np
import pytest

import whycam
from whycam.runtime.cam import ACTIVATION_METHODS
from whycam.runtime.engines import registry as engines
from whycam.runtime.engines.base import Engine, EngineSettings
from whycam.runtime.engines.registry import candidates
from whycam.runtime.errors import EngineError, MissingExtraError, ModelFileError, WhyCamError
from whycam.runtime.onnxfile import read_manifest
from whycam.runtime.pipeline import classify
from whycam.runtime.tft import Tft

FAST = [m for m in ACTIVATION_METHODS if m != "scorecam"]


@pytest.fixture(scope="module")
def openvino(lite0_onnx: Path) -> whycam.Explainer:
    return whycam.load(lite0_onnx, "openvino", threads=2)


@pytest.fixture(scope="module")
def onnxruntime(lite0_onnx: Path) -> whycam.Explainer:
    return whycam.load(lite0_onnx, "onnxruntime", threads=2)


def same(ours: list[whycam.Explanation], theirs: list[whycam.Explanation], apart: float) -> None:
    for a, b in zip(ours, theirs, strict=True):
        assert a.index == b.index
        assert abs(a.probability - b.probability) < apart
        np.testing.assert_allclose(a.original_map, b.original_map, atol=10 * apart)


@pytest.mark.slow
@pytest.mark.parametrize("method", FAST)
def test_engines_agree_on_maps_and_thresholds(openvino, onnxruntime, sample_images, method):
    ours, theirs = (
        e.explain(sample_images, method=method, tft=True) for e in (openvino, onnxruntime)
    )
    same(ours, theirs, 1e-5)
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a.rpi, b.rpi, atol=1e-3)
        assert a.threshold == b.threshold


def test_bf16_is_close_and_only_when_asked_for(openvino, lite0_onnx, sample_images):
    able = openvino.engine._core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    if "BF16" not in able:
        with pytest.raises(EngineError, match="no bf16"):
            whycam.load(lite0_onnx, precision="bf16")
        return
    reduced = whycam.load(lite0_onnx, precision="bf16")
    assert reduced.engine.name == "openvino"
    assert "bf16" in reduced.engine.description
    assert "bf16" in reduced.engine.reason
    a, b = openvino.explain(sample_images), reduced.explain(sample_images)
    same(a, b, 0.02)
    assert max(abs(x.probability - y.probability) for x, y in zip(a, b, strict=True)) > 1e-5
    for x, y in zip(a, b, strict=True):
        assert np.corrcoef(x.map.ravel(), y.map.ravel())[0, 1] > 0.99


@pytest.mark.slow
def test_any_batch_and_any_number_of_classes(openvino, onnxruntime, sample_images):
    """More shapes than are compiled one by one, batches that are filled up, and back again."""
    for count in (1, 2, 3, 4, 5, 7, 8, 12, 1):
        images = (sample_images * 3)[:count]
        same(openvino.explain(images), onnxruntime.explain(images), 1e-5)
    for classes in ([-1, -2], [-1, -2, -3], [7], [-5, 0, 1, 2]):
        same(
            openvino.explain(sample_images[0], targets=classes),
            onnxruntime.explain(sample_images[0], targets=classes),
            1e-5,
        )
    assert all(len(part._compiled) <= 5 for part in openvino.engine._parts.values())


def test_each_row_of_a_filled_batch_is_its_own(openvino):
    """Nine images in a network compiled for ten."""
    rng = np.random.default_rng(0)
    images = rng.standard_normal((10, 3, 224, 224)).astype(np.float32)
    ten, nine = classify(openvino.model, images), classify(openvino.model, images[1:])
    assert nine.shape == (9, 1000)
    np.testing.assert_allclose(nine, ten[1:], atol=1e-6)


def test_throughput_divides_batches_and_answers_the_same(lite0_onnx, onnxruntime, sample_images):
    divided = whycam.load(lite0_onnx, "openvino", threads=2, hint="throughput")
    same(divided.explain(sample_images * 2), onnxruntime.explain(sample_images * 2), 1e-5)
    assert divided.engine._part(frozenset({"map"})).streams == 2


def test_results_stay_when_the_engine_runs_again(openvino, sample_images):
    first = openvino.explain(sample_images[0])
    before = first.map.copy()
    openvino.explain(sample_images[1])
    np.testing.assert_array_equal(first.map, before)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["openvino", "onnxruntime"])
def test_threads_share_an_engine(request, name, sample_images):
    explainer = request.getfixturevalue(name)
    expected = [e.probability for e in explainer.explain(sample_images)]
    found: dict[int, list[float]] = {}

    def work(index: int) -> None:
        found[index] = [explainer.explain(p, tft=True).probability for p in sample_images]

    workers = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
    assert len(found) == 4
    for each in found.values():
        np.testing.assert_allclose(each, expected, atol=1e-5)


def test_classification_alone_runs_no_gradient(lite0_onnx, chelsea):
    explainer = whycam.load(lite0_onnx, "openvino")
    explainer.classify(chelsea)
    plain = explainer.engine._parts[frozenset()]
    (compiled,) = plain._compiled.values()
    names = {name for port in compiled._model.outputs for name in port.get_names()}
    assert "probabilities" in names
    assert "gradients" not in names


def test_engines_agree_on_a_small_network(curved_onnx, sample_images):
    a, b = (whycam.load(curved_onnx, name, threads=1) for name in ("openvino", "onnxruntime"))
    for method in (each for each in a.manifest.methods if each in FAST):
        same(a.explain(sample_images, method=method), b.explain(sample_images, method=method), 1e-5)


def test_thresholds_in_the_graph_agree_between_engines(exports, sample_images):
    from networks import SMALL, linear

    soft = Tft(mask="soft", thresholds="rank")
    path = exports(linear, outputs=["tft", "raw"], tft=soft, overrides=SMALL)
    a, b = (
        whycam.load(path, name, threads=1).explain(sample_images, tft=True)
        for name in ("openvino", "onnxruntime")
    )
    same(a, b, 1e-5)
    for x, y in zip(a, b, strict=True):
        assert x.threshold == y.threshold


@pytest.mark.slow
def test_images_of_any_size_in_a_graph_that_takes_pixels(pixels_onnx, sample_images):
    """More image sizes than are compiled one by one."""
    a, b = (whycam.load(pixels_onnx, name) for name in ("openvino", "onnxruntime"))
    rng = np.random.default_rng(0)
    sizes = [(200, 300), (301, 240), (250, 250), (333, 222), (225, 400)]
    images = [rng.integers(0, 256, (*size, 3), np.uint8) for size in sizes]
    same(a.explain(images), b.explain(images), 1e-4)


# Which engine, and why.


def absent(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    for name in names:
        monkeypatch.setitem(sys.modules, name, None)
    real = engines.find_spec
    monkeypatch.setattr(engines, "find_spec", lambda name: None if name in names else real(name))


def test_auto_takes_the_first_that_is_installed(lite0_onnx, monkeypatch):
    first = whycam.load(lite0_onnx).engine
    assert first.name == "onnxruntime"
    assert "checked in" in first.reason
    absent(monkeypatch, "onnxruntime")
    found = whycam.load(lite0_onnx).engine
    assert found.name == "openvino"
    assert "can be used here" in found.reason
    refused = candidates(read_manifest(lite0_onnx), EngineSettings())[0]
    assert not refused.usable
    assert 'pip install "whycam[cpu]"' in refused.why


def test_int8_in_onnx_runtime_says_that_it_is_slow(lite0_onnx, monkeypatch):
    import msgspec

    absent(monkeypatch, "openvino")
    manifest = msgspec.structs.replace(read_manifest(lite0_onnx), precision="int8")
    chosen = next(each for each in candidates(manifest, EngineSettings()) if each.usable)
    assert chosen.name == "onnxruntime"
    assert "slower than fp32" in chosen.why


def test_no_engine_at_all_says_what_to_install(lite0_onnx, monkeypatch):
    absent(monkeypatch, "openvino", "onnxruntime")
    with pytest.raises(EngineError, match=r'openvino: not installed: pip install "whycam\[openv'):
        whycam.load(lite0_onnx)


def test_bf16_without_openvino_is_refused_and_not_replaced(lite0_onnx, monkeypatch):
    absent(monkeypatch, "openvino")
    with pytest.raises(EngineError, match="onnxruntime: cannot compute in bf16"):
        whycam.load(lite0_onnx, precision="bf16")


@pytest.mark.parametrize("name", ["openvino", "onnxruntime"])
def test_missing_engine_names_its_extra(lite0_onnx, monkeypatch, name):
    absent(monkeypatch, name)
    extra = engines.ENGINES[name].extra
    with pytest.raises(MissingExtraError, match=rf'pip install "whycam\[{extra}\]"'):
        whycam.load(lite0_onnx, name)


@pytest.mark.parametrize(
    ("wish", "message"),
    [
        ({"engine": "tensorflow"}, "there is no engine 'tensorflow'"),
        ({"precision": "fp8"}, "precision must be fp32 or bf16"),
        ({"precision": "int8"}, "whycam calibrate int8"),
        ({"hint": "fast"}, "hint must be latency or throughput"),
        ({"threads": 0}, "threads must be 1 or more"),
        ({"engine": "onnxruntime", "precision": "bf16"}, "cannot compute in bf16; openvino can"),
        ({"engine": "openvino", "cache": "/proc/nothing"}, "cannot write to /proc/nothing"),
    ],
    ids=lambda v: str(v),
)
def test_wishes_that_cannot_be_met(lite0_onnx, wish, message):
    with pytest.raises(WhyCamError, match=message):
        whycam.load(lite0_onnx, **wish)


def test_engine_that_cannot_load_a_file_is_passed_over_and_said(lite0_onnx, monkeypatch):
    def refuse(*_: object) -> Engine:
        raise ModelFileError("an operator it does not know")

    backend = engines.ENGINES["onnxruntime"]
    broken = engines.Backend(backend.package, backend.extra, backend.precisions, refuse)
    monkeypatch.setitem(engines.ENGINES, "onnxruntime", broken)
    found = whycam.load(lite0_onnx).engine
    assert found.name == "openvino"
    assert "an operator it does not know" in found.reason


def test_compiled_models_are_kept_in_a_cache(lite0_onnx, chelsea, tmp_path):
    first = whycam.load(lite0_onnx, "openvino", cache=tmp_path / "cache").explain(chelsea)
    assert list((tmp_path / "cache").glob("*.blob"))
    again = whycam.load(lite0_onnx, "openvino", cache=tmp_path / "cache")
    (compiled,) = again.engine._part(frozenset({"map"}))._compiled.values()
    assert compiled._model.get_property("LOADED_FROM_CACHE")
    np.testing.assert_array_equal(again.explain(chelsea).map, first.map)


def test_wrong_shapes_are_an_error_of_the_engine(openvino):
    feeds = {"image": np.zeros((1, 3, 10, 10), np.float32), "target": np.zeros((1, 1), np.int64)}
    with pytest.raises(EngineError, match=r"must be float32 \[any, 3, 224, 224\], not"):
        openvino.engine.run(feeds, ["probabilities"])


def test_interrupt_is_survived_after_another_thread_let_go_of_openvino(lite0_onnx, run_python):
    """OpenVINO takes the stack for signals away from the thread that loaded it."""
    pytest.importorskip("openvino")
    said = run_python(f"""
        import gc, os, signal, threading
        import whycam

        signal.signal(signal.SIGINT, signal.default_int_handler)
        held = [whycam.load({str(lite0_onnx)!r}, "openvino", threads=1)]
        last = threading.Thread(target=lambda: (held.clear(), gc.collect()))
        last.start()
        last.join()
        try:
            os.kill(os.getpid(), signal.SIGINT)
            print("not heard")
        except KeyboardInterrupt:
            print("interrupted")
    """)
    assert said == "interrupted"
