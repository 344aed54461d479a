"""Run one engine in a process of its own, so that a driver's crash ends only that process.

Run as ``python -m whycam.runtime.doctor.job FOLDER``. It reads ``job.json`` and, for answers,
``images.npz`` in that folder, and writes ``result.json`` and, for answers, ``answers.npz``.
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
from ..engines.detection_selftest import find_problem as find_detector_problem
from ..engines.nvidia import Driver, driver
from ..engines.prompted import PromptedEngine
from ..engines.registry import ENGINES
from ..engines.selftest import check, tolerances_of
from ..errors import EngineError, WhyCamError
from ..explainer import Explainer
from ..isolation import run_python
from ..load import load
from ..manifest import Manifest
from ..onnxfile import read_manifest
from ..pipeline import prepare
from ..pixels import Pixels
from ..prompts import prompts_or_examples
from ..request import find_refusal
from ..timing import run_interleaved
from .detections import explain_candidates, time_detections

JOB, IMAGES, RESULT, ANSWERS = "job.json", "images.npz", "result.json", "answers.npz"
PLANS = "tensorrt"  # the engine that runs TensorRT plans, and nothing else
_PLAN_LIBRARIES = ("tensorrt", "tensorrt_rtx")
_WARM_UP = 2


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """The work of one process.

    Attributes:
        kind: ``driver``: query NVIDIA's driver; ``survey``: load an engine's library; ``answers``:
            explain images with an engine.
        engine, model, precision, gpu, threads, cache: see ``load.load``.
        prompts: of a file that takes class embeddings; None: the example ones of its references.
        targets: the class to explain in each image; None: the most probable one.
        rounds: how often each kind of call is timed.
    """

    kind: Literal["driver", "survey", "answers"]
    engine: str = ""
    gpu: int = 0
    model: str = ""
    precision: Precision = "fp32"
    threads: int | None = None
    cache: str | None = None
    prompts: str | None = None
    targets: tuple[int, ...] | None = None
    rounds: int = 10


class Survey(msgspec.Struct, frozen=True, kw_only=True):
    """Whether an engine's library can be loaded.

    Attributes:
        installed: whether its package is installed.
        version: of its library.
        devices: names of the devices that it can use.
        problem: why it cannot be loaded, and what to do.
    """

    installed: bool = True
    version: str | None = None
    devices: tuple[str, ...] = ()
    problem: str | None = None


class Answers(msgspec.Struct, frozen=True, kw_only=True):
    """An engine's answers for images; its arrays are in ``answers.npz``, as ``<image>.<name>``.

    Attributes:
        description: of the engine.
        targets: the classes explained.
        methods: those whose maps were computed.
        method: the one that TFT ran with, and that was timed.
        references: comparison with the export's reference answers, see ``selftest.check``.
        wrong: the differences there that exceed the tolerance, in words.
        milliseconds: raw samples, by ``classification``, ``explanation`` and ``tft``.
        error: why there are no answers; ``loaded`` tells whether the file could be loaded.
    """

    description: str = ""
    targets: tuple[int, ...] = ()
    methods: tuple[str, ...] = ()
    method: str = ""
    references: tuple[Comparison, ...] = ()
    wrong: tuple[str, ...] = ()
    milliseconds: dict[str, tuple[float, ...]] = {}
    error: str | None = None
    loaded: bool = True


def survey(engine: str, gpu: int) -> Survey:
    """Load an engine's library and list its devices."""
    backend = ENGINES[engine]
    if engine == PLANS:
        return _survey_plan_libraries(backend.extra)
    if backend.absent is not None:
        return Survey(installed=False, problem=backend.absent)
    if backend.plugin:
        return _survey_plugin(engine, gpu)
    try:
        library = importlib.import_module(backend.package)
    except Exception as error:  # whatever a broken installation raises
        return Survey(problem=f"{backend.package} is installed, but cannot be imported: {error}")
    version = str(getattr(library, "__version__", "unknown")).split("-")[0]
    if engine == "openvino":
        from ..engines.ov import core

        devices = [
            f"{device}: {core().get_property(device, 'FULL_DEVICE_NAME')}"
            for device in core().available_devices
        ]
        return Survey(version=version, devices=tuple(devices))
    if engine == "onnxruntime":
        return Survey(version=version, devices=("CPU",))
    nvidia = driver()
    problem = nvidia.problem
    if backend.provider is not None:
        from ..engines.ort_gpu import problem as find_problem
        from ..engines.ort_gpu import try_memory
        from ..engines.ort_options import CUDA, TENSORRT

        provider = next(one for one in (CUDA, TENSORRT) if one.engine == engine)
        problem = find_problem(provider, gpu, library) or try_memory(library, gpu)
    return Survey(version=version, devices=_gpu_names(nvidia), problem=problem)


def _survey_plugin(engine: str, gpu: int) -> Survey:
    """Load a plugin of ONNX Runtime, and list the devices that it offers."""
    from ..engines import ort_plugins

    try:
        library = importlib.import_module("onnxruntime")
    except Exception as error:  # whatever a broken installation raises
        return Survey(problem=f"onnxruntime cannot be imported: {error}")
    place = ort_plugins.place_of(engine)
    problem = ort_plugins.problem(place, gpu, library)
    if problem is not None:
        return Survey(problem=problem)
    found = ort_plugins.devices(place, library)
    names = tuple(ort_plugins.describe(device) for device in found)
    version = str(found[0].ep_metadata.get("version", "unknown")).split("+")[0]
    return Survey(version=version, devices=names)


def _gpu_names(nvidia: Driver) -> tuple[str, ...]:
    return tuple(f"GPU {gpu.index}: {gpu.name}" for gpu in nvidia.gpus)


