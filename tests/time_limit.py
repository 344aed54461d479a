"""A warning about each test that computes for long, which keeps ``make test`` short."""

from __future__ import annotations

import resource
import time
from collections.abc import Generator

import pytest
from export_cache import SPENT


class TimeLimit:
    """Warn of tests that compute longer than they should, unless they are marked ``slow``.

    CPU time counts, of the test's own process and of the processes that it waited for, but for
    shared exports. It is no reason to fail: the same test was seen to take three times as long in a
    fresh clone beside other work, and the first test that needs a library loads it.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

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
            pyfuncitem.warn(pytest.PytestWarning(message))
        return result


def cpu_seconds() -> float:
    """CPU time of this process and of its finished children, but for exports that are shared."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime - SPENT.seconds
