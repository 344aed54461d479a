"""A limit on the CPU time of each test, which keeps ``make test`` short."""

from __future__ import annotations

import resource
import time
from collections.abc import Generator
from importlib.util import find_spec
from pathlib import Path

import pytest
from export_cache import SPENT

TOLERANCE = 2.5  # times the limit until a test fails
REFERENCE = 0.04  # seconds of a million squares, on one core of an AMD EPYC with AVX2


class TimeLimit:
    """Fail tests that compute longer than they may, unless they are marked ``slow``.

    CPU time counts, of the test's own process and of the processes that it waited for, so that a
    busy machine changes less than the clock would say: where processors share their caches, the
    same test was seen to take twice as long. A test somewhat above the limit is therefore a warning
    and one far above it a failure. Fixtures and shared exports do not count.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    @pytest.fixture(autouse=True, scope="session")
    def libraries_are_loaded(self, tmp_path_factory: pytest.TempPathFactory) -> None:
        """Load what the first export and the first explanation would load."""
        load_libraries(tmp_path_factory.mktemp("libraries"))

    @pytest.hookimpl(wrapper=True)
    def pytest_pyfunc_call(self, pyfuncitem: pytest.Function) -> Generator[None, object, object]:
        before = cpu_seconds()
        result = yield
        spent = cpu_seconds() - before
        if spent > self.seconds and pyfuncitem.get_closest_marker("slow") is None:
            message = (
                f"took {spent:.1f} s of CPU time; make test allows {self.seconds:g} s. Test the "
                "same on a smaller network or fewer cases, or mark it slow: make test-all runs it"
            )
            if spent > TOLERANCE * self.seconds * slowness():
                pytest.fail(message, pytrace=False)
            pyfuncitem.warn(pytest.PytestWarning(message))
        return result


def cpu_seconds() -> float:
    """CPU time of this process and of its finished children, but for exports that are shared."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime - SPENT.seconds


def slowness() -> float:
    """How much longer Python takes here than on the machine that the limit is from; 1 or more."""
    before = time.process_time()
    sum(number * number for number in range(1_000_000))
    return max(1.0, (time.process_time() - before) / REFERENCE)


def load_libraries(folder: Path) -> None:
    """Export, explain and build once, by every library that tests use."""
    import matplotlib.pyplot  # noqa: F401
    import numpy as np
    import timm  # noqa: F401
    import torch._dynamo  # noqa: F401
    from networks import SMALL, attending, curved, linear, mixed

    import whycam
    from whycam.export import to_onnx, to_plan

    for create in (attending, curved, mixed, linear):  # PyTorch is slow at what it does first
        path = to_onnx(create(), folder / f"{create.__name__}.onnx", overrides=SMALL).path
    for engine in ("onnxruntime", "openvino"):
        whycam.load(path, engine, threads=1).explain(np.zeros((32, 32, 3), np.uint8))
    if find_spec("tensorrt_rtx"):
        to_plan(path, folder / "linear.plan", compute=["7.5", "8.6"])