def _survey_plan_libraries(extra: str) -> Survey:
    """Load the libraries that run plans; one of the two is enough."""
    installed = [name for name in _PLAN_LIBRARIES if find_spec(name) is not None]
    if not installed:
        return Survey(installed=False, problem=f'not installed: pip install "whycam[{extra}]"')
    try:
        versions = [f"{name} {importlib.import_module(name).__version__}" for name in installed]
        importlib.import_module("cuda.bindings.driver")
    except Exception as error:  # whatever a broken installation raises
        return Survey(
            problem=f"{' or '.join(installed)} and cuda-bindings: installed, but cannot be "
            f'imported: {error}; pip install "whycam[{extra}]"'
        )
    nvidia = driver()
    return Survey(version=", ".join(versions), devices=_gpu_names(nvidia), problem=nvidia.problem)


def methods_of(manifest: Manifest) -> tuple[Method, ...]:
    """List the methods to compare: all but Score-CAM, which takes thousands of evaluations."""
    return tuple(method for method in manifest.methods if method != "scorecam")


def answers(job: Job, images: list[Pixels], folder: Path) -> Answers:
    """Explain images with a file in an engine, and write all its answers to ``answers.npz``.

    Raises:
        WhyCamError: the engine fails.
    """
    try:
        explainer = load(
            job.model,
            job.engine,
            job.threads,
            precision=job.precision,
            cache=job.cache,
            gpu=job.gpu,
            prompts=prompts_or_examples(read_manifest(job.model), job.prompts),
            check=False,  # an engine with wrong answers is reported, not refused
        )
    except WhyCamError as error:
        return Answers(error=str(error), loaded=False)
    manifest = explainer.manifest
    method: Method = manifest.map_method or "gradcam"
    if manifest.detector is not None:
        return _detector_answers(job, explainer, method, images, folder)
    tft = find_refusal(manifest, method, True) is None
    # Probabilities are computed in batches, maps one by one.
    rows = explainer.classify(images)
    targets = job.targets or tuple(int(row.argmax()) for row in rows)
    arrays: dict[str, Any] = {}
    for index, (image, target) in enumerate(zip(images, targets, strict=True)):
        arrays[f"{index}.probabilities"] = rows[index]
        for name, values in _explain_image(explainer, image, target, method, tft):
            arrays[f"{index}.{name}"] = values
    np.savez(folder / ANSWERS, **arrays)
    written = read_manifest(job.model)  # whose reference answers are of its example classes
    engine = explainer.engine
    unprompted = engine.unprompted if isinstance(engine, PromptedEngine) else engine
    references = check(unprompted, written, tolerances_of(manifest, job.precision))
    return Answers(
        description=explainer.engine.description,
        targets=targets,
        methods=methods_of(manifest),
        method=method,
        references=tuple(references),
        wrong=tuple(text for one in references if (text := one.complaint)),
        milliseconds=_measure(explainer, images[0], method, tft, job.rounds),
    )


def _detector_answers(
    job: Job, explainer: Explainer, method: Method, images: list[Pixels], folder: Path
) -> Answers:
    """Answer with a detector, of which a candidate of each image is explained."""
    manifest = explainer.manifest
    targets, arrays = explain_candidates(explainer, images, job.targets)
    np.savez(folder / ANSWERS, **arrays)  # type: ignore[arg-type]
    wrong = find_detector_problem(
        explainer.engine.run, manifest, tolerances_of(manifest, job.precision)
    )
    return Answers(
        description=explainer.engine.description,
        targets=targets,
        methods=manifest.methods,
        method=method,
        wrong=() if wrong is None else (wrong,),
        milliseconds=time_detections(
            explainer, images[0], targets[0], method, job.rounds, _WARM_UP
        ),
    )


def _explain_image(
    explainer: Explainer, image: Pixels, target: int, method: Method, tft: bool
) -> Iterator[tuple[str, Any]]:
    if explainer.manifest.top is not None:
        target = -1  # the graph has no input for the class
    if "raw" in explainer.manifest.outputs:
        feeds = {
            "image": prepare([image], explainer.manifest).inputs,
            "target": np.array([[target]], np.int64),
        }
        yield from explainer.engine.run(feeds, ["activations", "gradients"]).items()
    for name, explanation in explainer.explain(
        image, target, methods_of(explainer.manifest)
    ).items():
        yield f"map.{name}", explanation.original_map
    if tft:
        best = explainer.explain(image, target, method, tft=True)
        yield "mask", best.mask
        yield "threshold", np.nan if best.threshold is None else best.threshold
        yield "masked", (1 + best.rpi) * best.probability


def _measure(
    explainer: Explainer, image: Pixels, method: Method, tft: bool, rounds: int
) -> dict[str, tuple[float, ...]]:
    """Measure each kind of call in turn, in ms from the prepared input to the answer."""
    plain = explainer.plan(method)
    calls: dict[str, Callable[[], dict[str, float]]] = {
        "classification": lambda: classify_in_stages(explainer, [image]),
        "explanation": lambda: explain_in_stages(explainer, [image], plain)[0],
    }
    if tft:
        with_tft = explainer.plan(method, True)
        calls["tft"] = lambda: explain_in_stages(explainer, [image], with_tft)[0]
    samples = run_interleaved(calls, rounds, _WARM_UP)
    return {name: tuple(1e3 * one[ANSWER] for one in runs) for name, runs in samples.items()}


def run_job(job: Job, folder: Path, limit_s: float, kind: type[Any]) -> Any:
    """Run a job in a process of its own.

    Args:
        job: the work.
        folder: the process reads and writes its files there.
        limit_s: seconds after which it is stopped.
        kind: type of the result: ``Driver``, ``Survey`` or ``Answers``.

    Raises:
        EngineError: the process crashed or took too long.
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
