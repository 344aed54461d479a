"""Convert the backbone of an explaining graph to half precision; the head stays float32.

onnxruntime.transformers.float16 does not fit, even with the head blocked: it has no bf16, clips
weights that are too large to 65504 silently, and writes operations in an order that onnx.checker
refuses.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from ..runtime.backbone import backbone_runs
from ..runtime.comparison import Comparison
from ..runtime.errors import ExportError, RequestError
from ..runtime.files import replacing
from ..runtime.manifest import Manifest
from ..runtime.onnxfile import append_manifest, check_digest, digest, read_manifest
from .batch_norm_fusion import fuse_batch_norms
from .onnx_graph import convert_opset, element_types, read_onnx, write_onnx
from .precision_emulation import check_half

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
class HalfResult:
    """A file in half precision.

    Attributes:
        path: the file.
        manifest: what it says of itself.
        check: how it compares with the float file.
        operations: how many of the backbone compute in half precision.
        size, size_before: of the files, in bytes.
        seconds: it took.
    """

    path: Path
    manifest: Manifest
    check: Comparison
    operations: int
    size: int
    size_before: int
    seconds: float


def to_half(
    model: str | os.PathLike[str],
    path: str | os.PathLike[str],
    precision: HalfPrecision = "fp16",
) -> HalfResult:
    """Convert the backbone of an explaining graph to half precision, and check the result.

    Inputs, outputs, head, gradients, softmax and map arithmetic stay float32, as do sums, powers
    and normalisations in the backbone. Batch normalisations are fused into the convolutions before
    them.

    Args:
        model: a file made by ``whycam export``.
        path: the file to write.
        precision: ``fp16``, or ``bf16``: the range of float32 with three digits.

    Returns:
        The file, and how it compares with the float file.

    Raises:
        RequestError: the file is not in float32, is the one to write, or both fuses layers and
            sweeps thresholds inside.
        ModelFileError: the file is missing, damaged, or not made by whycam.
        ExportError: the backbone cannot be converted, for instance because a weight overflows.
        VerificationError: the converted file differs too much from the float file; it is deleted.
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
    check_digest(model, manifest)
    if manifest.fused_layers and "tft" in manifest.outputs:
        # From the first of these layers on the backbone runs once for each class, the sweep not.
        raise RequestError(
            f"{model} fuses layers and sweeps thresholds, which together have no half-precision "
            "form: export it without the output tft, or without --fuse"
        )
    with replacing(target) as temporary:
        converted = read_onnx(model)
        if precision == "bf16":
            converted = convert_opset(converted, _BF16_OPSET)
        operations = convert_backbone(converted, precision, manifest.target_tensor)
        write_onnx(converted, temporary)
        half_manifest = msgspec.structs.replace(
            manifest,
            precision=precision,
            opset=max(item.version for item in converted.opset_import if item.domain == ""),
            digest=digest(temporary),
        )
        append_manifest(temporary, half_manifest)
        check = check_half(model, temporary, converted, half_manifest)
        size = temporary.stat().st_size
    return HalfResult(
        target,
        half_manifest,
        check,
        operations,
        size,
        Path(model).stat().st_size,
        time.perf_counter() - begin,
    )


def convert_backbone(
    model: onnx.ModelProto, precision: HalfPrecision, target_tensor: str = "activations"
) -> int:
    """Convert a graph in place; returns how many operations compute in half precision now.

    Args:
        model: an explaining graph.
        precision: see ``to_half``.
        target_tensor: where the backbone ends, see ``Manifest``.

    Raises:
        ExportError: a weight does not fit.
    """
    import onnx

    graph = model.graph
    fuse_batch_norms(graph, {index for run in backbone_runs(graph, target_tensor) for index in run})
    types = element_types(model)
    half = onnx.TensorProto.FLOAT16 if precision == "fp16" else onnx.TensorProto.BFLOAT16
    conversion = _Conversion(graph, types, half)
    inside = {index for run in backbone_runs(graph, target_tensor) for index in run}
    floating = _FLOAT if precision == "fp16" else _FLOAT | _FLOAT_IN_BF16
    for index, node in enumerate(list(graph.node)):
        if index in inside and node.op_type not in floating:
            conversion.convert(node)
        else:
            conversion.keep(node)
    conversion.finish()
    del graph.value_info[:]  # it holds the old types
    return conversion.count


