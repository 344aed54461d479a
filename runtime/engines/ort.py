"""Run graphs in ONNX Runtime: on the CPU, by CUDA or TensorRT, and by plugins."""

from __future__ import annotations

import os
import platform
import re
import sys
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import EngineError, MissingExtraError, ModelFileError, WhyCamError
from ..files import writable_folder
from ..manifest import Manifest
from ..onnxcut import is_mapped, with_weights_in_place, without_outputs
from ..onnxfile import digest
from ..threads import usable_cores
from . import ort_gpu, ort_options, ort_plugins
from .base import EngineSettings
from .chunks import Arrays, Outputs, run_in_chunks
from .interface import (
    Run,
    check_interface,
    first_parts,
    graph_name,
    parts_needed,
    rename_to_contract,
    run_graph,
    surplus_outputs,
)
from .nvidia import driver
from .ort_binding import BoundSession
from .ort_options import CPU, Cache, Place

_WEIGHTS_FOLDER = "session.model_external_initializers_file_folder_path"
# Elsewhere its convolutions compute with the weights as they are, and the file would stay mapped.
_PACKS_WEIGHTS = sys.platform == "linux" and platform.machine() == "x86_64"
_CONVOLUTIONS = {"Conv", "ConvTranspose", "FusedConv", "ConvInteger", "QLinearConv"}


