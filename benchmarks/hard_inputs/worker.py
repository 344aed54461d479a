"""Runs cases in a process of its own, so that one that kills the interpreter is one failure."""

from __future__ import annotations

import faulthandler
import importlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import traceback
from dataclasses import asdict, dataclass
from pathlib import Path
from queue import Empty, Queue
from threading import Thread
from types import TracebackType
from typing import Any

KINDS = ("images", "manifests", "onnx", "plans", "options")
_MEMORY = 16 * 2**30  # of addresses; a case that asks for more must be refused, not kill others


@dataclass(frozen=True)
class Outcome:
    """What became of a case: ``answered``, ``refused``, or what it did wrong."""

    case: str
    became: str
    fault: str = ""


class Worker:
    """A process that runs one case after the other, and is started again when it dies.

    Args:
        model: a file made by ``whycam export``; empty: one is made.
        seed: of all cases.
        limit: seconds for a case; one that takes longer is stopped, and has failed.
        keep: where the folder of a case that failed is moved to; None: it is removed.
    """

    def __init__(self, model: str, seed: int, limit: float = 60, keep: Path | None = None) -> None:
        self._given = [model, str(seed), str(limit)]
        self._limit = limit
        self._keep = keep
        self._process: subprocess.Popen[str] | None = None
        self._room = Path(tempfile.mkdtemp(prefix="hard-inputs-"))
        self._said: Queue[str] = Queue()

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._stop()
        shutil.rmtree(self._room, ignore_errors=True)

    def run(self, case: str) -> Outcome:
        """Run a case, as ``onnx:12``."""
        if self._process is None:
            self._start()
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(case + "\n")
        self._process.stdin.flush()
        try:
            found = Outcome(**json.loads(self._said.get(timeout=self._limit)))
        except Empty:
            found = Outcome(case, "hangs", f"no answer after {self._limit} s\n{self._last_words()}")
            self._stop()
        except ValueError:  # the end of what it says
            code = self._process.wait()
            name = signal.Signals(-code).name if code < 0 else f"exit code {code}"
            found = Outcome(case, "dies", f"{name}\n{self._last_words()}")
            self._stop()
        if found.fault and self._keep is not None:
            self._saved(found)
        return found

    def _start(self) -> None:
        places = [str(Path(__file__).parent.parent), *filter(None, sys.path)]
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(places),
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
            "COLUMNS": "100",
        }
        with (self._room / "stderr").open("w") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "hard_inputs.worker", str(self._room), *self._given],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=environment,
            )
        self._said = Queue()
        Thread(target=_read, args=(self._process.stdout, self._said), daemon=True).start()
        if (first := self._said.get(timeout=600)) != "ready\n":
            raise RuntimeError(f"the worker does not start ({first}): {self._last_words()}")

    def _stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
        self._process = None

    def _last_words(self) -> str:
        path = self._room / "stderr"
        return path.read_text(errors="replace")[-4000:] if path.exists() else ""

    def _saved(self, found: Outcome) -> None:
        assert self._keep is not None
        place = self._keep / found.case.replace(":", "-")
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(self._room / "case", place, symlinks=True, dirs_exist_ok=True)
        about = {**asdict(found), "seed": int(self._given[1]), "model": self._given[0]}
        (place / "case.json").write_text(json.dumps(about, indent=2))


def _read(pipe: Any, said: Queue[str]) -> None:
    for line in pipe:
        said.put(line)
    said.put("")


def main() -> None:
    """Read cases from standard input, say of each what became of it."""
    room, model, seed, limit = Path(sys.argv[1]), sys.argv[2], sys.argv[3], float(sys.argv[4])
    # The command line's own output is looked at: what is said to the parent goes another way.
    speak = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    errors = os.fdopen(os.dup(2), "w")
    faulthandler.enable(errors)
    from .rules import Case, Fault, Material

    material = Material(Path(model).absolute() if model else _made(room))
    print("ready", file=speak, flush=True)
    for line in sys.stdin:
        case = line.strip()
        folder = room / "case"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        os.chdir(folder)
        faulthandler.dump_traceback_later(0.9 * limit, file=errors)
        kind = importlib.import_module(f".{_MODULES.get(case.split(':')[0], '')}", __package__)
        try:
            given = Case(random.Random(f"{seed}/{case}"), folder, material)
            found = Outcome(case, kind.run(given))
        except Fault as fault:
            found = Outcome(case, "breaks a rule", f"{fault}\n{_origin(fault)}")
        except BaseException:
            found = Outcome(case, "raises", traceback.format_exc())
        faulthandler.cancel_dump_traceback_later()
        print(json.dumps(asdict(found)), file=speak, flush=True)


_MODULES = {
    "images": "images",
    "manifests": "manifests",
    "onnx": "onnxfiles",
    "plans": "plans",
    "options": "options",
}


def _origin(fault: Exception) -> str:
    at = traceback.extract_tb(fault.__traceback__)[-1]
    return f"(seen in {Path(at.filename).name}:{at.lineno})"


def _made(room: Path) -> Path:
    from whycam.export import Overrides, to_onnx
    from whycam.runtime.cam import ACTIVATION_METHODS

    from . import factory

    path = room / "small.onnx"
    if not path.exists():
        size = Overrides(image_size=factory.SIDE, preprocess="imagenet")
        to_onnx(factory.model(), path, overrides=size, methods=list(ACTIVATION_METHODS))
    return path


if __name__ == "__main__":
    main()
