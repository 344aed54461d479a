"""Requests of many threads that go through the network together: answers, order, limits, end."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import CancelledError, ThreadPoolExecutor
from typing import Any

import msgspec
import numpy as np
import pytest
from PIL import Image

import whycam
from whycam.runtime.dynamic_batching import BatchReport, DynamicBatcher
from whycam.runtime.errors import BusyError, EngineError, ImageError, RequestError


def images(count: int) -> list[np.ndarray]:
    rng = np.random.default_rng(2)
    return list(rng.integers(0, 256, (count, 12, 10, 3), np.uint8))


class Gate:
    """Holds up an engine's runs until it is opened."""

    def __init__(self, explainer: whycam.Explainer) -> None:
        self.reached, self.open = threading.Event(), threading.Event()
        run = explainer.engine.run

        def wait(feeds: Any, outputs: Any) -> Any:
            self.reached.set()
            assert self.open.wait(10)
            return run(feeds, outputs)

        explainer.engine.run = wait  # type: ignore[method-assign]


@pytest.fixture
def gate(tiny) -> Gate:
    return Gate(tiny)


def hold(batcher: DynamicBatcher, gate: Gate) -> Any:
    """A request that is in the network, so that what follows must wait."""
    first = batcher.submit(images(1)[0])
    assert gate.reached.wait(10)
    return first


def test_answers_are_those_of_explain(tiny):
    several = images(9)
    with DynamicBatcher(tiny, batch=4) as batcher, ThreadPoolExecutor(5) as pool:
        answers = list(pool.map(lambda image: batcher.submit(image, tft=True).result(10), several))
    for image, found in zip(several, answers, strict=True):
        alone = tiny.explain(image, tft=True)
        assert (found.index, found.threshold) == (alone.index, alone.threshold)
        assert found.probability == pytest.approx(alone.probability, abs=1e-6)
        np.testing.assert_allclose(found.map, alone.map, atol=1e-6)


def test_what_waits_goes_through_the_network_in_one_run(tiny, gate):
    reports: list[BatchReport] = []
    with DynamicBatcher(tiny, batch=4, observe=reports.append) as batcher:
        hold(batcher, gate)
        answers = [batcher.submit(image) for image in images(6)]
        assert batcher.pending == 7
        gate.open.set()
        for answer in answers:
            answer.result(10)
    assert tiny.engine.batches == [1, 4, 2]
    assert [len(report.queued) for report in reports] == [1, 4, 2]
    assert all(wait >= 0 for report in reports for wait in report.queued)
    assert batcher.pending == 0


def test_lone_request_does_not_wait_for_others(tiny):
    begun = time.monotonic()
    with DynamicBatcher(tiny, wait_seconds=30) as batcher:
        batcher.submit(images(1)[0]).result(10)
    assert time.monotonic() - begun < 5


def test_request_waits_for_one_that_is_being_read_but_not_for_ever(tiny):
    reading = threading.Event()

    def read() -> Any:
        image = Image.new("RGB", (8, 8))
        image.load = lambda: reading.wait(10) and None  # type: ignore[method-assign]
        return batcher.submit(image)

    with DynamicBatcher(tiny, wait_seconds=0.05) as batcher, ThreadPoolExecutor(1) as pool:
        slow = pool.submit(read)
        while batcher.pending == 0:
            time.sleep(0.001)
        begun = time.monotonic()
        batcher.submit(images(1)[0]).result(10)
        assert 0.04 < time.monotonic() - begun < 5
        reading.set()
        slow.result(10).result(10)
    assert tiny.engine.batches == [1, 1]


def test_only_requests_that_fit_together_share_a_run(tiny, gate):
    """Another method or thresholding is another run; those behind are not overtaken for ever."""
    with DynamicBatcher(tiny, batch=8) as batcher:
        hold(batcher, gate)
        one, two, three, four = images(4)
        answers = [
            batcher.submit(one, method="gradcam"),
            batcher.submit(two, method="layercam"),
            batcher.submit(three, method="gradcam", targets=[0, 2]),
            batcher.submit(four, method=["layercam", "gradcam"], targets="bee"),
        ]
        gate.open.set()
        first, second, third, fourth = (answer.result(10) for answer in answers)
    assert tiny.engine.batches == [1, 2, 1, 1]
    assert (first.method, second.method) == ("gradcam", "layercam")
    assert [one.index for one in third] == [0, 2]
    assert list(fourth) == ["layercam", "gradcam"]
    assert fourth["gradcam"].label == "bee"


