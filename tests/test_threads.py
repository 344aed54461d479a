"""One explainer for many threads; NumPy's own threads stay out of the engine's way."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnxruntime
import pytest
import threadpoolctl
from tiny_file import write_tiny

import whycam
from whycam.runtime import cam, pipeline
from whycam.runtime.threads import one_blas_thread, usable_cores


def blas_threads() -> set[int]:
    np.ones((2, 2)) @ np.ones((2, 2))
    pools = threadpoolctl.threadpool_info()
    # NumPy's own: other packages bring copies that it does not use.
    return {p["num_threads"] for p in pools if p["user_api"] == "blas" and "numpy" in p["filepath"]}


@pytest.fixture(autouse=True)
def _two_threads():
    with threadpoolctl.threadpool_limits(2, user_api="blas"):
        yield


def test_one_thread_inside_and_the_process_setting_after_it():
    before = blas_threads()
    with one_blas_thread():
        with one_blas_thread():
            assert blas_threads() == {1}
        assert blas_threads() == {1}
    assert blas_threads() == before == {2}


def test_setting_returns_after_an_error():
    with pytest.raises(ZeroDivisionError), one_blas_thread():
        raise ZeroDivisionError
    assert blas_threads() == {2}


def test_setting_returns_when_many_threads_come_and_go():
    def work(_: int) -> None:
        with one_blas_thread():
            np.ones((50, 50)) @ np.ones((50, 50))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(400)))
    assert blas_threads() == {2}


def test_maps_are_computed_on_one_thread(tiny, monkeypatch):
    seen = []
    finish = cam.finish

    def watched(*arguments):
        seen.append(blas_threads())
        return finish(*arguments)

    monkeypatch.setattr(pipeline.cam, "finish", watched)
    tiny.explain(np.zeros((8, 8, 3), np.uint8))
    assert seen == [{1}]


def requests() -> list[dict]:
    """Images of many sizes, each with a method, a class, a thresholding and a geometry."""
    rng = np.random.default_rng(3)
    sizes = [(32, 32), (20, 90), (64, 48), (7, 5)]
    return [
        {
            "images": rng.integers(0, 256, (*size, 3), np.uint8),
            "method": method,
            "targets": targets,
            "tft": tft,
            "geometry": geometry,
        }
        for size, geometry in zip(sizes, ["input", "image"] * 2, strict=True)
        for method, targets in [("gradcam", None), ("layercam", [0, -2]), ("ablation", 3)]
        for tft in (None, True, whycam.Tft(mask="soft", thresholds="rank"))
    ]


# OpenVINO computes a batch in the shape that is compiled already, which is by whoever came first:
# its sums are in another order then. ONNX Runtime's answers are the same to the bit.
@pytest.mark.parametrize(("engine", "tolerance"), [("onnxruntime", 0), ("openvino", 1e-5)])
def test_eight_threads_get_the_answers_that_one_gets(mixed_files, engine, tolerance):
    pytest.importorskip(engine)
    asked = requests()
    alone = whycam.load(mixed_files("raw"), engine, threads=1)
    expected = [alone.explain(**each) for each in asked]
    # A fresh one, so that what is made when first needed is asked for by all at once.
    shared = whycam.load(mixed_files("raw"), engine, threads=1)
    order = [index for start in range(8) for index in range(start, len(asked), 8)] * 2
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda index: shared.explain(**asked[index]), order))
    for index, answer in zip(order, found, strict=True):
        many = isinstance(answer, list)
        pairs = zip(
            answer if many else [answer],
            expected[index] if many else [expected[index]],
            strict=True,
        )
        for one, other in pairs:
            assert (one.index, one.threshold) == (other.index, other.threshold)
            assert one.probability == pytest.approx(other.probability, rel=0, abs=tolerance)
            for name in ("map", "original_map", "mask", "rpi"):
                values = getattr(one, name)
                if values is not None:
                    wanted = getattr(other, name)
                    np.testing.assert_allclose(values, wanted, rtol=0, atol=tolerance)


@pytest.fixture
def options_of(tmp_path, manifest_of, tiny_engine, monkeypatch):
    """Load a small file in ONNX Runtime; return the options of its session."""
    path = tmp_path / "tiny.onnx"
    engine = tiny_engine()
    write_tiny(path, manifest_of(methods=("gradcam",)), engine.mix, engine.linear)
    made = []
    session = onnxruntime.InferenceSession

    def record(model, options, **rest):
        made.append(options)
        return session(model, options, **rest)

    monkeypatch.setattr(onnxruntime, "InferenceSession", record)

    def load(**settings):
        whycam.load(path, "onnxruntime", **settings)
        return made[-1]

    return load


@pytest.mark.parametrize(("usable", "threads"), [({0}, 1), ({0, 2, 3}, 3), (set(range(4)), 0)])
def test_an_engine_has_a_thread_for_each_core_that_the_process_may_use(
    options_of, monkeypatch, usable, threads
):
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: usable, raising=False)
    assert options_of().intra_op_num_threads == threads  # 0: as many as there are
    assert options_of(threads=2).intra_op_num_threads == 2


def test_where_no_system_says_which_cores_may_be_used_they_all_may(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    assert usable_cores() is None


def test_threads_that_wait_spin_unless_told_not_to(options_of):
    name = "session.intra_op.allow_spinning"
    assert options_of(spin=False).get_session_config_entry(name) == "0"
    with pytest.raises(RuntimeError):  # not set: the library's default, which is to spin
        options_of().get_session_config_entry(name)
