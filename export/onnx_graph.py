"""Read, check and write ONNX files with the package onnx."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from ..runtime.errors import ExportError, MissingExtraError, ModelFileError, reason_of

if TYPE_CHECKING:
    import onnx


def read_onnx(path: str | os.PathLike[str]) -> onnx.ModelProto:
    """Read an ONNX file and infer types and shapes; metadata is left out.

    Raises:
        ModelFileError: it cannot be read.
        MissingExtraError: the package onnx is not installed.
    """
    try:
        import onnx
    except ImportError as error:
        raise MissingExtraError("onnx", "build", "converting an ONNX file") from error
    try:
        model = onnx.load(os.fspath(path))
        del model.metadata_props[:]
        inferred: onnx.ModelProto = onnx.shape_inference.infer_shapes(model)
        _check_names(inferred.graph)
    except Exception as error:
        raise ModelFileError(f"cannot read {path} for conversion: {reason_of(error)}") from error
    for index, node in enumerate(inferred.graph.node):
        node.name = node.name or f"node_{index}"
    return inferred


def _check_names(graph: onnx.GraphProto) -> None:
    """Refuse names that are not UTF-8, which protobuf returns as bytes or fails to read."""
    named = (*graph.node, *graph.initializer, *graph.input, *graph.output, *graph.value_info)
    names = [item.name for item in named]
    for node in graph.node:
        names += [node.op_type, node.domain, *node.input, *node.output]
        names += [attribute.name for attribute in node.attribute]
    if not all(isinstance(name, str) for name in names):
        raise ValueError("it has names that are not UTF-8 text")


def write_onnx(model: onnx.ModelProto, path: Path) -> None:
    """Write a graph after ONNX's own checks.

    Raises:
        ExportError: the graph is not valid ONNX.
        OutputError: the file cannot be written.
    """
    import onnx

    try:
        onnx.checker.check_model(model)
        onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
    except Exception as error:
        raise ExportError(f"the converted graph is not valid ONNX: {reason_of(error)}") from error
    onnx.save(model, str(path))


def element_types(model: onnx.ModelProto) -> dict[str, int]:
    """Return the element type of each tensor, as far as it is known."""
    graph = model.graph
    types = {
        value.name: value.type.tensor_type.elem_type
        for value in [*graph.value_info, *graph.input, *graph.output]
    }
    return types | {tensor.name: tensor.data_type for tensor in graph.initializer}


def convert_opset(model: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    """Convert a graph to another operator set.

    Raises:
        ExportError: it cannot be converted.
    """
    from onnx import version_converter

    try:
        return version_converter.convert_version(model, opset)
    except Exception as error:
        raise ExportError(
            f"cannot convert the graph to ONNX opset {opset}: {reason_of(error)}"
        ) from error
