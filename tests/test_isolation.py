"""Python in a process of its own."""

import os

import pytest

from whycam.runtime.errors import EngineError
from whycam.runtime.isolation import run_python


def test_what_it_prints_comes_back():
    assert run_python(["-c", "import sys; print(sys.argv[1])", "a b"]).strip() == "a b"


def test_it_reads_no_input_of_ours():
    assert run_python(["-c", "import sys; print(repr(sys.stdin.read()))"]).strip() == "''"


@pytest.mark.skipif(os.name == "nt", reason="signals")
@pytest.mark.parametrize(
    ("code", "message"),
    [
        (
            "raise ValueError('the driver is old')",
            "ended with code 1: ValueError: the driver is old",
        ),
        ("import os; os._exit(7)", "ended with code 7"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "was ended by SIGSEGV"),
    ],
)
def test_a_process_that_fails_says_how(code, message):
    with pytest.raises(EngineError, match=message):
        run_python(["-c", code])


def test_a_process_that_hangs_is_stopped():
    with pytest.raises(EngineError, match=r"stopped after 0\.5 seconds"):
        run_python(["-c", "import time; time.sleep(600)"], 0.5)
