"""Write a quantised graph with its manifest."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from numpy.typing import NDArray

from ..runtime.engines import selftest
from ..runtime.engines.chunks import Arrays
from ..runtime.engines.interface import rename_to_contract, run_graph
from ..runtime.manifest import Manifest
from ..runtime.onnxfile import append_manifest, digest

if TYPE_CHECKING:
    import onnx


def write_candidate(model: onnx.ModelProto, manifest: Manifest, path: Path) -> Manifest:
    """Write a quantised graph without reference answers: engines run it but cannot verify it.

    Args:
        model: its metadata is replaced.
        manifest: of the float file.
        path: to write.

    Returns:
        The manifest written.
    """
    import onnx

    del model.metadata_props[:]
    onnx.save(model, str(path))
    written = msgspec.structs.replace(
        manifest,
        precision="int8",
        digest=digest(path),
        tools={**manifest.tools, "onnxruntime": version("onnxruntime")},
        references=(),
    )
    append_manifest(path, written)
    return written


def write_int8(model: onnx.ModelProto, manifest: Manifest, path: Path) -> None:
    """Write a quantised graph with reference answers that engines are verified by.

    They are computed from the quantised file without optimisation, so that kernels that overflow
    are found. Where its outputs do not allow that, the float file's references stay.

    Args:
        model: its metadata is replaced.
        manifest: of the float file.
        path: to write.
    """
    import onnx

    written = write_candidate(model, manifest, path)
    engine = _UnoptimisedEngine(path, written)
    references = selftest.make_references(engine, written) or manifest.references
    onnx.save(model, str(path))
    append_manifest(path, msgspec.structs.replace(written, references=references))


class _UnoptimisedEngine:
    """ONNX Runtime without optimisation: quantised numbers are dequantised, then computed in float.

    No operations are fused, so none of the processor's integer arithmetic is used.
    """

    name = "onnxruntime"
    description = "ONNX Runtime without optimisation"
    reason = "to compute reference answers of a quantised file"

    def __init__(self, path: Path, manifest: Manifest) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        self._session = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )
        self._manifest = manifest

    def run(self, feeds: Arrays, outputs: Sequence[str]) -> dict[str, NDArray[Any]]:
        """See ``base.Engine.run``."""
        return run_graph(
            rename_to_contract(self._run, self._manifest), feeds, outputs, self._manifest
        )

    def _run(self, feeds: Arrays, outputs: Sequence[str]) -> dict[str, NDArray[Any]]:
        values = self._session.run(list(outputs), dict(feeds))
        return dict(zip(outputs, values, strict=True))
