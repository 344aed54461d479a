"""Bring an explaining graph to its final form, write it, and check the file as users load it."""

from __future__ import annotations

from pathlib import Path

import msgspec
import onnx_ir as ir
import onnx_ir.passes.common as passes

from ..runtime.comparison import ENGINE
from ..runtime.engines import selftest
from ..runtime.engines.opening import open_engine
from ..runtime.errors import VerificationError
from ..runtime.manifest import INPUTS, Manifest
from ..runtime.onnxfile import append_manifest, digest, read_manifest
from .assemble import Assembly


def name_tensors(manifest: Manifest, assembly: Assembly) -> Manifest:
    """State the graph's own names of inputs and outputs in the manifest."""
    declared = {*INPUTS, *manifest.output_shapes}
    names = {name: own for name, own in assembly.names.items() if name in declared}
    return msgspec.structs.replace(manifest, names=names)


def clean_up(model: ir.Model) -> None:
    """Sort the nodes topologically and remove those that nothing reads."""
    model.graph.sort()
    passes.RemoveUnusedNodesPass()(model)


def write_model(model: ir.Model, assembly: Assembly, manifest: Manifest, path: Path) -> Manifest:
    """Write the file with its manifest, and check its reference answers.

    Returns:
        The manifest, with the file's digest.

    Raises:
        VerificationError: the file answers wrongly.
    """
    _declare_only(model, assembly, manifest)
    ir.save(model, str(path))
    manifest = msgspec.structs.replace(manifest, digest=digest(path))
    append_manifest(path, manifest)
    _check_file(path)
    return manifest


def _declare_only(model: ir.Model, assembly: Assembly, manifest: Manifest) -> None:
    """Remove the outputs that only verification needed."""
    kept = {*assembly.own_outputs, *(manifest.names.get(n, n) for n in manifest.output_shapes)}
    outputs = model.graph.outputs
    for value in [value for value in outputs if value.name not in kept]:
        outputs.remove(value)
    clean_up(model)


def _check_file(path: Path) -> None:
    """Load the finished file as users will, and check its reference answers."""
    manifest = read_manifest(path)
    engine = open_engine(path, manifest, "onnxruntime")
    for comparison in selftest.check(engine, manifest, ENGINE):
        if comparison.complaint:
            raise VerificationError(
                f"the finished file answers wrongly: {comparison.complaint}. No file was written"
            )
