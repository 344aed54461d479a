"""Signals that end a command leave neither half-written nor temporary files."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from networks import SMALL, linear
from PIL import Image

from whycam.export import to_onnx

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("small") / "small.onnx"
    return to_onnx(linear(), path, overrides=SMALL).path


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for index in range(200):
        Image.effect_noise((400, 300), 60).convert("RGB").save(folder / f"{index:03}.png")
    return folder


def ended(
    arguments: Sequence[object], folder: Path, number: int, begun: Callable[[], bool]
) -> tuple[int, str]:
    """The exit code and standard error of a command that gets a signal once it has begun."""
    temporary = folder.with_name("temporary")
    temporary.mkdir()
    process = subprocess.Popen(
        [sys.executable, "-m", "whycam", *map(str, arguments)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(temporary)},
        # Whoever runs the tests in the background has made them deaf to it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 120
    while not begun() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    assert process.poll() is None, process.communicate()[1]
    process.send_signal(number)
    _, said = process.communicate(timeout=120)
    # ONNX Runtime keeps a file there from its import on, whatever becomes of the process.
    assert {path.name for path in temporary.iterdir()} <= {".ses"}
    return process.returncode, said


# What each command writes, and what shows that it has begun to.
COMMANDS = {
    "export": (("export", "torchvision/resnet18", "--weights", "none", "-o", "{out}/x.onnx"), ".*"),
    "calibrate": (("calibrate", "int8", "{small}", "{images}", "-o", "{out}/x.onnx"), ".*"),
    "explain": (("explain", "{small}", "{images}", "-o", "{out}"), "*.png"),
}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
@pytest.mark.parametrize("command", COMMANDS)
def test_a_signal_leaves_no_temporary_file(command, number, small, images, tmp_path):
    written, sign = COMMANDS[command]
    out = tmp_path / "out"
    out.mkdir()
    arguments = [word.format(out=out, small=small, images=images) for word in written]
    code, said = ended(arguments, out, number, lambda: any(out.glob(sign)))
    # A shell says 130 for both: where Ctrl-C passed through code that Python compiled from a
    # string, as imports do, Python itself ends by the signal after the handler has run.
    assert code in ((130, -signal.SIGINT) if number == signal.SIGINT else (143,))
    assert "nothing half-written is left" in said
    assert not [path for path in out.iterdir() if path.name.startswith(".")]
    if command != "explain":
        assert not list(out.iterdir())
    for path in out.iterdir():
        Image.open(path).load()


LOST = """
import os, signal, sys, time
from whycam.cli.signals import EndedBySignal, ending_by_signals
try:
    with ending_by_signals():
        try:
            os.kill(os.getpid(), signal.{name})
            time.sleep(5)
        except BaseException:  # as an extension module that is being imported
            pass
        try:
            time.sleep(20)
        finally:
            time.sleep(1.6)  # three times as long as it takes until the signal is given again
            print("cleaned up")
except (EndedBySignal, KeyboardInterrupt) as error:
    print(type(error).__name__)
"""


@pytest.mark.parametrize(
    ("name", "error"), [("SIGTERM", "EndedBySignal"), ("SIGINT", "KeyboardInterrupt")]
)
def test_a_signal_that_other_code_loses_ends_the_command_and_not_its_cleaning_up(name, error):
    begin = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", LOST.format(name=name)],
        capture_output=True,
        text=True,
        timeout=60,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert done.stdout.split("\n")[:2] == ["cleaned up", error], done.stderr
    assert time.monotonic() - begin < 15
