"""Check a model file in each engine and precision against ONNX Runtime on the CPU in fp32."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np

from ..comparison import Comparison
from ..engines.base import Precision
from ..engines.plan import is_plan
from ..engines.registry import CHECKED_AT_EXPORT, ENGINES
from ..engines.selftest import PATTERNS, make_pattern, tolerances_of
from ..errors import EngineError, RequestError
from ..manifest import Manifest
from ..pixels import Pixels
from ..preprocess import resize
from ..timing import Tick
from .compare import Arrays, compare
from .job import ANSWERS, IMAGES, PLANS, Answers, Job, run_job
from .privacy import redact

_PATTERN_SIZE = (300, 400)  # height, width


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """Settings of an examination.

    Attributes:
        engines: to check; those named must be ready. None: all that are ready.
        gpu, threads, cache: see ``base.EngineSettings``.
        prompts: of models that take class embeddings; None: the examples of their references.
        rounds: how often each call is timed.
        limit_s: seconds that one engine may take for one model; building for TensorRT takes
            minutes.

    Raises:
        RequestError: a value is unknown or out of range.
    """

    engines: tuple[str, ...] | None = None
    gpu: int = 0
    threads: int | None = None
    cache: str | None = None
    prompts: str | None = None
    rounds: int = 10
    limit_s: float = 1800

    def __post_init__(self) -> None:
        for name in self.engines or ():
            if name not in ENGINES:
                raise RequestError(
                    f"there is no engine '{name}'; choose from: {', '.join(sorted(ENGINES))}"
                )
        if self.rounds < 1 or self.limit_s <= 0:
            raise RequestError(
                f"rounds and limit must be positive, not {self.rounds} and {self.limit_s}"
            )
        if self.gpu < 0:
            raise RequestError(f"gpu must be 0 or more, not {self.gpu}")
        if self.threads is not None and self.threads < 1:
            raise RequestError(f"threads must be 1 or more, not {self.threads}")


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """The result of running a model file in one engine and precision.

    Attributes:
        model: name of the file.
        digest, file_precision: from its manifest.
        engine, precision: that it ran in.
        outcome: ``right``; ``wrong``: a difference exceeds the tolerance; ``failed``: it crashed,
            took too long or reported an error; ``not possible``: the engine cannot compute in
            this precision here.
        why: reason of an outcome other than right.
        description: of the engine, by itself.
        comparison: with ONNX Runtime on the CPU in fp32; None for that itself.
        references: comparison with the export's reference answers, see ``selftest.check``.
        method: the one that was timed.
        median_ms: of ``classification``, ``explanation`` and ``tft`` of one image, from the
            prepared input on.
    """

    model: str
    digest: str
    file_precision: str
    engine: str
    precision: str
    outcome: Literal["right", "wrong", "failed", "not possible"]
    why: str | None = None
    description: str | None = None
    comparison: Comparison | None = None
    references: tuple[Comparison, ...] = ()
    method: str | None = None
    median_ms: dict[str, float] = {}


def check_model(
    model: Path,
    manifest: Manifest,
    onnx: Path | None,
    images: Sequence[Pixels],
    ready: Sequence[str],
    settings: Settings,
    tick: Tick,
) -> Iterator[Check]:
    """Check a model in every engine and precision that can run here.

    Args:
        model: an ONNX file, or a TensorRT plan.
        manifest: of the model.
        onnx: the file that a plan was built from; None for an ONNX file.
        images: from ``read_pixels``, to explain in addition to the test patterns.
        ready: engines that can be loaded here.
        settings: of the examination.
        tick: called with what is done and the steps done since.
    """
    with tempfile.TemporaryDirectory(prefix="whycam-doctor-") as temporary:
        folder = Path(temporary)
        _store_images(folder, manifest, images)
        if onnx is not None and PLANS not in ready:
            why = f"the engine {PLANS} is not ready here, and nothing else runs plans"
            yield _failed(model, manifest, PLANS, "fp32", why)
            return
        tick(f"{model.name}: reference", 1)
        reference = _Run(onnx or model, CHECKED_AT_EXPORT, "fp32", folder, settings, None)
        base = reference.answers
        if onnx is None:
            yield reference.check(model, manifest, None)
        for name, precision in _list_runs(model, ready, settings):
            tick(f"{model.name}: {name} {precision}", 1)
            if base is None:
                yield _failed(model, manifest, name, precision, "the reference failed")
                continue
            run = _Run(model, name, precision, folder, settings, base.targets)
            yield run.check(model, manifest, reference)


def _list_runs(
    model: Path, ready: Sequence[str], settings: Settings
) -> Iterator[tuple[str, Precision]]:
    """List the engines and precisions to check a model in, but for the reference's."""
    for name in ready:
        if (name == PLANS) != is_plan(model) or name not in (settings.engines or ready):
            continue
        for precision in ENGINES[name].precisions:
            if (name, precision) != (CHECKED_AT_EXPORT, "fp32"):
                yield name, precision


