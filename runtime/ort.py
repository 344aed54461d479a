"""The engine ONNX Runtime, on the CPU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from numpy.typing import NDArray

from .engine import Arrays
from .errors import EngineError, MissingExtraError, ModelFileError
from .manifest import Manifest


class OnnxRuntimeEngine:
    """See ``engine.Engine``."""

    name = "onnxruntime"

    def __init__(self, path: str, manifest: Manifest, threads: int | None) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise MissingExtraError("onnxruntime", "cpu", "the engine 'onnxruntime'") from error
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors reach the caller as exceptions
        # Idle threads would go on spinning after a run and take a core from whatever follows it,
        # the map's own arithmetic to begin with.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        if threads is not None:
            options.intra_op_num_threads = threads
        try:
            self._session = onnxruntime.InferenceSession(
                path, options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:
            raise ModelFileError(f"ONNX Runtime cannot load {path}: {error}") from error
        self.description = f"ONNX Runtime {onnxruntime.__version__} on the CPU"
        self._check_interface(path, manifest)

    def _check_interface(self, path: str, manifest: Manifest) -> None:
        """The graph must have the inputs and outputs that its manifest promises."""
        inputs = {node.name: (node.type, node.shape[1:]) for node in self._session.get_inputs()}
        height, width = manifest.preprocess.size
        image = inputs.get("image")
        if image != ("tensor(float)", [3, height, width]) or "target" not in inputs:
            raise ModelFileError(
                f"{path} does not match its manifest: it should take 'image' float32 "
                f"[N, 3, {height}, {width}] and 'target' int64 [N, k], but takes {inputs}"
            )
        outputs = {node.name for node in self._session.get_outputs()}
        missing = {"probabilities", "targets", "activations", "gradients"} - outputs
        if missing:
            raise ModelFileError(f"{path} does not match its manifest: no output {sorted(missing)}")

    def run(self, feeds: Arrays, outputs: Sequence[str]) -> dict[str, NDArray[Any]]:
        """See ``engine.Engine.run``."""
        try:
            values = self._session.run(list(outputs), dict(feeds))
        except Exception as error:
            raise EngineError(f"ONNX Runtime failed: {error}") from error
        return dict(zip(outputs, values, strict=True))
