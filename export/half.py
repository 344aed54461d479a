"""A graph's trunk in half precision: weights stored in 16 bits, everything after A in float32.

onnxruntime.transformers.float16 was tried first: it has no bf16, rounds weights that do not fit to
the largest value without a word, and stores a weight twice where a kept operation reads it too.
"""

from __future__ import annotations

import os
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from ..runtime.errors import ExportError, MissingExtraError, ModelFileError, RequestError
from ..runtime.files import replacing
from ..runtime.manifest import Manifest
from ..runtime.onnxfile import append_manifest, digest, read_manifest
from .rounded import HalfCheck, check_half
from .trunk import trunk_runs

if TYPE_CHECKING:
    import onnx

HalfPrecision = Literal["fp16", "bf16"]
# Sums and powers leave the range of fp16 long before activations do; they cost little.
_FLOAT = frozenset(
    {
        "BatchNormalization",
        "Exp",
        "GlobalAveragePool",
        "GroupNormalization",
        "InstanceNormalization",
        "LayerNormalization",
        "Pow",
        "ReduceL2",
        "ReduceMean",
        "ReduceSum",
        "ReduceSumSquare",
        "Softmax",
        "Sqrt",
    }
)
_FLOAT_IN_BF16 = frozenset({"HardSigmoid", "HardSwish"})  # TensorRT's parser takes no bf16 here
_FLOAT_INPUTS = {"Resize": (1, 2)}  # by the operator's definition
_BOUNDS = {"Clip": (1, 2)}  # which may lie beyond what fp16 holds
_BF16_OPSET = 22  # the first in which convolutions take bf16


@dataclass(frozen=True)
class Half:
    """A file in half precision.

    Attributes:
        path: the file.
        manifest: what it says of itself.
        check: how it compares with the float file.
        operations: of the trunk, that compute in half precision.
        size, size_before: of the files, in bytes.
        seconds: it took.
    """

    path: Path
    manifest: Manifest
    check: HalfCheck
    operations: int
    size: int
    size_before: int
    seconds: float


def to_half(
    model: str | os.PathLike[str],
    path: str | os.PathLike[str],
    precision: HalfPrecision = "fp16",
) -> Half:
    """Convert the trunk of an explaining graph to half precision, and prove it.

    Inputs, outputs, head, gradients, softmax and map arithmetic stay float32. In the trunk, sums,
    powers and normalisations do as well; batch normalisation goes into the convolution before it.

    Args:
        model: a file made by ``whycam export``.
        path: the file to write.
        precision: ``fp16``, or ``bf16``: the range of float32 with three digits.

    Raises:
        RequestError: the file is not in float32, or is the one to write.
        ModelFileError: the file is missing, damaged, or not made by whycam.
        ExportError: the trunk cannot be converted, as where a weight does not fit.
        VerificationError: the converted file does not give the float file's answers; none is left.
        OutputError: the file cannot be written.
        MissingExtraError: the packages onnx or onnxruntime are not installed.
    """
    begin = time.perf_counter()
    manifest = read_manifest(model)
    target = Path(path)
    if precision not in ("fp16", "bf16"):
        raise RequestError(f"precision must be fp16 or bf16, not '{precision}'")
    if manifest.precision != "fp32":
        raise RequestError(f"{model} is {manifest.precision} already: convert the float file")
    if target.resolve() == Path(model).resolve():
        raise RequestError(f"{path} is the float file itself: write the {precision} file elsewhere")
    with replacing(target) as temporary:
        converted = read_onnx(model)
        if precision == "bf16":
            converted = _with_opset(converted, _BF16_OPSET)
        count = halve(converted, precision)
        write_onnx(converted, temporary)
        own = msgspec.structs.replace(
            manifest,
            precision=precision,
            opset=max(each.version for each in converted.opset_import if each.domain == ""),
            digest=digest(temporary),
        )
        append_manifest(temporary, own)
        check = check_half(model, temporary, converted, own)
        size = temporary.stat().st_size
    return Half(
        target,
        own,
        check,
        count,
        size,
        Path(model).stat().st_size,
        time.perf_counter() - begin,
    )


