"""Run one engine in a process of its own, so that a driver's crash ends only that process.

Run as ``python -m whycam.runtime.doctor.job FOLDER``, which holds ``job.json`` and, for answers,
``images.npz``. Leaves ``result.json`` there and, of answers, ``answers.npz``.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np

from ..bench.stages import ANSWER, classify_in_stages, explain_in_stages
from ..cam import Method
from ..comparison import Comparison
from ..engines.base import Precision
from ..engines.nvidia import Driver, driver
from ..engines.registry import ENGINES
from ..engines.selftest import check, tolerances_of
from ..errors import EngineError, RequestError, WhyCamError
from ..explainer import Explainer, load
from ..images import RGBImage
from ..isolation import run_python
from ..manifest import Manifest
from ..pipeline import prepare
from ..request import plan_request
from ..timing import run_interleaved

JOB, IMAGES, RESULT, ANSWERS = "job.json", "images.npz", "result.json", "answers.npz"
PLANS = "tensorrt"  # the engine for TensorRT plans, and for nothing else
_FOR_PLANS = ("tensorrt", "tensorrt_rtx")
_WARM_UP = 2


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked of an engine.

    Attributes:
        kind: ``driver``: of NVIDIA's, what it says; ``survey``: whether an engine loads;
            ``answers``: what it answers for images.
        engine, model, precision, gpu, threads, cache: see ``explainer.load``.
        targets: the class to explain of each image; None: the most probable one.
        rounds: how often each kind of call is timed.
    """

    kind: Literal["driver", "survey", "answers"]
    engine: str = ""
    gpu: int = 0
    model: str = ""
    precision: Precision = "fp32"
    threads: int | None = None
    cache: str | None = None
    targets: tuple[int, ...] | None = None
    rounds: int = 10


class Survey(msgspec.Struct, frozen=True, kw_only=True):
    """Whether an engine loads.

    Attributes:
        installed: whether its package is there.
        version: of its library.
        devices: that it can use, for people.
        problem: why it does not load, and what to do.
    """

    installed: bool = True
    version: str | None = None
    devices: tuple[str, ...] = ()
    problem: str | None = None


class Answers(msgspec.Struct, frozen=True, kw_only=True):
    """What an engine did; its arrays are in ``answers.npz``, named ``<image>.<what>``.

    Attributes:
        description: of the engine.
        targets: the classes explained.
        methods: whose maps there are.
        method: the one whose thresholds were looked for, and which was timed.
        swept: whether TFT was run; where not, ``unswept`` says why.
        references: the export's reference answers, see ``selftest.check``.
        wrong: what differs there by more than it may.
        milliseconds: raw samples, by ``classification``, ``explanation`` and ``tft``.
        error: why there is nothing of all this; ``loaded`` tells whether the file was loaded.
    """

    description: str = ""
    targets: tuple[int, ...] = ()
    methods: tuple[str, ...] = ()
    method: str = ""
    swept: bool = False
    unswept: str | None = None
    references: tuple[Comparison, ...] = ()
    wrong: tuple[str, ...] = ()
    milliseconds: dict[str, tuple[float, ...]] = {}
    error: str | None = None
    loaded: bool = True


def survey(engine: str, gpu: int) -> Survey:
    """Load an engine's library and ask for its devices."""
    backend = ENGINES[engine]
    if engine == PLANS:
        return _survey_of_plans(backend.extra)
    if backend.absent is not None:
        return Survey(installed=False, problem=backend.absent)
    try:
        library = importlib.import_module(backend.package)
    except Exception as error:  # whatever a broken installation raises
        return Survey(problem=f"{backend.package} is installed, but cannot be imported: {error}")
    number = str(getattr(library, "__version__", "unknown")).split("-")[0]
    if engine == "openvino":
        from ..engines.ov import core

        devices = [
            f"{each}: {core().get_property(each, 'FULL_DEVICE_NAME')}"
            for each in core().available_devices
        ]
        return Survey(version=number, devices=tuple(devices))
    if engine == "onnxruntime":
        return Survey(version=number, devices=("CPU",))
    found = driver()
    problem = found.problem
    if backend.provider is not None:
        from ..engines.ort_gpu import problem as problem_of
        from ..engines.ort_gpu import try_memory
        from ..engines.ort_options import CUDA, TENSORRT

        place = next(each for each in (CUDA, TENSORRT) if each.engine == engine)
        problem = problem_of(place, gpu, library) or try_memory(library, gpu)
    listed = tuple(f"GPU {each.index}: {each.name}" for each in found.gpus)
    return Survey(version=number, devices=listed, problem=problem)


def _survey_of_plans(extra: str) -> Survey:
    """Examine the two libraries that run plans; either will do."""
    found = [name for name in _FOR_PLANS if find_spec(name) is not None]
    if not found:
        return Survey(installed=False, problem=f'not installed: pip install "whycam[{extra}]"')
    try:
        versions = [f"{name} {importlib.import_module(name).__version__}" for name in found]
        importlib.import_module("cuda.bindings.driver")
    except Exception as error:  # whatever a broken installation raises
        said = f'installed, but cannot be imported: {error}; pip install "whycam[{extra}]"'
        return Survey(problem=f"{' or '.join(found)} and cuda-bindings: {said}")
    gpus = driver()
    return Survey(
        version=", ".join(versions),
        devices=tuple(f"GPU {each.index}: {each.name}" for each in gpus.gpus),
        problem=gpus.problem,
    )


