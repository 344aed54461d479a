"""The engine ONNX Runtime, on the CPU."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

from numpy.typing import NDArray

from .engine import Arrays, EngineSettings
from .errors import EngineError, MissingExtraError, ModelFileError
from .interface import check_feeds, check_interface, first_parts, outputs_without, parts_needed
from .manifest import Manifest
from .onnxfile import without_outputs


class OnnxRuntimeEngine:
    """See ``engine.Engine``.

    A session computes everything its file declares, wanted or not. So each part of the graph that
    is asked for alone, classification above all, gets a session of its own, made when first
    needed.
    """

    name = "onnxruntime"

    def __init__(self, path: str, manifest: Manifest, settings: EngineSettings) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise MissingExtraError("onnxruntime", "cpu", "the engine 'onnxruntime'") from error
        self._library = onnxruntime
        self._path = path
        self._manifest = manifest
        self._threads = settings.threads
        self._sessions: dict[frozenset[str], Any] = {}
        self._lock = threading.Lock()
        self.description = (
            f"ONNX Runtime {onnxruntime.__version__} on the CPU, {manifest.precision}"
        )
        self.reason = "asked for"
        self._session(first_parts(manifest))

    def _session(self, parts: frozenset[str]) -> Any:
        with self._lock:
            if parts not in self._sessions:
                self._sessions[parts] = self._open(parts)
            return self._sessions[parts]

    def _open(self, parts: frozenset[str]) -> Any:
        options = self._library.SessionOptions()
        options.log_severity_level = 3  # errors reach the caller as exceptions
        # Idle threads would go on spinning after a run and take a core from whatever follows it,
        # the map's own arithmetic to begin with.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        if self._threads is not None:
            options.intra_op_num_threads = self._threads
        surplus = outputs_without(parts, self._manifest)
        model = without_outputs(self._path, surplus) if surplus else self._path
        try:
            session = self._library.InferenceSession(
                model, options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:
            raise ModelFileError(f"ONNX Runtime cannot load {self._path}: {error}") from error
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

    def run(self, feeds: Arrays, outputs: Sequence[str]) -> dict[str, NDArray[Any]]:
        """See ``engine.Engine.run``."""
        check_feeds(feeds, self._manifest)
        session = self._session(parts_needed(outputs, self._manifest))
        try:
            values = session.run(list(outputs), dict(feeds))
        except Exception as error:
            raise EngineError(f"ONNX Runtime failed: {error}") from error
        return dict(zip(outputs, values, strict=True))


_ELEMENTS = {"tensor(float)": "float32", "tensor(uint8)": "uint8", "tensor(int64)": "int64"}
