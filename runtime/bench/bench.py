"""Time explanations stage by stage: engines, precisions and methods take turns."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..cam import Method
from ..detection_plan import plan_detection
from ..engines.selftest import make_pattern, wave_pattern
from ..errors import EngineError, MissingExtraError, ModelFileError, RequestError
from ..explainer import Explainer
from ..load import load
from ..manifest import Manifest
from ..onnxfile import read_manifest
from ..pixels import read_pixels
from ..preprocess import crop_resized, normalise
from ..prompts import Prompts, prompts_or_examples, write_prompts
from ..request import plan_request
from ..sweep import Floats
from ..timing import Tick, measure_seconds, run_interleaved
from .footprint import Footprint, measure_footprint
from .plan import Configuration, LeftOut, Plan, nothing_remains
from .stages import ANSWER, classify_in_stages, detect_in_stages, explain_in_stages

TORCH = "torch"
# Other tools that can be compared with, and their packages.
BASELINES = {"pytorch-grad-cam": "grad-cam", "torchcam": "torchcam"}
_PROCESSES = 3  # fresh processes that start-up is measured in
_IMAGE_SIZE = (375, 500)  # height, width

Seconds = dict[str, list[float]]  # samples by stage
# One timed call: seconds by stage.
Contender = Callable[[], dict[str, float]]
# Set up other tools for a configuration and its input, float32 [N, 3, H, W]; return a function to
# time for each tool, and plain classification as ``TORCH``.
BaselineRuns = Callable[[Configuration, Floats], Mapping[str, Callable[[], Any]]]


@dataclass(frozen=True)
class Row:
    """The timings of one configuration.

    Attributes:
        configuration: what was timed.
        seconds: raw samples, one a round, by stage: ``stages.STAGES``, ``ANSWER`` and ``WHOLE``;
            for another tool ``ANSWER`` alone.
        baseline: whether it is another tool.
    """

    configuration: Configuration
    seconds: Seconds
    baseline: bool = False


@dataclass(frozen=True)
class Benchmark:
    """The results of one run, whose rows were timed in the same interleaved rounds.

    Attributes:
        rounds: samples of each row.
        image: the image file, or ``generated``.
        rows: one for each configuration and other tool.
        footprints: one for each file, engine, precision and number of threads.
        left_out: what could not be measured, and why.
    """

    rounds: int
    image: str
    rows: tuple[Row, ...]
    footprints: tuple[Footprint, ...]
    left_out: tuple[LeftOut, ...]

    def plain_of(self, row: Row) -> Row | None:
        """Find the row of plain classification by the same engine; for another tool, by torch."""
        plain = row.configuration.plain
        if row.baseline:
            plain = replace(plain, engine=TORCH)
        return next((other for other in self.rows if other.configuration == plain), None)


def count_steps(plan: Plan, rounds: int) -> int:
    """Count the steps that ``measure`` reports to its ``tick``: each load, start-up and round."""
    return 2 * len(_plain_configurations(plan)) + rounds


def measure(
    plan: Plan,
    image: str | None = None,
    rounds: int = 20,
    baselines: BaselineRuns | None = None,
    tick: Tick | None = None,
    prompts: str | None = None,
) -> Benchmark:
    """Time every planned configuration in interleaved rounds.

    Args:
        plan: from ``plan.plan``.
        image: an image file; None: a generated JPEG of 500 x 375 pixels, or of the one size that
            a file takes; an array for networks that take no 8-bit RGB images.
        rounds: how often each configuration is timed.
        baselines: sets up other tools to time as well.
        tick: called with what is done and the steps done since, see ``count_steps``.
        prompts: of files that take class embeddings; by default five example classes.

    Raises:
        RequestError: rounds below 1, nothing can be run, or an image of a size the file excludes.
        ImageError: the image cannot be read.
    """
    if rounds < 1:
        raise RequestError(f"rounds must be 1 or more, not {rounds}")
    report: Tick = tick or (lambda _name, _steps: None)
    left_out = list(plan.left_out)
    contenders: dict[Configuration, Contender] = {}
    with tempfile.TemporaryDirectory(prefix="whycam-bench-") as folder:
        images: dict[str, str] = {}  # by model
        classes: dict[str, Prompts | None] = {}
        for plain in _plain_configurations(plan):
            report(f"loading {Path(plain.model).name}, {plain.engine} {plain.precision}", 1)
            if plain.model not in images:
                manifest = read_manifest(plain.model)
                images[plain.model] = image or _write_image(manifest, folder)
                classes[plain.model] = prompts_or_examples(manifest, prompts)
            alike = [each for each in plan.configurations if each.plain == plain]
            contenders |= _load_contenders(
                plain, alike, images[plain.model], classes[plain.model], left_out
            )
        if not any(each.method for each in contenders):
            raise nothing_remains(left_out)
        footprints = []
        for plain in dict.fromkeys(replace(each.plain, batch=1) for each in contenders):
            report(f"starting {Path(plain.model).name}, {plain.engine} {plain.precision}", 1)
            own = classes[plain.model]
            file = None if own is None else write_prompts(f"{folder}/prompts.npz", own)
            times = min(rounds, _PROCESSES)
            footprints.append(measure_footprint(plain, images[plain.model], times, file))
        others = _load_baselines(contenders, images, baselines) if baselines is not None else {}
        samples = run_interleaved({**contenders, **others}, rounds, tick=report)
    rows = tuple(Row(each, _by_stage(samples[each]), each in others) for each in samples)
    return Benchmark(rounds, image or "generated", rows, tuple(footprints), tuple(left_out))


def _plain_configurations(plan: Plan) -> list[Configuration]:
    """List what is loaded: a file in one engine, precision, batch size and number of threads."""
    return list(dict.fromkeys(each.plain for each in plan.configurations))


def _by_stage(samples: list[dict[str, float]]) -> Seconds:
    return {stage: [sample[stage] for sample in samples] for stage in samples[0]}


def _write_image(manifest: Manifest, folder: str) -> str:
    """Write a JPEG file that takes as long to decode as a photo: waves, edges and grain.

    An array where the network takes no 8-bit RGB images.
    """
    from PIL import Image

    size = manifest.source_size or _IMAGE_SIZE
    if not manifest.preprocess.accepts_rgb:
        stored = Path(folder) / f"{size[1]}x{size[0]}.npy"
        np.save(stored, make_pattern(0, size, manifest.preprocess))
        return str(stored)
    path = Path(folder) / f"{size[1]}x{size[0]}.jpg"
    grain = np.random.default_rng(0).normal(0, 6, (3, *size))
    pixels = np.clip(128 + 40 * wave_pattern(0, size) + grain, 0, 255).astype(np.uint8)
    Image.fromarray(np.moveaxis(pixels, 0, -1)).save(path, quality=90)
    return str(path)


def _load_contenders(
    plain: Configuration,
    configurations: Sequence[Configuration],
    image: str,
    prompts: Prompts | None,
    left_out: list[LeftOut],
) -> dict[Configuration, Contender]:
    """Load a file in an engine, run each configuration once, and return those that can run."""
    what = f"{Path(plain.model).name}, {plain.engine} {plain.precision}, batch {plain.batch}"
    try:
        explainer = load(
            plain.model,
            plain.engine,
            plain.threads,
            precision=plain.precision,
            prompts=prompts,
        )
    except (EngineError, MissingExtraError, ModelFileError) as error:
        left_out.append(LeftOut(what, str(error)))
        return {}
    contenders: dict[Configuration, Contender] = {}
    for configuration in configurations:
        run = _contender(explainer, configuration, [image] * configuration.batch)
        try:
            run()
        except EngineError as error:
            method = configuration.method or "classification"
            left_out.append(LeftOut(f"{what}, {method}", str(error)))
        else:
            contenders[configuration] = run
    return contenders


def _contender(
    explainer: Explainer, configuration: Configuration, sources: Sequence[str]
) -> Contender:
    if configuration.method is None:
        return lambda: classify_in_stages(explainer, sources)
    if configuration.detections:
        spread = _spread_targets(explainer.manifest, configuration.detections)
        objects = plan_detection(
            explainer.manifest, spread, configuration.method, configuration.tft
        )
        return lambda: detect_in_stages(explainer, sources, objects)
    plan = plan_request(explainer.manifest, configuration.method, configuration.tft)
    return lambda: explain_in_stages(explainer, sources, plan)[0]


def _spread_targets(manifest: Manifest, count: int) -> list[tuple[int, int]]:
    """Choose candidates from all levels: their cost does not depend on what an image shows."""
    assert manifest.detector is not None
    last = manifest.detector.candidates - 1
    return [(int(place), 0) for place in np.linspace(0, last, count + 2)[1:-1]]


def _load_baselines(
    configurations: Iterable[Configuration],
    images: Mapping[str, str],
    baselines: BaselineRuns,
) -> dict[Configuration, Contender]:
    """Set up other tools, once for each model, batch and number of threads."""
    contenders: dict[Configuration, Contender] = {}
    for each in configurations:
        base = replace(each.plain, engine=TORCH, precision="fp32")
        if base in contenders:
            continue
        spec = read_manifest(each.model).preprocess
        view, _ = crop_resized(read_pixels(images[each.model], spec), spec)
        for name, run in baselines(base, normalise(np.stack([view] * each.batch), spec)).items():
            method: Method | None = None if name == TORCH else "gradcam"
            contenders[replace(base, engine=name, method=method)] = _time_answer(run)
    return contenders


def _time_answer(run: Callable[[], Any]) -> Contender:
    return lambda: {ANSWER: measure_seconds(run)}
