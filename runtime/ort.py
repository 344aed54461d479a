"""The engine ONNX Runtime, on the CPU."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

from numpy.typing import NDArray

from .engine import Arrays
from .errors import EngineError, MissingExtraError, ModelFileError
from .manifest import Manifest
from .onnxfile import without_outputs

# What the sweep inside the graph computes. ONNX Runtime computes every output of a session,
# wanted or not, and the sweep costs as much as ten classifications.
_SWEPT = ("maps", "thresholds", "rpi", "masked_probabilities")


class OnnxRuntimeEngine:
    """See ``engine.Engine``."""

    name = "onnxruntime"

    def __init__(self, path: str, manifest: Manifest, threads: int | None) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise MissingExtraError("onnxruntime", "cpu", "the engine 'onnxruntime'") from error
        self._library = onnxruntime
        self._path = path
        self._threads = threads
        self._sweeps = "tft" in manifest.outputs
        self._sessions: dict[bool, Any] = {}
        self._lock = threading.Lock()
        self.description = f"ONNX Runtime {onnxruntime.__version__} on the CPU"
        self._check_interface(self._session(self._sweeps), manifest)

    def _session(self, sweeps: bool) -> Any:
        """The whole graph, or the graph without its sweep; made when first needed."""
        with self._lock:
            if sweeps not in self._sessions:
                self._sessions[sweeps] = self._open(sweeps)
            return self._sessions[sweeps]

    def _open(self, sweeps: bool) -> Any:
        options = self._library.SessionOptions()
        options.log_severity_level = 3  # errors reach the caller as exceptions
        # Idle threads would go on spinning after a run and take a core from whatever follows it,
        # the map's own arithmetic to begin with.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        if self._threads is not None:
            options.intra_op_num_threads = self._threads
        whole = sweeps or not self._sweeps
        model = self._path if whole else without_outputs(self._path, _SWEPT)
        try:
            return self._library.InferenceSession(
                model, options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:
            raise ModelFileError(f"ONNX Runtime cannot load {self._path}: {error}") from error

    def _check_interface(self, session: Any, manifest: Manifest) -> None:
        """The graph must have the inputs and outputs that its manifest promises."""
        inputs = {node.name: (node.type, node.shape[1:]) for node in session.get_inputs()}
        kind = "uint8" if manifest.embedded_preprocess else "float"
        shape = manifest.image_shape
        found, sides = inputs.get("image", ("", []))
        fits = len(sides) == len(shape) and all(
            wanted in (None, side) for wanted, side in zip(shape, sides, strict=True)
        )
        if found != f"tensor({kind})" or not fits or "target" not in inputs:
            promised = ", ".join("any" if side is None else str(side) for side in shape)
            raise ModelFileError(
                f"{self._path} does not match its manifest: it should take 'image' {kind} "
                f"[N, {promised}] and 'target' int64 [N, k], but takes {inputs}"
            )
        missing = set(manifest.output_shapes) - {node.name for node in session.get_outputs()}
        if missing:
            raise ModelFileError(
                f"{self._path} does not match its manifest: no output {sorted(missing)}"
            )

    def run(self, feeds: Arrays, outputs: Sequence[str]) -> dict[str, NDArray[Any]]:
        """See ``engine.Engine.run``."""
        session = self._session(self._sweeps and not set(_SWEPT).isdisjoint(outputs))
        try:
            values = session.run(list(outputs), dict(feeds))
        except Exception as error:
            raise EngineError(f"ONNX Runtime failed: {error}") from error
        return dict(zip(outputs, values, strict=True))
