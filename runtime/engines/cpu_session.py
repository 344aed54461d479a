"""Run a graph in ONNX Runtime on the CPU as it stands: for references, checks and calibration."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from numpy.typing import NDArray

from ..errors import EngineError, MissingExtraError, reason_of
from ..manifest import FilePrecision, Manifest
from .chunks import Arrays
from .interface import rename_to_contract, run_graph
from .ort_options import disabled_optimizers

# Which operators ONNX Runtime may replace by one: as by default, those of constants, or none.
Fusion = Literal["all", "basic", "none"]


def open_session(
    source: str | bytes,
    precision: FilePrecision = "fp32",
    fusion: Fusion = "all",
    threads: int | None = None,
) -> Any:
    """Open an inference session of ONNX Runtime on the CPU.

    Args:
        source: a file's path or its content.
        precision: that the network computes in.
        fusion: which operators may be replaced by one that does the same.
        threads: for one operator; None: as many as the processor has cores.

    Raises:
        EngineError: it cannot run the graph.
        MissingExtraError: ONNX Runtime is not installed.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingExtraError("onnxruntime", "cpu", "running a graph on the CPU") from error
    levels = onnxruntime.GraphOptimizationLevel
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = {
        "all": levels.ORT_ENABLE_ALL,
        "basic": levels.ORT_ENABLE_BASIC,
        "none": levels.ORT_DISABLE_ALL,
    }[fusion]
    options.intra_op_num_threads = threads or 0
    try:
        return onnxruntime.InferenceSession(
            source,
            options,
            providers=["CPUExecutionProvider"],
            disabled_optimizers=disabled_optimizers(precision),
        )
    except Exception as error:
        raise EngineError(f"ONNX Runtime cannot run the graph: {reason_of(error)}") from error


class SessionEngine:
    """An engine of one session, see ``base.Engine``.

    Attributes:
        name, description, reason: of the engine.
    """

    def __init__(
        self, session: Any, manifest: Manifest, name: str, description: str, reason: str
    ) -> None:
        self.name, self.description, self.reason = name, description, reason
        self._session = session
        self._manifest = manifest

    def run(self, feeds: Arrays, outputs: Sequence[str]) -> dict[str, NDArray[Any]]:
        """Run the graph, see ``base.Engine.run``."""
        return run_graph(
            rename_to_contract(self._run, self._manifest), feeds, outputs, self._manifest
        )

    def _run(self, feeds: Arrays, outputs: Sequence[str]) -> dict[str, NDArray[Any]]:
        try:
            values = self._session.run(list(outputs), dict(feeds))
        except Exception as error:
            raise EngineError(f"ONNX Runtime failed on the graph: {reason_of(error)}") from error
        return dict(zip(outputs, values, strict=True))
