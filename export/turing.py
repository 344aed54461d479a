"""Replace float32 matrix products, which TensorRT-RTX does not compile for Turing (SM75).

It compiles float32 convolutions, sums and element-wise products there. So a product with a stored
matrix becomes a 1x1 convolution, or a transposed one, so that a head and its gradient still share
one copy of the weights. A product of two computed matrices, by MatMul or Einsum, becomes a sum of
products.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..runtime.comparison import REWRITTEN, REWRITTEN_PIXELS, Comparison, summarise
from ..runtime.engines import detection_selftest, selftest
from ..runtime.engines.opening import open_engine
from ..runtime.engines.prompted import with_examples
from ..runtime.errors import VerificationError
from ..runtime.manifest import Manifest
from ..runtime.similarity import norm_difference
from .onnx_graph import element_types, read_onnx, write_onnx

if TYPE_CHECKING:
    import onnx


def replace_matrix_products(model: onnx.ModelProto) -> int:
    """Replace every float32 Gemm, MatMul and two-operand Einsum in place; returns how many.

    Quantised products stay, for Turing has those in INT8.

    Args:
        model: with shapes inferred.
    """
    import onnx

    graph = model.graph
    types = element_types(model)
    quantised = {n.output[0] for n in graph.node if n.op_type == "DequantizeLinear"}
    rewriting = _Rewriting(model)
    count = 0
    for node in graph.node:
        is_float = types.get(node.output[0]) == onnx.TensorProto.FLOAT and quantised.isdisjoint(
            node.input
        )
        if is_float and rewriting.replace(node):
            count += 1
        else:
            rewriting.nodes.append(node)
    rewriting.finish()
    return count


def check_equivalence(
    reference: str | os.PathLike[str], path: str | os.PathLike[str], manifest: Manifest
) -> Comparison:
    """Compare a rewritten file with the original, in ONNX Runtime.

    Returns:
        The norm of each output's difference, relative to the output's norm.

    Raises:
        VerificationError: a difference exceeds its tolerance.
    """
    # Unchecked: this processor may compute an INT8 file otherwise, but both files alike.
    before, after = (
        with_examples(open_engine(file, manifest, "onnxruntime", check=False), manifest)
        for file in (reference, path)
    )
    # The chosen threshold jumps where a pixel lies on one, so it is not compared.
    names = [
        n for n in manifest.output_shapes if n not in ("thresholds", "rpi", "masked_probabilities")
    ]
    if "tft" in manifest.outputs:
        names.remove("maps")
    samples = []
    for index in range(selftest.PATTERNS):
        target = -1 - np.arange(min(2, manifest.num_classes), dtype=np.int64)[None]
        if manifest.detector is not None:
            target = detection_selftest.targets_of(manifest, index)
        feeds = {"image": selftest.make_input(manifest, index), "target": target}
        expected, actual = (engine.run(feeds, names) for engine in (before, after))
        samples.append(
            {f"output.{name}": norm_difference(actual[name], expected[name]) for name in names}
        )
    tolerances = REWRITTEN_PIXELS if manifest.embedded_preprocess else REWRITTEN
    comparison = summarise("the graph with matrix products", samples, tolerances)
    if comparison.problems:
        raise VerificationError(
            f"without matrix products {'; '.join(comparison.problems)} of its norm. No plan was "
            "written"
        )
    return comparison


class _Rewriting:
    """The new operations and weights of a graph, as its nodes are replaced in order."""

    def __init__(self, model: onnx.ModelProto) -> None:
        graph = model.graph
        self.nodes: list[onnx.NodeProto] = []
        self._graph = graph
        self._stored = {tensor.name: tensor for tensor in graph.initializer}
        self._shapes: dict[str, list[int | None]] = {
            value.name: [
                side.dim_value if side.HasField("dim_value") else None
                for side in value.type.tensor_type.shape.dim
            ]
            for value in [*graph.value_info, *graph.input, *graph.output]
        }
        self._shapes |= {name: list(tensor.dims) for name, tensor in self._stored.items()}

    def replace(self, node: onnx.NodeProto) -> bool:
        """Replace a node if it is a matrix product; returns whether it was."""
        if node.op_type == "Gemm":
            return self._gemm(node)
        if node.op_type == "Einsum":
            return self._einsum(node)
        if node.op_type != "MatMul":
            return False
        left, right = node.input
        ranks = [len(self._shapes.get(name, ())) for name in (left, right)]
        if min(ranks) < 2:
            return False
        if right in self._stored and ranks[1] == 2:
            self._convolve_rows(node.output[0], left, right, False, [])
        elif left in self._stored and ranks[0] == 2:
            self._convolve_columns(node, left, right)
        else:
            self._sum_of_products(node, left, right)
        return True

    def finish(self) -> None:
        """Write the operations to the graph, and the weights that something reads."""
        graph = self._graph
        del graph.node[:]
        graph.node.extend(self.nodes)
        read = {name for node in graph.node for name in node.input}
        del graph.initializer[:]
        graph.initializer.extend(t for t in self._stored.values() if t.name in read)
        del graph.value_info[:]

    def _gemm(self, node: onnx.NodeProto) -> bool:
        import onnx

        attributes = {item.name: onnx.helper.get_attribute_value(item) for item in node.attribute}
        left, right, *bias = node.input
        output = node.output[0]
        if left in self._stored and attributes.get("transB") and not bias:  # W G' = (G W')'
            scaled = self._scale(right, attributes.get("alpha", 1.0), f"{output}_scaled")
            flipped = not attributes.get("transA")
            self._convolve_rows(f"{output}_rows", scaled, left, flipped, [])
            self._add("Transpose", [f"{output}_rows"], output, perm=[1, 0])
            return True
        if right not in self._stored or any(len(self._shapes.get(b, ())) != 1 for b in bias):
            return False
        if attributes.get("transA"):
            rows, columns = self._shapes[left]
            left = self._add("Transpose", [left], f"{output}_transposed", perm=[1, 0])
            self._shapes[left] = [columns, rows]
        left = self._scale(left, attributes.get("alpha", 1.0), f"{output}_scaled")
        bias = [self._scale(term, attributes.get("beta", 1.0), f"{output}_bias") for term in bias]
        self._convolve_rows(output, left, right, bool(attributes.get("transB")), bias)
        return True

    def _scale(self, source: str, factor: float, output: str) -> str:
        """Multiply a tensor by a number; a stored one stays stored, as a bias must be."""
        from onnx import numpy_helper

        if factor == 1:
            return source
        if source in self._stored:
            values = numpy_helper.to_array(self._stored[source]) * np.float32(factor)
            self._stored[output] = numpy_helper.from_array(values, output)
            return output
        name = f"{output}_factor"
        self._stored[name] = numpy_helper.from_array(np.array(factor, np.float32), name)
        self._shapes[output] = self._shapes[source]
        return self._add("Mul", [source, name], output)

    def _convolve_rows(
        self, output: str, left: str, right: str, transposed: bool, bias: list[str]
    ) -> None:
        """Compute [..., K] @ stored [K, N] (or [N, K] transposed): rows as pixels of K channels."""
        sides = list(self._stored[right].dims)
        channels, width = sides[::-1] if transposed else sides
        pixels = self._add(
            "Reshape", [left, self._stored_sizes([-1, channels, 1, 1])], f"{output}_pixels"
        )
        kind = "Conv" if transposed else "ConvTranspose"
        kernel = self._kernel(right)
        product = self._add(kind, [pixels, kernel, *bias], f"{output}_product", kernel_shape=[1, 1])
        leading = self._shapes[left][:-1]
        self._add(
            "Reshape", [product, self._sizes(left, [*leading, width], f"{output}_sizes")], output
        )

    def _convolve_columns(self, node: onnx.NodeProto, left: str, right: str) -> None:
        """Compute stored [M, K] @ [..., K, N]: columns as pixels of K channels."""
        output = node.output[0]
        height, channels = self._stored[left].dims
        *leading, _, width = self._shapes[right]
        # Reshape works out the product of all leading axes.
        sizes = self._sizes(
            right, [-1, channels, width, 1], f"{output}_pixel_sizes", [-1, -2, -1, 0]
        )
        pixels = self._add("Reshape", [right, sizes], f"{output}_pixels")
        kernel = self._kernel(left)
        product = self._add("Conv", [pixels, kernel], f"{output}_product", kernel_shape=[1, 1])
        sizes = self._sizes(right, [*leading, height, width], f"{output}_sizes")
        self._add("Reshape", [product, sizes], output)

    def _sum_of_products(self, node: onnx.NodeProto, left: str, right: str) -> None:
        """Compute [..., M, K] @ [..., K, N] as sum over K of [..., M, K, 1] * [..., 1, K, N]."""
        output = node.output[0]
        rows = self._add("Unsqueeze", [left, self._stored_sizes([-1])], f"{output}_rows")
        columns = self._add("Unsqueeze", [right, self._stored_sizes([-3])], f"{output}_columns")
        self._multiply_and_sum(output, [rows, columns], [-2])

    def _einsum(self, node: onnx.NodeProto) -> bool:
        """Give both operands every index as an axis, summed ones last, then multiply and sum."""
        terms, arrow, kept = _equation(node).partition("->")
        sides = terms.split(",")
        if not arrow or "." in terms or len(sides) != 2 or any(len(set(s)) < len(s) for s in sides):
            return False
        output = node.output[0]
        summed = [index for index in dict.fromkeys(terms) if index not in {*kept, ","}]
        indices = [*kept, *summed]
        operands = []
        for number, (source, letters) in enumerate(zip(node.input, sides, strict=True)):
            order = [letters.index(index) for index in indices if index in letters]
            operand = self._add("Transpose", [source], f"{output}_transposed_{number}", perm=order)
            missing = [axis for axis, index in enumerate(indices) if index not in letters]
            if missing:
                axes = self._stored_sizes(missing)
                operand = self._add("Unsqueeze", [operand, axes], f"{output}_unsqueezed_{number}")
            operands.append(operand)
        self._multiply_and_sum(output, operands, list(range(-len(summed), 0)))
        return True

    def _multiply_and_sum(self, output: str, operands: list[str], summed: list[int]) -> None:
        """Multiply element by element, and sum along some axes."""
        if not summed:
            self._add("Mul", operands, output)
            return
        products = self._add("Mul", operands, f"{output}_products")
        self._add("ReduceSum", [products, self._stored_sizes(summed)], output, keepdims=0)

    def _add(self, kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
        import onnx

        name = f"{output}_by_{kind.lower()}"
        self.nodes.append(onnx.helper.make_node(kind, inputs, [output], name, **attributes))
        return output

    def _sizes(
        self, source: str, sides: list[int | None], output: str, axes: list[int] | None = None
    ) -> str:
        """Record sizes for a Reshape; None is the size of ``source`` at that axis, or ``axes``.

        Known sizes stay constants, from which TensorRT infers shapes.
        """
        free = sides.count(None)
        if free == 0 or (free == 1 and -1 not in sides):
            return self._stored_sizes([-1 if side is None else side for side in sides])
        parts = []
        for index, side in enumerate(sides):
            if side is not None:
                parts.append(self._stored_sizes([side]))
                continue
            axis = index if axes is None else axes[index]
            end = {} if axis == -1 else {"end": axis + 1}
            parts.append(self._add("Shape", [source], f"{output}_{index}", start=axis, **end))
        return self._add("Concat", parts, output, axis=0)

    def _stored_sizes(self, values: list[int]) -> str:
        """Store a list of integers once."""
        from onnx import numpy_helper

        name = "sizes_" + "_".join(map(str, values))
        if name not in self._stored:
            self._stored[name] = numpy_helper.from_array(np.array(values, np.int64), name)
        return name

    def _kernel(self, matrix: str) -> str:
        """Store a matrix a second time as a 1x1 kernel."""
        import onnx

        name = f"{matrix}_1x1"
        if name not in self._stored:
            kernel = onnx.TensorProto()
            kernel.CopyFrom(self._stored[matrix])
            kernel.name = name
            kernel.dims.extend([1, 1])
            self._stored[name] = kernel
        return name


def _equation(node: onnx.NodeProto) -> str:
    """Return the equation of an Einsum without blanks."""
    equation = next((item.s for item in node.attribute if item.name == "equation"), b"")
    return "".join(str(equation, "ascii", "replace").split())


def write_for_turing(model: str | os.PathLike[str], path: Path, manifest: Manifest) -> int:
    """Write a file's graph without float32 matrix products; returns how many were replaced.

    Raises:
        ModelFileError: the file cannot be read.
        VerificationError: the new graph does not compute the same.
    """
    rewritten = read_onnx(model)
    count = replace_matrix_products(rewritten)
    write_onnx(rewritten, path)
    check_equivalence(model, path, manifest)
    return count
