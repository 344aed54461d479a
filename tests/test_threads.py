"""One explainer for many threads; NumPy's own threads stay out of the engine's way."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import threadpoolctl

import whycam
from whycam.runtime import cam, pipeline
from whycam.runtime.threads import one_blas_thread


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
