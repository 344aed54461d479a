"""NumPy's threads stay out of the engine's way, and come back."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import threadpoolctl

from whycam.runtime import cam, explainer
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

    monkeypatch.setattr(explainer.cam, "finish", watched)
    tiny.explain(np.zeros((8, 8, 3), np.uint8))
    assert seen == [{1}]