def test_sizes_of_their_own_go_alone(manifest_of, tiny_engine):
    """Networks that keep an image's resolution cannot stack images of several sizes."""
    from whycam.runtime.manifest import DynamicSize

    manifest = manifest_of(dynamic_size=DynamicSize(8, 64, 4, (2, 2)), methods=("gradcam",))
    explainer = whycam.Explainer(tiny_engine(), manifest)
    gate = Gate(explainer)
    small, large = np.zeros((8, 8, 3), np.uint8), np.zeros((16, 16, 3), np.uint8)
    with DynamicBatcher(explainer) as batcher:
        batcher.submit(small)
        assert gate.reached.wait(10)
        answers = [batcher.submit(image) for image in (small, large, small)]
        gate.open.set()
        shapes = [answer.result(10).map.shape for answer in answers]
    assert shapes == [(8, 8), (16, 16), (8, 8)]
    assert explainer.engine.batches == [1, 2, 1]


def test_batch_is_what_the_file_allows(manifest_of, tiny_engine, tiny):
    fixed = whycam.Explainer(tiny_engine(), manifest_of(batch=1))
    with DynamicBatcher(fixed, batch=8) as batcher:
        assert batcher.batch == 1
    little = msgspec.structs.replace(tiny.manifest, image_bytes=2**27)
    with DynamicBatcher(whycam.Explainer(tiny_engine(), little), batch=8) as batcher:
        assert batcher.batch == 1


def test_unreadable_image_is_refused_at_once_and_delays_nobody(tiny, gate):
    with DynamicBatcher(tiny) as batcher:
        hold(batcher, gate)
        with pytest.raises(ImageError, match="no image"):
            batcher.submit(b"not an image")
        with pytest.raises(RequestError, match="no class 9"):
            batcher.submit(images(1)[0], targets=9)
        assert batcher.pending == 1
        gate.open.set()


def test_only_the_request_at_fault_fails(tiny, gate):
    """A network that fails on black images."""
    run = tiny.engine.run

    def fail_on_black(feeds: Any, outputs: Any) -> Any:
        if (feeds["image"].std((2, 3)).max(1) < 1e-6).any():
            raise EngineError("black")
        return run(feeds, outputs)

    with DynamicBatcher(tiny, batch=8) as batcher:
        first = hold(batcher, gate)
        tiny.engine.run = fail_on_black
        white, black, grey = images(1)[0], np.zeros((8, 8, 3), np.uint8), images(2)[1]
        answers = [batcher.submit(image) for image in (white, black, grey)]
        gate.open.set()
        assert first.result(10).map.shape == (8, 8)
        assert answers[0].result(10).index == tiny.explain(white).index
        with pytest.raises(EngineError, match="black"):
            answers[1].result(10)
        assert answers[2].result(10).index == tiny.explain(grey).index


def test_full_queue_refuses_before_anything_is_read(tiny, gate):
    with DynamicBatcher(tiny, capacity=3) as batcher:
        hold(batcher, gate)
        waiting = [batcher.submit(image) for image in images(2)]
        with pytest.raises(BusyError, match="3 images are waiting"):
            batcher.submit(b"not an image")  # which would be an ImageError
        gate.open.set()
        for answer in waiting:
            answer.result(10)
        batcher.submit(images(1)[0]).result(10)


def test_cancelled_request_costs_no_run(tiny, gate):
    with DynamicBatcher(tiny) as batcher:
        hold(batcher, gate)
        one, two = (batcher.submit(image) for image in images(2))
        assert one.cancel()
        gate.open.set()
        two.result(10)
    assert tiny.engine.batches == [1, 1]


@pytest.mark.parametrize("drain", [True, False])
def test_close_answers_or_cancels_what_waits(tiny, gate, drain):
    batcher = DynamicBatcher(tiny)
    first = hold(batcher, gate)
    waiting = batcher.submit(images(1)[0])
    closing = threading.Thread(target=batcher.close, args=(drain,))
    closing.start()
    while not batcher.closed:
        time.sleep(0.001)
    with pytest.raises(BusyError, match="stopping"):
        batcher.submit(images(1)[0])
    gate.open.set()
    closing.join(10)
    assert not closing.is_alive()
    assert first.result(0).map.shape == (8, 8)
    if drain:
        assert waiting.result(0).map.shape == (8, 8)
    else:
        with pytest.raises(CancelledError):
            waiting.result(0)


@pytest.mark.parametrize(
    ("setting", "said"),
    [({"batch": 0}, "batch must be 1"), ({"capacity": 0}, "capacity"), ({"wait_seconds": -1}, "0")],
)
def test_settings_out_of_range_are_refused(
    tiny, setting: dict[str, Any], said: str, thread_count: Callable[[], int]
):
    before = thread_count()
    with pytest.raises(RequestError, match=said):
        DynamicBatcher(tiny, **setting)
    assert thread_count() == before


@pytest.fixture
def thread_count() -> Callable[[], int]:
    return lambda: sum(thread.name == "whycam-batcher" for thread in threading.enumerate())


def test_no_thread_is_left(tiny, thread_count):
    before = thread_count()
    with DynamicBatcher(tiny) as batcher:
        assert thread_count() == before + 1
        batcher.submit(images(1)[0]).result(10)
    assert thread_count() == before
