"""Time explanations stage by stage: engines, precisions and methods take turns."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..cam import Method
from ..engines.selftest import wave_pattern
from ..errors import EngineError, MissingExtraError, ModelFileError, RequestError
from ..explainer import Explainer, load
from ..images import read_image
from ..isolation import run_python
from ..manifest import Manifest
from ..onnxfile import read_manifest
from ..preprocess import crop_resized, normalise
from ..request import plan_request
from ..sweep import Floats
from ..timing import Tick, measure_seconds, run_interleaved
from .plan import Configuration, LeftOut, Plan, nothing_remains
from .stages import ANSWER, classify_in_stages, explain_in_stages

TORCH = "torch"
# Other tools that can be compared with, and their packages.
BASELINES = {"pytorch-grad-cam": "grad-cam", "torchcam": "torchcam"}
_STARTS = 3
_PICTURE_SIZE = (375, 500)  # height, width

Seconds = dict[str, list[float]]
# One timed call: seconds by stage.
Contender = Callable[[], dict[str, float]]
# Other tools' answers for a file's network, by name; ``TORCH`` is its plain classification. Given:
# the configuration, whose model, batch and threads count, and the input, float32 [N, 3, H, W].
BaselineRuns = Callable[[Configuration, Floats], Mapping[str, Callable[[], Any]]]


@dataclass(frozen=True)
class Row:
    """What was measured of one configuration.

    Attributes:
        configuration: what ran.
        seconds: raw samples, one a round: of each of ``bench_stages.STAGES`` that it has, of
            ``ANSWER`` and ``WHOLE``; of baselines ``ANSWER`` alone.
        baseline: whether it is another tool.
    """

    configuration: Configuration
    seconds: Seconds
    baseline: bool = False


@dataclass(frozen=True)
class Footprint:
    """Fresh processes up to their first map, by the file's default method and without TFT.

    Attributes:
        configuration: the plain one, of batch 1.
        seconds: raw samples of ``import``, ``load``, ``first map`` and their ``total``.
        peak_bytes: most memory held, each time; None where the system does not tell.
    """

    configuration: Configuration
    seconds: Seconds
    peak_bytes: list[int | None]


@dataclass(frozen=True)
class Benchmark:
    """Everything measured in one run; all rows took turns in the same rounds."""

    rounds: int
    image: str
    rows: tuple[Row, ...]
    footprints: tuple[Footprint, ...]
    left_out: tuple[LeftOut, ...]

    def plain_of(self, row: Row) -> Row | None:
        """Find plain classification of the same run: by the same engine, else by torch."""
        wanted = row.configuration.plain
        if row.baseline:
            wanted = replace(wanted, engine=TORCH)
        return next((each for each in self.rows if each.configuration == wanted), None)


def steps(plan: Plan, rounds: int) -> int:
    """Count the steps that ``measure`` reports to its ``tick``: groups twice, and rounds."""
    return 2 * len({each.plain for each in plan.configurations}) + rounds


def measure(
    plan: Plan,
    image: str | None = None,
    rounds: int = 20,
    baselines: BaselineRuns | None = None,
    tick: Tick | None = None,
) -> Benchmark:
    """Time every planned configuration in interleaved rounds.

    Args:
        plan: from ``bench_plan.plan``.
        image: an image file; None: a generated one, as JPEG of 500 x 375 pixels or, where a
            file takes one size only, of that.
        rounds: how often each configuration is timed.
        baselines: other tools to run beside.
        tick: told what is done and how many steps that was, see ``steps``.

    Raises:
        RequestError: rounds below 1, nothing can be run, an image of a size the file excludes.
        ImageError: the image cannot be read.
    """
    if rounds < 1:
        raise RequestError(f"rounds must be 1 or more, not {rounds}")
    told: Tick = tick or (lambda _name, _steps: None)
    left_out = list(plan.left_out)
    contenders: dict[Configuration, Contender] = {}
    with tempfile.TemporaryDirectory(prefix="whycam-bench-") as folder:
        shown: dict[str, str] = {}
        for group in _groups(plan):
            told(f"loading {Path(group.model).name}, {group.engine} {group.precision}", 1)
            if group.model not in shown:
                shown[group.model] = image or _generated(read_manifest(group.model), folder)
            own = [each for each in plan.configurations if each.plain == group]
            contenders |= _opened(own, shown[group.model], left_out)
        if not any(each.method for each in contenders):
            raise nothing_remains(left_out)
        footprints = []
        for group in dict.fromkeys(replace(each.plain, batch=1) for each in contenders):
            told(f"starting {Path(group.model).name}, {group.engine} {group.precision}", 1)
            footprints.append(_footprint(group, shown[group.model], min(rounds, _STARTS)))
        others = _measure_baselines(contenders, shown, baselines) if baselines is not None else {}
        samples = run_interleaved({**contenders, **others}, rounds, tick=told)
    rows = tuple(Row(each, _by_stage(samples[each]), each in others) for each in samples)
    return Benchmark(rounds, image or "generated", rows, tuple(footprints), tuple(left_out))


def _groups(plan: Plan) -> list[Configuration]:
    return list(dict.fromkeys(each.plain for each in plan.configurations))


def _by_stage(samples: list[dict[str, float]]) -> Seconds:
    return {stage: [each[stage] for each in samples] for stage in samples[0]}


def _generated(manifest: Manifest, folder: str) -> str:
    """Write a JPEG file that takes as long to decode as a photo: waves, edges and grain."""
    from PIL import Image

    size = manifest.source_size or _PICTURE_SIZE
    path = Path(folder) / f"{size[1]}x{size[0]}.jpg"
    grain = np.random.default_rng(0).normal(0, 6, (3, *size))
    pixels = np.clip(128 + 40 * wave_pattern(0, size) + grain, 0, 255).astype(np.uint8)
    Image.fromarray(np.moveaxis(pixels, 0, -1)).save(path, quality=90)
    return str(path)


def _opened(
    group: list[Configuration], image: str, left_out: list[LeftOut]
) -> dict[Configuration, Contender]:
    """Load one model, engine and batch; keep the configurations that run, each tried once."""
    plain = group[0].plain
    what = f"{Path(plain.model).name}, {plain.engine} {plain.precision}, batch {plain.batch}"
    try:
        loaded = load(plain.model, plain.engine, plain.threads, precision=plain.precision)
    except (EngineError, MissingExtraError, ModelFileError) as error:
        left_out.append(LeftOut(what, str(error)))
        return {}
    found: dict[Configuration, Contender] = {}
    for each in group:
        run = _contender(loaded, each, [image] * each.batch)
        try:
            run()
        except EngineError as error:
            left_out.append(LeftOut(f"{what}, {each.method or 'classification'}", str(error)))
        else:
            found[each] = run
    return found


def _contender(explainer: Explainer, what: Configuration, sources: Sequence[str]) -> Contender:
    if what.method is None:
        return lambda: classify_in_stages(explainer, sources)
    plan = plan_request(explainer.manifest, what.method, what.tft)
    return lambda: explain_in_stages(explainer, sources, plan)[0]


def _measure_baselines(
    contenders: Mapping[Configuration, Contender], shown: Mapping[str, str], baselines: BaselineRuns
) -> dict[Configuration, Contender]:
    """Set up other tools, once for each model, batch and number of threads."""
    found: dict[Configuration, Contender] = {}
    for each in contenders:
        base = replace(each.plain, engine=TORCH, precision="fp32")
        if base in found:
            continue
        spec = read_manifest(each.model).preprocess
        view, _ = crop_resized(read_image(shown[each.model]), spec)
        for name, run in baselines(base, normalise(np.stack([view] * each.batch), spec)).items():
            method: Method | None = None if name == TORCH else "gradcam"
            found[replace(base, engine=name, method=method)] = _answering(run)
    return found


def _answering(run: Callable[[], Any]) -> Contender:
    return lambda: {ANSWER: measure_seconds(run)}


# VmHWM where there is one: Linux starts a program's ru_maxrss at what its parent held.
_FIRST_MAP = """
import json, sys, time
marks = [time.perf_counter()]
import whycam
marks.append(time.perf_counter())
model, image, engine, precision, threads = sys.argv[1:]
explainer = whycam.load(model, engine, int(threads), precision=precision)
marks.append(time.perf_counter())
explainer.explain(image)
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


def _footprint(group: Configuration, image: str, times: int) -> Footprint:
    given = [group.model, image, group.engine, group.precision, str(group.threads)]
    seconds: Seconds = {"import": [], "load": [], "first map": [], "total": []}
    peaks: list[int | None] = []
    for _ in range(times):
        try:
            printed = run_python(["-c", _FIRST_MAP, *given])
        except EngineError as error:
            raise EngineError(
                f"{group.model} could not be explained in a fresh process: {error}"
            ) from error
        found = json.loads(printed.splitlines()[-1])
        begin, imported, loaded, mapped = found["marks"]
        spent = (imported - begin, loaded - imported, mapped - loaded, mapped - begin)
        for samples, value in zip(seconds.values(), spent, strict=True):
            samples.append(value)
        peaks.append(found["peak"])
    return Footprint(group, seconds, peaks)
