"""A graph without float32 matrix products, which TensorRT-RTX does not compile for Turing (SM75).

It takes float32 convolutions, sums and element-wise products there. So a product with stored
weights becomes a 1x1 convolution, transposed where the weights are stored that way round: a head
and its gradient still share one copy. A product of two computed matrices, by MatMul or Einsum,
becomes a sum of products.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..runtime.comparison import REWRITTEN, REWRITTEN_PIXELS, Comparison, summarise
from ..runtime.engines import selftest
from ..runtime.engines.opening import open_engine
from ..runtime.errors import VerificationError
from ..runtime.manifest import Manifest
from ..runtime.similarity import norm_difference
from .onnx_graph import element_types, read_onnx, write_onnx

if TYPE_CHECKING:
    import onnx


def replace_matrix_products(model: onnx.ModelProto) -> int:
    """Rewrite in place every float32 Gemm, MatMul and Einsum of two; returns how many.

    What is quantised stays, for there are products of INT8.

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
        plain = types.get(node.output[0]) == onnx.TensorProto.FLOAT and quantised.isdisjoint(
            node.input
        )
        if plain and rewriting.rewritten(node):
            count += 1
        else:
            rewriting.nodes.append(node)
    rewriting.finish()
    return count


def check_equivalence(
    reference: str | os.PathLike[str], path: str | os.PathLike[str], manifest: Manifest
) -> Comparison:
    """Compare a rewritten file with the one it was made of, in ONNX Runtime.

    Returns:
        Of each output the norm of the difference, relative to the output's.

    Raises:
        VerificationError: it exceeds what is allowed.
    """
    # Compared with each other, whatever this processor makes of an INT8 file.
    before, after = (
        open_engine(each, manifest, "onnxruntime", check=False) for each in (reference, path)
    )
    # What a sweep chooses jumps where a pixel lies on a threshold.
    names = [
        n for n in manifest.output_shapes if n not in ("thresholds", "rpi", "masked_probabilities")
    ]
    if "tft" in manifest.outputs:
        names.remove("maps")
    samples = []
    for index in range(selftest.PATTERNS):
        target = -1 - np.arange(min(2, manifest.num_classes), dtype=np.int64)[None]
        feeds = {"image": selftest.feed(manifest, index), "target": target}
        expected, found = (engine.run(feeds, names) for engine in (before, after))
        samples.append(
            {f"output.{name}": norm_difference(found[name], expected[name]) for name in names}
        )
    allowed = REWRITTEN_PIXELS if manifest.embedded_preprocess else REWRITTEN
    compared = summarise("the graph with matrix products", samples, allowed)
    if compared.problems:
        raise VerificationError(
            f"without matrix products {'; '.join(compared.problems)} of its norm. No plan was "
            "written"
        )
    return compared


