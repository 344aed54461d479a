"""Arithmetic recorded as ONNX nodes and run in ONNX Runtime, as a plain function of arrays."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime

from whycam.export.dims import Dim
from whycam.export.recorder import Recorder
from whycam.export.tensors import Tensor

_TYPES = {
    np.dtype(np.float32): ir.DataType.FLOAT,
    np.dtype(np.uint8): ir.DataType.UINT8,
    np.dtype(np.int64): ir.DataType.INT64,
}


def run_recorded(
    formula: Callable[..., Tensor],
    *arrays: np.ndarray,
    shapes: Sequence[Sequence[Dim]] | None = None,
) -> np.ndarray:
    """What a formula on recorded tensors gives for these arrays.

    Args:
        formula: takes a ``Tensor`` for each array.
        arrays: its inputs.
        shapes: the inputs' shapes with ``Size`` where they are not known; by default as they are.
            The symbols are read off the first input's axes.
    """
    graph = ir.Graph([], [], nodes=[], opset_imports={"": 18}, name="recorded")
    recorder = Recorder(graph)
    tensors = []
    for index, array in enumerate(arrays):
        dims = tuple(array.shape if shapes is None else shapes[index])
        kind = _TYPES[array.dtype]
        sides = [side if isinstance(side, int) else "*".join(side.symbols) for side in dims]
        value = ir.Value(name=f"x{index}", shape=ir.Shape(sides), type=ir.TensorType(kind))
        graph.inputs.append(value)
        tensors.append(Tensor(recorder, value, dims, kind))
    first = tensors[0]
    lengths = recorder.op("Shape", [first], (first.ndim,), ir.DataType.INT64)
    for axis, side in enumerate(first.shape):
        if not isinstance(side, int):
            recorder.symbols[side.symbols[0]] = lengths[axis : axis + 1]
    found = formula(*tensors)
    graph.outputs.append(found.value)
    data = ir.to_proto(ir.Model(graph, ir_version=10)).SerializeToString()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # more of them would wait for one another, computing nothing
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    feeds: dict[str, Any] = {f"x{index}": array for index, array in enumerate(arrays)}
    return session.run(None, feeds)[0]