class _Conversion:
    """The new operations and weights of a graph, as its nodes are converted in order."""

    def __init__(self, graph: onnx.GraphProto, types: dict[str, int], half: int) -> None:
        self.count = 0
        self._graph = graph
        self._types = types
        self._half = half
        self._nodes: list[onnx.NodeProto] = []
        self._weights = {tensor.name: tensor for tensor in graph.initializer}
        self._outputs = {value.name for value in graph.output}
        self._in_half: dict[str, str] = {}  # from a float tensor to its copy in half precision
        self._only_half: set[str] = set()  # of these, those without a float tensor yet

    def convert(self, node: onnx.NodeProto) -> None:
        """Let an operation compute in half precision."""
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
            (to,) = (item for item in node.attribute if item.name == "to")
            to.i = self._half
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.TENSOR and floats:
                attribute.t.CopyFrom(self._converted(attribute.t, node, False))
        for position, name in enumerate(node.output):
            if name in floats:
                self._in_half[name] = node.output[position] = f"{name}_half"
                self._only_half.add(name)
        self.count += bool(floats)
        self._nodes.append(node)
        for name in floats:
            if name in self._outputs:
                self._need_float(name)

    def keep(self, node: onnx.NodeProto) -> None:
        """Leave an operation as it is, in float32."""
        for name in node.input:
            self._need_float(name)
        self._nodes.append(node)

    def finish(self) -> None:
        """Write the new operations and weights to the graph, but for what nothing reads."""
        graph = self._graph
        del graph.node[:]
        graph.node.extend(self._nodes)
        read = {name for node in graph.node for name in node.input} | self._outputs
        kept = [tensor for tensor in self._weights.values() if tensor.name in read]
        del graph.initializer[:]
        graph.initializer.extend(kept)

    def _is_float(self, name: str) -> bool:
        return self._types.get(name) == 1  # TensorProto.FLOAT

    def _need_float(self, name: str) -> None:
        """Cast a tensor that was computed in half precision back to float32."""
        import onnx

        if name in self._only_half:
            self._only_half.remove(name)
            self._nodes.append(
                onnx.helper.make_node(
                    "Cast", [self._in_half[name]], [name], f"{name}_to_float", to=1
                )
            )

    def _as_half(self, name: str, reader: onnx.NodeProto, bound: bool) -> str:
        """Return the name of a float tensor's copy in half precision, cast where there is none."""
        import onnx

        if name not in self._in_half:
            copy = f"{name}_half"
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
            values = _to_fp16(values, tensor.name, reader, bound)
        else:
            import ml_dtypes  # a dependency of onnx

            values = values.astype(ml_dtypes.bfloat16)
        return numpy_helper.from_array(values, tensor.name)


def _to_fp16(
    values: NDArray[Any], name: str, reader: onnx.NodeProto, bound: bool
) -> NDArray[np.float16]:
    largest = float(np.finfo(np.float16).max)
    finite = np.abs(values[np.isfinite(values)])
    if not bound and finite.size and finite.max() > largest:
        raise ExportError(
            f"the weight '{name or reader.name}' of '{reader.name}' ({reader.op_type}) holds "
            f"{finite.max():.3g}, more than fp16 can ({largest:g}). Use bf16, which has the range "
            "of float32"
        )
    # Nothing in fp16 exceeds a clipped bound.
    return (
        np.clip(values, -largest, largest).astype(np.float16)
        if bound
        else values.astype(np.float16)
    )
