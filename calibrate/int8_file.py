"""Write a quantised graph with its manifest."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from ..runtime.engines import selftest
from ..runtime.engines.cpu_session import SessionEngine, open_session
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
    # No operations are fused, so none of the processor's integer arithmetic is used.
    engine = SessionEngine(
        open_session(str(path), fusion="none"),
        written,
        "onnxruntime",
        "ONNX Runtime without optimisation",
        "to compute reference answers of a quantised file",
    )
    references = selftest.make_references(engine, written) or manifest.references
    onnx.save(model, str(path))
    append_manifest(path, msgspec.structs.replace(written, references=references))
