"""A graph's trunk in half precision: weights stored in 16 bits, everything after A in float32.

onnxruntime.transformers.float16 was tried first, with everything but the trunk blocked: it has no
bf16, cuts weights that do not fit to 65504 without a word, and leaves operations in an order that
onnx.checker refuses.
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
from ..runtime.engines.interface import graph_name
from ..runtime.errors import ExportError, RequestError
from ..runtime.files import replacing
from ..runtime.manifest import Manifest
from ..runtime.onnxfile import append_manifest, digest, read_manifest
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
        operations: of the trunk, that compute in half precision.
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
    """Convert the trunk of an explaining graph to half precision, and prove it.

    Inputs, outputs, head, gradients, softmax and map arithmetic stay float32. In the trunk, sums,
    powers and normalisations do as well; batch normalisation goes into the convolution before it.

    Args:
        model: a file made by ``whycam export``.
        path: the file to write.
        precision: ``fp16``, or ``bf16``: the range of float32 with three digits.

    Returns:
        What was made, with the proof.

    Raises:
        RequestError: the file is not in float32, is the one to write, or both fuses layers and
            sweeps thresholds inside.
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
    if manifest.fused_layers and "tft" in manifest.outputs:
        # Its trunk runs once for each class from the first of these layers on, its sweep does not.
        raise RequestError(
            f"{model} fuses layers and sweeps thresholds inside, which has no half-precision form: "
            "export it without the output tft, or without --fuse"
        )
    with replacing(target) as temporary:
        converted = read_onnx(model)
        if precision == "bf16":
            converted = convert_opset(converted, _BF16_OPSET)
        count = convert_backbone(converted, precision, graph_name("activations", manifest))
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
    return HalfResult(
        target,
        own,
        check,
        count,
        size,
        Path(model).stat().st_size,
        time.perf_counter() - begin,
    )


def convert_backbone(
    model: onnx.ModelProto, precision: HalfPrecision, activations: str = "activations"
) -> int:
    """Convert in place; returns how many operations compute in half precision now.

    Raises:
        ExportError: a weight does not fit.
    """
    import onnx

    graph = model.graph
    fuse_batch_norms(graph, {index for run in backbone_runs(graph, activations) for index in run})
    types = element_types(model)
    half = onnx.TensorProto.FLOAT16 if precision == "fp16" else onnx.TensorProto.BFLOAT16
    converted = _Conversion(graph, types, half)
    inside = {index for run in backbone_runs(graph, activations) for index in run}
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
                self._in_half[name] = node.output[position] = f"{name}_half"
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