def methods_of(manifest: Manifest) -> tuple[Method, ...]:
    """List the methods to compare: all but Score-CAM, which takes thousands of evaluations."""
    return tuple(method for method in manifest.methods if method != "scorecam")


def answers(job: Job, images: list[RGBImage], folder: Path) -> Answers:
    """Run a file on images in an engine, and store everything it answers in a file.

    Raises:
        WhyCamError: the engine cannot do it.
    """
    try:
        explainer = load(
            job.model,
            job.engine,
            job.threads,
            precision=job.precision,
            cache=job.cache,
            gpu=job.gpu,
            check=False,  # how far it is off is the question
        )
    except WhyCamError as error:
        return Answers(error=str(error), loaded=False)
    manifest = explainer.manifest
    method: Method = manifest.map_method or "gradcam"
    unswept = _unswept(manifest, method)
    # In batches here, one by one below.
    rows = explainer.classify(images)
    targets = job.targets or tuple(int(row.argmax()) for row in rows)
    arrays: dict[str, Any] = {}
    for index, (image, target) in enumerate(zip(images, targets, strict=True)):
        found = dict(_answers_for(explainer, image, target, method, unswept is None))
        arrays |= {f"{index}.{name}": values for name, values in found.items()}
        arrays[f"{index}.probabilities"] = rows[index]
    np.savez(folder / ANSWERS, **arrays)
    references = check(explainer.engine, manifest, tolerances_of(manifest, job.precision))
    return Answers(
        description=explainer.engine.description,
        targets=targets,
        methods=methods_of(manifest),
        method=method,
        swept=unswept is None,
        unswept=unswept,
        references=tuple(references),
        wrong=tuple(text for each in references if (text := each.complaint)),
        milliseconds=_timed(explainer, images[0], method, unswept is None, job.rounds),
    )


def _unswept(manifest: Manifest, method: Method) -> str | None:
    try:
        plan_request(manifest, method, True)
    except RequestError as error:
        return str(error)
    return None


def _answers_for(
    explainer: Explainer, image: RGBImage, target: int, method: Method, swept: bool
) -> Iterator[tuple[str, Any]]:
    if explainer.manifest.top is not None:
        target = -1  # it takes no class
    if "raw" in explainer.manifest.outputs:
        feeds = {
            "image": prepare([image], explainer.manifest).inputs,
            "target": np.array([[target]], np.int64),
        }
        yield from explainer.engine.run(feeds, ["activations", "gradients"]).items()
    maps = explainer.explain(image, target, methods_of(explainer.manifest))
    for each, found in maps.items():
        yield f"map.{each}", found.original_map
    if swept:
        found = explainer.explain(image, target, method, tft=True)
        yield "mask", found.mask
        yield "threshold", found.threshold
        yield "masked", (1 + found.rpi) * found.probability


def _timed(
    explainer: Explainer, image: RGBImage, method: Method, swept: bool, rounds: int
) -> dict[str, tuple[float, ...]]:
    """Time all kinds of call in turn, in ms from the prepared input to the answer."""
    plain, thresholded = (
        explainer.plan(method, tft) for tft in ((None, True) if swept else (None, None))
    )
    calls: dict[str, Callable[[], dict[str, float]]] = {
        "classification": lambda: classify_in_stages(explainer, [image]),
        "explanation": lambda: explain_in_stages(explainer, [image], plain)[0],
    }
    if swept:
        calls["tft"] = lambda: explain_in_stages(explainer, [image], thresholded)[0]
    found = run_interleaved(calls, rounds, _WARM_UP)
    return {name: tuple(1e3 * each[ANSWER] for each in runs) for name, runs in found.items()}


def run_job(job: Job, folder: Path, limit_s: float, kind: type[Any]) -> Any:
    """Run a job in a process of its own.

    Args:
        job: what is asked.
        folder: where it finds its files and leaves its own.
        limit_s: seconds after which it is stopped.
        kind: of result: ``Driver``, ``Survey`` or ``Answers``.

    Raises:
        EngineError: it crashed or took too long.
    """
    result = folder / RESULT
    result.unlink(missing_ok=True)
    (folder / JOB).write_bytes(msgspec.json.encode(job))
    run_python(["-m", "whycam.runtime.doctor.job", str(folder)], limit_s)
    if not result.is_file():
        raise EngineError("its process ended without a result")
    return msgspec.json.decode(result.read_bytes(), type=kind)


def main(folder: Path) -> None:
    """Run the job that a folder describes."""
    job = msgspec.json.decode((folder / JOB).read_bytes(), type=Job)
    result: Driver | Survey | Answers
    if job.kind == "driver":
        result = driver()
    elif job.kind == "survey":
        result = survey(job.engine, job.gpu)
    else:
        with np.load(folder / IMAGES) as stored:
            images = [stored[name] for name in sorted(stored.files, key=int)]
        try:
            result = answers(job, images, folder)
        except WhyCamError as error:
            result = Answers(error=str(error))
    (folder / RESULT).write_bytes(msgspec.json.encode(result))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
