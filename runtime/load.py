"""Load a model file as an explainer."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec

from .cam import Method
from .engines.base import EngineSettings, Hint, Precision
from .engines.opening import open_engine
from .engines.plan import is_plan
from .engines.prompted import PromptedEngine
from .engines.registry import import_engine
from .errors import RequestError
from .explainer import Explainer
from .onnxfile import check_digest, read_manifest
from .prompts import Prompts, apply_prompts, choose_prompts
from .request import Thresholding


def load(
    path: str | os.PathLike[str],
    engine: str = "auto",
    threads: int | None = None,
    memory_mb: int = 256,
    *,
    precision: Precision = "fp32",
    hint: Hint = "latency",
    cache: str | os.PathLike[str] | None = None,
    gpu: int = 0,
    spin: bool = True,
    check: bool = True,
    prompts: Prompts | str | os.PathLike[str] | None = None,
    show_bands: Sequence[int] | None = None,
) -> Explainer:
    """Load an explaining graph.

    Args:
        path: an ONNX file made by ``whycam export``, or a TensorRT plan made by ``whycam build``.
        engine: ``auto`` or a name in ``engines.registry.ENGINES``; ``Explainer.engine`` says which
            one was chosen and why.
        threads: for one run; None lets the engine use every core.
        memory_mb: bound on the activations of one batch, in MiB; larger ones are run in parts.
        precision: ``fp32``, or ``bf16`` where processor and engine have it: faster, and slightly
            different numbers.
        hint: ``latency`` or ``throughput``, see ``EngineSettings``.
        cache: a folder for compiled models, which makes the next start faster.
        gpu: index of the GPU, for engines that use one.
        spin: whether idle threads of ONNX Runtime wait in a loop; False beside other work on the
            same cores, as in a stream, see ``EngineSettings``.
        check: whether the file must be, bit for bit, what whycam wrote, and an engine other than
            ONNX Runtime on the CPU, where each export was checked, must first reproduce the
            export's reference answers for the test patterns in the file, in fp32.
        prompts: the classes, for files that take class embeddings (``whycam export --classes
            input``): a .npz file with ``names`` and ``embeddings``, or ``Prompts``.
        show_bands: bands that overlays show, counted from 1: three as red, green and blue, or one
            in grey [default: the file's].

    Returns:
        An ``Explainer``, ready to explain.

    Raises:
        ModelFileError: the file is missing, damaged, or was not made by whycam.
        EngineError: the engine does not exist or cannot be used as asked.
        RequestError: the network takes no such bands.
        WrongAnswerError: the engine does not reproduce the export's reference answers.
        MissingExtraError: the engine's package is not installed.
        RequestError: the file needs prompts, has classes of its own, or takes other embeddings.
        DataError: the prompts cannot be read.

    Example:
        >>> explainer = whycam.load("model.onnx", engine="onnxruntime", threads=1)
        >>> explainer.explain("cat.jpg").label
        'tabby'
    """
    manifest = read_manifest(path)
    if show_bands is not None:
        try:
            manifest = msgspec.structs.replace(manifest, show_bands=tuple(show_bands))
        except ValueError as error:
            raise RequestError(f"{path}: {error}") from error
    classes = choose_prompts(manifest, prompts)
    settings = EngineSettings(
        threads=threads,
        precision=precision,
        hint=hint,
        cache=None if cache is None else os.fspath(cache),
        gpu=gpu,
        spin=spin,
    )
    if check and not is_plan(path):  # a plan's digest is compared wherever one is loaded
        with ThreadPoolExecutor(1) as beside:
            digest = beside.submit(check_digest, path, manifest)
            import_engine(engine, manifest, settings)
            digest.result()  # before an engine sees the file, which could end the process
    opened = open_engine(path, manifest, engine, settings, check)
    if classes is None:
        return Explainer(opened, manifest, memory_mb)
    engine_with_prompts = PromptedEngine(opened, classes)
    return Explainer(engine_with_prompts, apply_prompts(manifest, classes), memory_mb)


def explain(
    model: Explainer | str | os.PathLike[str],
    images: Any,
    targets: Any = None,
    method: Method | Sequence[Method] | None = None,
    tft: Thresholding = None,
    **options: Any,
) -> Any:
    """Explain one image or many in one line.

    Loads the model for this call: for many calls, ``load`` it once.

    Args:
        model: a file, see ``load``; or an ``Explainer``.
        images, targets, method, tft: see ``Explainer.explain``.
        options: ``geometry``, ``progress`` and ``color`` of ``Explainer.explain``.

    Returns:
        As ``Explainer.explain``.

    Raises:
        WhyCamError: see ``load`` and ``Explainer.explain``.

    Example:
        >>> whycam.explain("model.onnx", "cat.jpg").label
        'tabby'
    """
    explainer = model if isinstance(model, Explainer) else load(model)
    return explainer.explain(images, targets, method, tft, **options)