def read_onnx(path: str | os.PathLike[str]) -> onnx.ModelProto:
    """An ONNX file, with types and shapes inferred; metadata is left out.

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
    except Exception as error:
        raise ModelFileError(f"cannot read {path} for conversion: {error}") from error
    for index, node in enumerate(inferred.graph.node):
        node.name = node.name or f"node_{index}"
    return inferred


def write_onnx(model: onnx.ModelProto, path: Path) -> None:
    """Write a graph, checked by ONNX's own rules.

    Raises:
        ExportError: it breaks them.
        OutputError: the place cannot be written.
    """
    import onnx

    try:
        onnx.checker.check_model(model)
        onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
    except Exception as error:
        raise ExportError(f"the converted graph is not valid ONNX: {error}") from error
    onnx.save(model, str(path))


def types_of(model: onnx.ModelProto) -> dict[str, int]:
    """The element type of each tensor, as far as it is known."""
    graph = model.graph
    found = {
        value.name: value.type.tensor_type.elem_type
        for value in [*graph.value_info, *graph.input, *graph.output]
    }
    return found | {each.name: each.data_type for each in graph.initializer}


def _with_opset(model: onnx.ModelProto, wanted: int) -> onnx.ModelProto:
    from onnx import version_converter

    try:
        return version_converter.convert_version(model, wanted)
    except Exception as error:
        raise ExportError(f"cannot convert the graph to ONNX opset {wanted}: {error}") from error


def halve(model: onnx.ModelProto, precision: HalfPrecision) -> int:
    """Convert in place; returns how many operations compute in half precision now.

    Raises:
        ExportError: a weight does not fit.
    """
    import onnx

    graph = model.graph
    _fold_batch_norms(graph, {index for run in trunk_runs(graph) for index in run})
    types = types_of(model)
    half = onnx.TensorProto.FLOAT16 if precision == "fp16" else onnx.TensorProto.BFLOAT16
    converted = _Conversion(graph, types, half)
    inside = {index for run in trunk_runs(graph) for index in run}
    floating = _FLOAT if precision == "fp16" else _FLOAT | _FLOAT_IN_BF16
    for index, node in enumerate(list(graph.node)):
        if index in inside and node.op_type not in floating:
            converted.inside(node)
        else:
            converted.outside(node)
    converted.finish()
    del graph.value_info[:]  # which tell the types of before
    return converted.count


class _Conversion:
    """Walks a graph in order and rewrites its operations, one after the other."""

    def __init__(self, graph: onnx.GraphProto, types: dict[str, int], half: int) -> None:
        self.count = 0
        self._graph = graph
        self._types = types
        self._half = half
        self._suffix = "_half"
        self._nodes: list[onnx.NodeProto] = []
        self._weights = {each.name: each for each in graph.initializer}
        self._outputs = {each.name for each in graph.output}
        self._in_half: dict[str, str] = {}  # a float tensor's copy in half
        self._made_in_half: set[str] = set()  # of these, those that have no float original yet

    def inside(self, node: onnx.NodeProto) -> None:
        """An operation that shall compute in half precision."""
        import onnx

        kept = _FLOAT_INPUTS.get(node.op_type, ())
        for position, name in enumerate(node.input):
            if position in kept:
                self._need_float(name)
            elif self._is_float(name):
                bound = position in _BOUNDS.get(node.op_type, ())
                node.input[position] = self._as_half(name, node, bound)
        floats = [name for name in node.output if self._is_float(name)]
        if node.op_type == "Cast" and floats:
            (to,) = (each for each in node.attribute if each.name == "to")
            to.i = self._half
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.TENSOR and floats:
                attribute.t.CopyFrom(self._converted(attribute.t, node, False))
        for position, name in enumerate(node.output):
            if name in floats:
                self._in_half[name] = node.output[position] = f"{name}{self._suffix}"
                self._made_in_half.add(name)
        self.count += bool(floats)
        self._nodes.append(node)
        for name in floats:
            if name in self._outputs:
                self._need_float(name)

    def outside(self, node: onnx.NodeProto) -> None:
        """An operation that stays as it is."""
        for name in node.input:
            self._need_float(name)
        self._nodes.append(node)

    def finish(self) -> None:
        """Put the new operations and weights in place, and leave out what nothing reads."""
        graph = self._graph
        del graph.node[:]
        graph.node.extend(self._nodes)
        read = {name for node in graph.node for name in node.input} | self._outputs
        kept = [each for each in self._weights.values() if each.name in read]
        del graph.initializer[:]
        graph.initializer.extend(kept)

    def _is_float(self, name: str) -> bool:
        return self._types.get(name) == 1  # TensorProto.FLOAT

    def _need_float(self, name: str) -> None:
        """Make the float original of a tensor that was made in half."""
        import onnx

        if name in self._made_in_half:
            self._made_in_half.remove(name)
            self._nodes.append(
                onnx.helper.make_node(
                    "Cast", [self._in_half[name]], [name], f"{name}_to_float", to=1
                )
            )

    def _as_half(self, name: str, reader: onnx.NodeProto, bound: bool) -> str:
        """The name of a float tensor's copy in half."""
        import onnx

        if name not in self._in_half:
            copy = f"{name}{self._suffix}"
            if name in self._weights:
                weight = self._converted(self._weights[name], reader, bound)
                weight.name = copy
                self._weights[copy] = weight
            else:
                self._nodes.append(
                    onnx.helper.make_node("Cast", [name], [copy], f"{name}_to_half", to=self._half)
                )
            self._in_half[name] = copy
        return self._in_half[name]

    def _converted(
        self, tensor: onnx.TensorProto, reader: onnx.NodeProto, bound: bool
    ) -> onnx.TensorProto:
        import onnx
        from onnx import numpy_helper

        values = numpy_helper.to_array(tensor)
        if tensor.data_type != onnx.TensorProto.FLOAT:
            return tensor
        if self._half == onnx.TensorProto.FLOAT16:
            rounded = _as_fp16(values, tensor.name, reader, bound)
        else:
            import ml_dtypes  # which onnx brings

            rounded = values.astype(ml_dtypes.bfloat16)
        return numpy_helper.from_array(rounded, tensor.name)