def _store_images(folder: Path, manifest: Manifest, images: Sequence[Pixels]) -> None:
    """Store the test patterns and the images, resized where the graph takes one size only."""
    size, spec = manifest.source_size, manifest.preprocess
    inputs = [make_pattern(index, size or _PATTERN_SIZE, spec) for index in range(PATTERNS)]
    for image in images:
        if size is not None and image.shape[:2] != size:
            image = resize(image, size, "bicubic")
        inputs.append(image)
    arrays: dict[str, Any] = {str(index): image for index, image in enumerate(inputs)}
    np.savez(folder / IMAGES, **arrays)


class _Run:
    """Runs a model in one engine and precision, in a process of its own.

    Attributes:
        answers, arrays: the engine's; None and empty if it failed.
        outcome, why: how it failed, and the reason.
    """

    def __init__(
        self,
        model: Path,
        engine: str,
        precision: Precision,
        folder: Path,
        settings: Settings,
        targets: tuple[int, ...] | None,
    ) -> None:
        self.engine, self.precision = engine, precision
        self.answers: Answers | None = None
        self.arrays: Arrays = {}
        self.outcome: Literal["failed", "not possible"] = "failed"
        self.why = ""
        job = Job(
            kind="answers",
            engine=engine,
            gpu=settings.gpu,
            model=str(model),
            precision=precision,
            threads=settings.threads,
            cache=settings.cache,
            prompts=settings.prompts,
            targets=targets,
            rounds=settings.rounds,
        )
        paths = [str(model), str(folder)]
        paths += [path for path in (settings.cache, settings.prompts) if path]
        try:
            answers: Answers = run_job(job, folder, settings.limit_s, Answers)
        except EngineError as error:
            self.why = redact(str(error), paths)
            return
        if answers.error is not None:
            self.why = redact(answers.error, paths)
            # As on a processor without bf16, which is known only once the file is loaded.
            if not answers.loaded and precision != "fp32":
                self.outcome = "not possible"
            return
        with np.load(folder / ANSWERS) as stored:
            self.arrays = {name: stored[name] for name in stored.files}
        self.answers = answers

    def check(self, model: Path, manifest: Manifest, reference: _Run | None) -> Check:
        """Report the answers, compared with the reference unless this is the reference."""
        answers = self.answers
        if answers is None:
            return _failed(model, manifest, self.engine, self.precision, self.why, self.outcome)
        exact = (manifest.precision, self.precision) == ("fp32", "fp32")
        comparison = None
        wrong = list(answers.wrong)
        if reference is not None:
            allowed = tolerances_of(manifest, self.precision)
            comparison = compare(reference.arrays, self.arrays, answers.targets, allowed, exact)
            wrong += comparison.problems
        return Check(
            model=model.name,
            digest=manifest.digest,
            file_precision=manifest.precision,
            engine=self.engine,
            precision=self.precision,
            outcome="wrong" if wrong else "right",
            why="; ".join(wrong) or None,
            description=answers.description,
            comparison=comparison,
            references=answers.references,
            method=answers.method,
            median_ms={
                name: float(np.median(samples)) for name, samples in answers.milliseconds.items()
            },
        )


def _failed(
    model: Path,
    manifest: Manifest,
    engine: str,
    precision: str,
    why: str,
    outcome: Literal["failed", "not possible"] = "failed",
) -> Check:
    return Check(
        model=model.name,
        digest=manifest.digest,
        file_precision=manifest.precision,
        engine=engine,
        precision=precision,
        outcome=outcome,
        why=why,
    )