class _Rewriting:
    """The operations of a graph, one after the other, some of them replaced."""

    def __init__(self, model: onnx.ModelProto) -> None:
        graph = model.graph
        self.nodes: list[onnx.NodeProto] = []
        self._graph = graph
        self._stored = {each.name: each for each in graph.initializer}
        self._shapes: dict[str, list[int | None]] = {
            value.name: [
                side.dim_value if side.HasField("dim_value") else None
                for side in value.type.tensor_type.shape.dim
            ]
            for value in [*graph.value_info, *graph.input, *graph.output]
        }
        self._shapes |= {name: list(each.dims) for name, each in self._stored.items()}

    def rewritten(self, node: onnx.NodeProto) -> bool:
        """Whether a node is a matrix product, which has been replaced then."""
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
            self._by_rows(node, left, right, False, [])
        elif left in self._stored and ranks[0] == 2:
            self._by_columns(node, left, right)
        else:
            self._sum_of_products(node, left, right)
        return True

    def finish(self) -> None:
        """Put the operations in place, and leave out weights that nothing reads."""
        graph = self._graph
        del graph.node[:]
        graph.node.extend(self.nodes)
        read = {name for node in graph.node for name in node.input}
        del graph.initializer[:]
        graph.initializer.extend(each for each in self._stored.values() if each.name in read)
        del graph.value_info[:]

    def _gemm(self, node: onnx.NodeProto) -> bool:
        import onnx

        set_to = {each.name: onnx.helper.get_attribute_value(each) for each in node.attribute}
        left, right, *bias = node.input
        if right not in self._stored or any(len(self._shapes.get(b, ())) != 1 for b in bias):
            return False
        own = node.output[0]
        if set_to.get("transA"):
            rows, columns = self._shapes[left]
            left = self._add("Transpose", [left], f"{own}_turned", perm=[1, 0])
            self._shapes[left] = [columns, rows]
        left = self._scaled(left, set_to.get("alpha", 1.0), f"{own}_scaled")
        bias = [self._scaled(each, set_to.get("beta", 1.0), f"{own}_bias") for each in bias]
        self._by_rows(node, left, right, bool(set_to.get("transB")), bias)
        return True

    def _scaled(self, source: str, factor: float, own: str) -> str:
        """A tensor times a number: stored where it is stored, for a convolution's bias must be."""
        from onnx import numpy_helper

        if factor == 1:
            return source
        if source in self._stored:
            values = numpy_helper.to_array(self._stored[source]) * np.float32(factor)
            self._stored[own] = numpy_helper.from_array(values, own)
            return own
        name = f"{own}_factor"
        self._stored[name] = numpy_helper.from_array(np.array(factor, np.float32), name)
        self._shapes[own] = self._shapes[source]
        return self._add("Mul", [source, name], own)

    def _by_rows(
        self, node: onnx.NodeProto, left: str, right: str, transposed: bool, bias: list[str]
    ) -> None:
        """[..., K] times a stored [K, N], or [N, K] transposed: rows are pixels of K channels."""
        own = node.output[0]
        sides = list(self._stored[right].dims)
        given, wanted = sides[::-1] if transposed else sides
        pixels = self._add(
            "Reshape", [left, self._stored_sizes([-1, given, 1, 1])], f"{own}_pixels"
        )
        kind = "Conv" if transposed else "ConvTranspose"
        kernel = self._kernel(right)
        made = self._add(kind, [pixels, kernel, *bias], f"{own}_made", kernel_shape=[1, 1])
        leading = self._shapes[left][:-1]
        self._add("Reshape", [made, self._sizes(left, [*leading, wanted], f"{own}_sizes")], own)

    def _by_columns(self, node: onnx.NodeProto, left: str, right: str) -> None:
        """A stored [M, K] times [..., K, N]: columns are pixels of K channels."""
        own = node.output[0]
        wanted, given = self._stored[left].dims
        *leading, _, width = self._shapes[right]
        # All leading sides in one, which Reshape finds out by itself.
        sizes = self._sizes(right, [-1, given, width, 1], f"{own}_pixel_sizes", [-1, -2, -1, 0])
        pixels = self._add("Reshape", [right, sizes], f"{own}_pixels")
        made = self._add("Conv", [pixels, self._kernel(left)], f"{own}_made", kernel_shape=[1, 1])
        sizes = self._sizes(right, [*leading, wanted, width], f"{own}_sizes")
        self._add("Reshape", [made, sizes], own)

    def _sum_of_products(self, node: onnx.NodeProto, left: str, right: str) -> None:
        """[..., M, K] times [..., K, N] as sum over K of [..., M, K, 1] * [..., 1, K, N]."""
        own = node.output[0]
        rows = self._add("Unsqueeze", [left, self._stored_sizes([-1])], f"{own}_rows")
        columns = self._add("Unsqueeze", [right, self._stored_sizes([-3])], f"{own}_columns")
        self._multiply(own, [rows, columns], [-2])

    def _einsum(self, node: onnx.NodeProto) -> bool:
        """Both sides with every index as an axis, those that are summed last."""
        terms, arrow, kept = _equation(node).partition("->")
        sides = terms.split(",")
        if not arrow or "." in terms or len(sides) != 2 or any(len(set(s)) < len(s) for s in sides):
            return False
        own = node.output[0]
        summed = [index for index in dict.fromkeys(terms) if index not in {*kept, ","}]
        indices = [*kept, *summed]
        spread = []
        for number, (source, letters) in enumerate(zip(node.input, sides, strict=True)):
            order = [letters.index(each) for each in indices if each in letters]
            turned = self._add("Transpose", [source], f"{own}_turned_{number}", perm=order)
            missing = [axis for axis, each in enumerate(indices) if each not in letters]
            if missing:
                axes = self._stored_sizes(missing)
                turned = self._add("Unsqueeze", [turned, axes], f"{own}_spread_{number}")
            spread.append(turned)
        self._multiply(own, spread, list(range(-len(summed), 0)))
        return True

    def _multiply(self, own: str, sides: list[str], summed: list[int]) -> None:
        """Products of elements, added up along some axes."""
        if not summed:
            self._add("Mul", sides, own)
            return
        products = self._add("Mul", sides, f"{own}_products")
        self._add("ReduceSum", [products, self._stored_sizes(summed)], own, keepdims=0)

    def _add(self, kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
        import onnx

        name = f"{output}_by_{kind.lower()}"
        self.nodes.append(onnx.helper.make_node(kind, inputs, [output], name, **attributes))
        return output

    def _sizes(
        self, source: str, wanted: list[int | None], own: str, axes: list[int] | None = None
    ) -> str:
        """Sizes for a Reshape; what is None is as in ``source``, at the same axis or ``axes``.

        Known sizes stay numbers: TensorRT infers shapes from them.
        """
        free = wanted.count(None)
        if free == 0 or (free == 1 and -1 not in wanted):
            return self._stored_sizes([-1 if side is None else side for side in wanted])
        parts = []
        for index, side in enumerate(wanted):
            if side is not None:
                parts.append(self._stored_sizes([side]))
                continue
            axis = index if axes is None else axes[index]
            end = {} if axis == -1 else {"end": axis + 1}
            parts.append(self._add("Shape", [source], f"{own}_{index}", start=axis, **end))
        return self._add("Concat", parts, own, axis=0)

    def _stored_sizes(self, values: list[int]) -> str:
        """A stored list of whole numbers."""
        from onnx import numpy_helper

        name = "sizes_" + "_".join(map(str, values))
        if name not in self._stored:
            self._stored[name] = numpy_helper.from_array(np.array(values, np.int64), name)
        return name

    def _kernel(self, matrix: str) -> str:
        """A stored matrix as a 1x1 kernel: the same numbers."""
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
    """What an Einsum computes, without blanks."""
    written = next((each.s for each in node.attribute if each.name == "equation"), b"")
    return "".join(str(written, "ascii", "replace").split())


def write_for_turing(model: str | os.PathLike[str], path: Path, manifest: Manifest) -> int:
    """Write a file's graph without float32 matrix products, checked; returns how many there were.

    Raises:
        ModelFileError: the file cannot be read.
        VerificationError: it does not compute the same.
    """
    rewritten = read_onnx(model)
    count = replace_matrix_products(rewritten)
    write_onnx(rewritten, path)
    check_equivalence(model, path, manifest)
    return count
