"""Read an ONNX file of any origin, and bring it to an opset that the export knows."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import onnx
import onnx_ir as ir

from ..runtime.errors import ExportError, ModelFileError, reason_of
from .contrib_operators import expand_contrib_operators, mark_early_normalisations

LEAST_OPSET = 18


_LEAST_QUANTISED_OPSET = 19  # the oldest whose quantisation ONNX's reference evaluator knows


QUANTISATION = {"QuantizeLinear", "DequantizeLinear"}


DOMAINS = {"", "ai.onnx"}


_LARGEST_FILE = 2**31 - 2**20


def read_onnx_file(path: str | os.PathLike[str]) -> ir.Model:
    """Load an ONNX file with its weights, and bring it to an opset that the export knows.

    Raises:
        ModelFileError: the file is missing, damaged, or no ONNX model.
        ExportError: it holds more than 2 GiB, or its opset cannot be converted.
    """
    return convert_model(load_onnx_file(path), path)


def load_onnx_file(path: str | os.PathLike[str]) -> onnx.ModelProto:
    """Load an ONNX file with its weights, as it is.

    Raises:
        ModelFileError: the file is missing, damaged, or no ONNX model.
    """
    name = Path(path)
    try:
        if name.stat().st_size == 0:
            raise ModelFileError(f"{name} is empty")
        proto = onnx.load(os.fspath(name))
        if not proto.graph.node:
            raise ModelFileError(f"{name} is not an ONNX model: its graph has no operators")
        if not all(isinstance(each, str) for each in _names(proto.graph)):
            raise ModelFileError(f"{name} is damaged: it has names that are not text")
        _refuse_dictionaries(proto.graph, name)
    except OSError as error:
        raise ModelFileError(f"cannot read {name}: {error.strerror or error}") from error
    except (ModelFileError, ExportError):
        raise
    except Exception as error:
        raise ModelFileError(f"{name} is not a readable ONNX file: {reason_of(error)}") from error
    return proto


def convert_model(proto: onnx.ModelProto, path: str | os.PathLike[str]) -> ir.Model:
    """Bring a model to an opset that the export knows.

    Args:
        proto: the model.
        path: of its file, for messages.

    Raises:
        ModelFileError: it is no valid model.
        ExportError: it holds more than 2 GiB, or its opset cannot be converted.
    """
    try:
        model = ir.from_proto(_upgrade(_sort(proto)))
        expand_contrib_operators(model)
        _check_content(model)
        return model
    except ExportError:
        raise
    except Exception as error:
        raise ModelFileError(f"{path} is not a valid ONNX model: {reason_of(error)}") from error


def _names(graph: onnx.GraphProto) -> Iterator[str | bytes]:
    """List all names of a graph; protobuf returns those that are not UTF-8 as bytes."""
    yield graph.name
    for each in (*graph.input, *graph.output, *graph.initializer, *graph.value_info):
        yield each.name
    for node in graph.node:
        yield from (node.name, node.op_type, node.domain, *node.input, *node.output)
        yield from (attribute.name for attribute in node.attribute)


def _refuse_dictionaries(graph: onnx.GraphProto, path: Path) -> None:
    """Refuse outputs that are a dictionary for each image, and say how to do without them."""
    node = next((node for node in graph.node if node.op_type == "ZipMap"), None)
    if node is None:
        return
    weights = {tensor.name for tensor in graph.initializer}
    images = [value.name for value in graph.input if value.name not in weights]
    call = f"onnx.utils.extract_model({path.name!r}, 'scores.onnx', {images}, {list(node.input)})"
    raise ExportError(
        f"the node '{node.name or node.output[0]}' (ZipMap) returns the scores of each image as a "
        f"dictionary, which has no gradient. Let the file return the scores themselves: {call}"
    )


def _sort(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Sort the nodes topologically where they are not, as converters to float16 leave them."""
    known = {value.name for value in (*proto.graph.input, *proto.graph.initializer)} | {""}
    known |= {sparse.values.name for sparse in proto.graph.sparse_initializer}
    for node in proto.graph.node:
        if not known.issuperset(node.input):
            model = ir.from_proto(proto)
            model.graph.sort()
            return ir.to_proto(model)
        known.update(node.output)
    return proto


def _check_content(model: ir.Model) -> None:
    """Serialise every node and read every weight once, which raises where they are damaged."""
    for node in model.graph.all_nodes():
        ir.serde.serialize_node(node)
    for value in model.graph.initializers.values():
        if value.const_value is not None:
            value.const_value.numpy()


def _upgrade(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Convert a model to opset 18 or later; to 19 or later where it is quantised."""
    if proto.ByteSize() > _LARGEST_FILE:
        raise ExportError(
            f"the model has {proto.ByteSize() / 2**30:.1f} GiB of weights; an ONNX file holds 2 GiB"
        )
    version = next((each.version for each in proto.opset_import if each.domain in DOMAINS), 0)
    is_quantised = any(node.op_type in QUANTISATION for node in proto.graph.node)
    least = _LEAST_QUANTISED_OPSET if is_quantised else LEAST_OPSET
    if version >= least:
        return proto
    if version < 7:
        raise ExportError(f"ONNX opset {version} is older than what can be converted (7)")
    mark_early_normalisations(proto, version)
    # The converter expects old files to declare initializers as inputs.
    try:
        if proto.ir_version < 4:
            _declare_initializers(proto)
        return onnx.version_converter.convert_version(proto, least)
    except Exception as error:
        raise ExportError(
            f"ONNX's version converter cannot bring the file from opset {version} to "
            f"{least}: {reason_of(error)}. Exporting it again with opset 13 or later may help"
        ) from error


def _declare_initializers(proto: onnx.ModelProto) -> None:
    declared = {each.name for each in proto.graph.input}
    for tensor in proto.graph.initializer:
        if tensor.name not in declared:
            kind = onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            proto.graph.input.append(kind)
