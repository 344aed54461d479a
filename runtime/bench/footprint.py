"""Measure start-up time and peak memory of fresh processes, up to their first map."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from ..errors import EngineError
from ..isolation import run_python
from .plan import Configuration

# Peak memory is VmHWM where there is one: on Linux a program's ru_maxrss starts at its parent's.
_FIRST_MAP = """
import json, sys, time
marks = [time.perf_counter()]
import whycam
marks.append(time.perf_counter())
model, image, engine, precision, threads, *prompts = sys.argv[1:]
classes = prompts[0] if prompts else None
explainer = whycam.load(model, engine, int(threads), precision=precision, prompts=classes)
marks.append(time.perf_counter())
(explainer.explain if explainer.manifest.detector is None else explainer.detect)(image)
marks.append(time.perf_counter())
peak = None
try:
    import resource
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    with open("/proc/self/status") as status:
        held = [line.split()[1] for line in status if line.startswith("VmHWM:")]
    peak = int(held[0]) * 1024 if held else peak
except (ImportError, OSError):
    pass
print(json.dumps({"marks": marks, "peak": peak}))
"""


@dataclass(frozen=True)
class Footprint:
    """Start-up time and memory of fresh processes, up to their first map.

    The map is of the file's default method, without TFT.

    Attributes:
        configuration: plain classification with batch 1.
        seconds: raw samples of ``import``, ``load``, ``first map`` and their ``total``.
        peak_bytes: peak memory of each process; None where the system does not report it.
    """

    configuration: Configuration
    seconds: dict[str, list[float]]
    peak_bytes: list[int | None]


def measure_footprint(
    plain: Configuration, image: str, times: int, prompts: Path | None = None
) -> Footprint:
    """Start that many processes, one after the other, and explain an image in each.

    Files that take class embeddings need a file of ``prompts``.

    Raises:
        EngineError: a process fails.
    """
    arguments = [plain.model, image, plain.engine, plain.precision, str(plain.threads)]
    arguments += [] if prompts is None else [str(prompts)]
    seconds: dict[str, list[float]] = {"import": [], "load": [], "first map": [], "total": []}
    peaks: list[int | None] = []
    for _ in range(times):
        try:
            printed = run_python(["-c", _FIRST_MAP, *arguments])
        except EngineError as error:
            raise EngineError(
                f"{plain.model} could not be explained in a fresh process: {error}"
            ) from error
        result = json.loads(printed.splitlines()[-1])
        begin, imported, loaded, mapped = result["marks"]
        spent = (imported - begin, loaded - imported, mapped - loaded, mapped - begin)
        for samples, value in zip(seconds.values(), spent, strict=True):
            samples.append(value)
        peaks.append(result["peak"])
    return Footprint(plain, seconds, peaks)