def _as_fp16(
    values: NDArray[Any], name: str, reader: onnx.NodeProto, bound: bool
) -> NDArray[np.float16]:
    most = float(np.finfo(np.float16).max)
    finite = np.abs(values[np.isfinite(values)])
    if not bound and finite.size and finite.max() > most:
        raise ExportError(
            f"the weight '{name or reader.name}' of '{reader.name}' ({reader.op_type}) holds "
            f"{finite.max():.3g}, more than fp16 can ({most:g}). Use bf16, which has the range of "
            "float32"
        )
    # Nothing in fp16 lies beyond such a bound.
    return np.clip(values, -most, most).astype(np.float16) if bound else values.astype(np.float16)


def _fold_batch_norms(graph: onnx.GraphProto, inside: Collection[int]) -> None:
    """Batch normalisation into the convolution before it: one rounding instead of two.

    Equal convolutions with equal normalisations, as of two runs, share their new weights.
    """
    from onnx import numpy_helper

    weights = {each.name: each for each in graph.initializer}
    readers: dict[str, int] = {}
    for node in graph.node:
        for name in node.input:
            readers[name] = readers.get(name, 0) + 1
    for value in graph.output:
        readers[value.name] = readers.get(value.name, 0) + 1
    convolutions = {
        graph.node[index].output[0]: graph.node[index]
        for index in inside
        if graph.node[index].op_type == "Conv" and graph.node[index].input[1] in weights
    }
    gone = []
    for index in sorted(inside):
        norm = graph.node[index]
        before = convolutions.get(norm.input[0]) if norm.op_type == "BatchNormalization" else None
        if before is None or readers[norm.input[0]] != 1 or not set(norm.input[1:]) <= set(weights):
            continue
        name, shift = (f"{each}_with_{norm.input[1]}" for each in (before.input[1], "bias"))
        shift = f"{name}_bias"
        if name not in weights:
            arrays = [
                numpy_helper.to_array(weights[each]).astype(np.float64) for each in norm.input[1:]
            ]
            scale, beta, mean, variance = arrays
            epsilon = next((a.f for a in norm.attribute if a.name == "epsilon"), 1e-5)
            factor = scale / np.sqrt(variance + epsilon)
            kernel = numpy_helper.to_array(weights[before.input[1]]).astype(np.float64)
            bias = (
                numpy_helper.to_array(weights[before.input[2]]).astype(np.float64)
                if len(before.input) > 2
                else np.zeros(len(factor))
            )
            folded = kernel * factor.reshape(-1, *[1] * (kernel.ndim - 1))
            for new, values in ((name, folded), (shift, (bias - mean) * factor + beta)):
                weights[new] = numpy_helper.from_array(values.astype(np.float32), new)
        before.input[:] = [before.input[0], name, shift]
        before.output[0] = norm.output[0]
        gone.append(index)
    for index in reversed(gone):
        del graph.node[index]
    read = {name for node in graph.node for name in node.input}
    del graph.initializer[:]
    graph.initializer.extend(each for each in weights.values() if each.name in read)