class OnnxRuntimeEngine:
    """See ``engine.Engine``.

    A session computes everything its file declares, wanted or not. So each part of the graph that
    is asked for alone, classification above all, gets a session of its own, made when first
    needed.

    Raises:
        MissingExtraError: ONNX Runtime is not installed.
        EngineError: it cannot compute there, or would use the CPU instead; says what is missing.
        ModelFileError: it cannot load the file.
    """

    def __init__(
        self, path: str, manifest: Manifest, settings: EngineSettings, place: Place = CPU
    ) -> None:
        self.name = place.engine
        try:
            import onnxruntime
        except ImportError as error:
            package = "onnxruntime-gpu" if place.device else "onnxruntime"
            raise MissingExtraError(package, place.extra, f"the engine '{self.name}'") from error
        self._library = onnxruntime
        self._path = path
        self._manifest = manifest
        self._settings = settings
        self._place = place
        self._lock = threading.Lock()
        self._runs: dict[frozenset[str], Run] = {}
        self._placed: Counter[str] = Counter()
        self._digest = ""
        self.reason = "asked for"
        self._prepare()
        self._run_of(first_parts(manifest))
        self.description = self._described()

    def _prepare(self) -> None:
        """Refuse a place or precision that ONNX Runtime would silently replace by another."""
        check = ort_gpu.problem if self._place.plugin is None else ort_plugins.problem
        wrong = check(self._place, self._settings.gpu, self._library)
        if wrong is None and self._place in (ort_options.TENSORRT, ort_options.TENSORRT_RTX):
            wrong = ort_options.tf32_conflict(self._manifest, os.environ)
            if self._manifest.precision == "fp32":
                os.environ.setdefault(ort_options.TF32, "0")
        if wrong is not None:
            raise EngineError(f"the engine '{self.name}' cannot be used here: {wrong}")

    def _described(self) -> str:
        where = f"ONNX Runtime {self._library.__version__} on {self._place.shown}"
        if self._place.plugin is not None:
            device = ort_plugins.devices(self._place, self._library)[self._settings.gpu]
            where += f", {ort_plugins.describe(device)}"
            return f"{where}, {self._manifest.precision}{_nodes(self._placed)}"
        if self._place.device != "cuda":
            return f"{where}, {self._manifest.precision}"
        gpus = driver().gpus
        if self._settings.gpu < len(gpus):
            where += f", GPU {self._settings.gpu} ({gpus[self._settings.gpu].name})"
        return f"{where}, {self._manifest.precision}{_nodes(self._placed)}"

    def _run_of(self, parts: frozenset[str]) -> Run:
        with self._lock:
            if parts not in self._runs:
                session = self._open(parts)
                run = self._bound(session) if self._place.device else _plain(session)
                self._runs[parts] = rename_to_contract(run, self._manifest)
            return self._runs[parts]

    def _bound(self, session: Any) -> Run:
        manifest, device = self._manifest, self._place.device or "cpu"
        index = self._settings.gpu if device == "cuda" else 0

        def shapes(feeds: Arrays) -> dict[str, tuple[int | None, ...]]:
            size = manifest.size_of(feeds[graph_name("image", manifest)].shape)
            named = manifest.at(size).output_shapes
            if manifest.class_embeddings is not None:
                embeddings = feeds[graph_name("class_embeddings", manifest)]
                named["probabilities"] = (len(embeddings),)
            return {graph_name(name, manifest): shape for name, shape in named.items()}

        classes: int | str = manifest.top or graph_name("target", manifest)
        return BoundSession(self._library, session, shapes, classes, device, index).run

    def _open(self, parts: frozenset[str]) -> Any:
        surplus = surplus_outputs(parts, self._manifest)
        session = self._from_file(parts, surplus) if _PACKS_WEIGHTS and self._on_cpu else None
        if session is None:
            model = without_outputs(self._path, surplus) if surplus else self._path
            try:
                session = self._session(model, self._options(), parts)
            except WhyCamError:
                raise
            except Exception as error:
                raise self._not_loaded(error) from error
        # ONNX Runtime keeps a file given as bytes for its fallback, which is off.
        session._model_bytes = None
        self._check_place(session, parts)
        inputs = {
            node.name: (
                _ELEMENTS.get(node.type, node.type),
                [side if isinstance(side, int) else None for side in node.shape],
            )
            for node in session.get_inputs()
        }
        outputs = [node.name for node in session.get_outputs()]
        check_interface(self._path, self._manifest, inputs, outputs, parts)
        return session

    @property
    def _on_cpu(self) -> bool:
        return self._place.provider == CPU.provider

    def _options(self) -> Any:
        options = self._library.SessionOptions()
        options.log_severity_level = 3  # errors reach the caller as exceptions
        # Idle threads would go on spinning after a run and take a core from whatever follows it,
        # the map's own arithmetic to begin with.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        # Its own default is every core of the machine, also where this process may not use it.
        threads = self._settings.threads or usable_cores()
        if threads is not None:
            options.intra_op_num_threads = threads
        if not self._settings.spin:
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if not self._on_cpu:
            options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        return options

    def _session(self, model: str | bytes, options: Any, parts: frozenset[str]) -> Any:
        providers = None
        if self._place.plugin is None:
            cache = self._cache(parts)
            providers = ort_options.providers(
                self._place, self._manifest, self._settings, parts, cache
            )
        else:
            ort_plugins.add_to_session(
                options, self._place, self._library, self._manifest, self._settings, parts
            )
        return self._library.InferenceSession(
            model,
            options,
            providers=providers,
            disabled_optimizers=ort_options.disabled_optimizers(self._manifest.precision),
            enable_fallback=0,  # without its fallback, which prints a line and goes on in the CPU
        )

    def _from_file(self, parts: frozenset[str], surplus: set[str]) -> Any:
        """Open a session that reads the weights of convolutions from the file, where they lie.

        It packs them in a layout of its own and lets the file go: half the time and memory of a
        start. None where it does not, or does not open: a file that changes under a session would
        change its answers, or end the process.
        """
        path = Path(self._path).resolve()
        model = with_weights_in_place(path, surplus)
        if model is None:
            return None
        options = self._options()
        options.add_session_config_entry(_WEIGHTS_FOLDER, str(path.parent))
        try:
            session = self._session(model, options, parts)
        except Exception:
            return None  # opened the other way, whose error names no place within the file
        return None if is_mapped(path) else session

    def _cache(self, parts: frozenset[str]) -> Cache | None:
        if self._settings.cache is None or self._place != ort_options.TENSORRT:
            return None
        root = writable_folder(self._settings.cache)
        # Computed: the one in the manifest would still be there after the file was changed.
        self._digest = self._digest or digest(self._path)
        gpu = driver().gpus[self._settings.gpu]
        versions = {
            "ort": self._library.__version__,
            "trt": ort_gpu.tensorrt_version(self._library),
        }
        names = ort_options.cache_names(
            self._digest, parts, versions, f"{gpu.name}-sm{gpu.capability}"
        )
        engines, timing = (str(writable_folder(Path(root) / name)) for name in names)
        return Cache(engines, timing)

    def _not_loaded(self, error: Exception) -> EngineError | ModelFileError:
        if self._place.plugin is not None:
            said, is_device = ort_plugins.error_text(error), ort_plugins.is_device_error(error)
        else:
            said, is_device = ort_gpu.error_text(error), ort_gpu.is_device_error(error)
        if is_device:
            return EngineError(f"the engine '{self.name}' cannot be used here: {said}")
        return ModelFileError(f"ONNX Runtime cannot load {self._path}: {said}")

    def _check_place(self, session: Any, parts: frozenset[str]) -> None:
        """Check that the session computes on the provider asked for."""
        wanted = self._place.provider
        if self._on_cpu:
            return
        if session.get_providers()[0] != wanted:
            raise EngineError(
                f"the engine '{self.name}' cannot be used here: ONNX Runtime took "
                f"{session.get_providers()[0]} instead of {wanted} and did not say why; see: "
                "whycam doctor"
            )
        placed = placement(session)
        if placed is None:
            return
        if not placed.get(wanted):
            raise EngineError(f"{self._place.shown} in ONNX Runtime takes no part of {self._path}")
        left = [kind for kind in placed.get(CPU.provider, []) if kind in _CONVOLUTIONS]
        if left:
            raise EngineError(
                f"ONNX Runtime would compute {len(left)} convolutions of {self._path} on the CPU: "
                f"{self._place.shown} does not take them"
            )
        if parts == first_parts(self._manifest):
            self._placed = Counter({name: len(kinds) for name, kinds in placed.items()})

    def run(self, feeds: Arrays, outputs: Sequence[str]) -> Outputs:
        """See ``engine.Engine.run``."""
        return run_graph(self._run, feeds, outputs, self._manifest)

    def _run(self, feeds: Arrays, outputs: Sequence[str]) -> Outputs:
        parts = parts_needed(outputs, self._manifest)
        run = self._run_of(parts)
        try:
            limit = ort_options.run_limit(self._place, self._manifest, parts)
            if limit is None:
                return run(feeds, outputs)
            return run_in_chunks(
                lambda part: run(part, outputs),
                feeds,
                self._manifest,
                limit.images,
                limit.classes,
            )
        except Exception as error:
            said = ort_gpu.error_text(error)
            if re.search(r"out of memory|Failed to allocate memory", said):
                said += ": load with a smaller memory_mb, for smaller batches"
            raise EngineError(f"ONNX Runtime failed: {said}") from error


def _plain(session: Any) -> Run:
    def run(feeds: Arrays, outputs: Sequence[str]) -> Outputs:
        values = session.run(list(outputs), dict(feeds))
        return dict(zip(outputs, values, strict=True))

    return run


def placement(session: Any) -> Mapping[str, list[str]] | None:
    """List the operators that each provider computes; None where ONNX Runtime does not tell."""
    if not hasattr(session, "get_provider_graph_assignment_info"):
        return None
    found: dict[str, list[str]] = {}
    for part in session.get_provider_graph_assignment_info():
        found.setdefault(part.ep_name, []).extend(node.op_type for node in part.get_nodes())
    return found


def _nodes(placed: Mapping[str, int]) -> str:
    listed = ", ".join(
        f"{count} {name.removesuffix('ExecutionProvider')}" for name, count in placed.items()
    )
    return f" (operators: {listed})" if listed else ""


_ELEMENTS = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(uint8)": "uint8",
    "tensor(int64)": "int64",
}
