"""Read an ONNX classifier of any origin and normalise its graph, so that the export can rely on it.

A plain model has one graph without functions or subgraphs, opset 18 or later, initializers that are
not inputs, one image input with a free batch, and constants in place of shape arithmetic. Its float
operations are neither changed nor fused.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from string import ascii_lowercase

import onnx_ir as ir
import onnx_ir.passes.common as passes

from ..runtime.errors import ExportError
from ..runtime.input_format import Layout
from .dims import Dim, dim_text
from .free_batch import free_batch
from .input_geometry import read_geometry
from .input_sizes import InputSizes, find_input_sizes
from .onnx_reading import DOMAINS
from .shapes import Shapes, find_shapes
from .simplify import (
    drop_expansions,
    drop_strided_views,
    fold_constants,
    resolve_conditions,
)

_INTEGER_OPERATORS = {"QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger"}
_IMAGE_TYPES = {ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.UINT8}


@dataclass(frozen=True)
class PlainModel:
    """A classifier in plain form.

    Attributes:
        model: its graph and opset; changed in place by those who add to it.
        image: the graph input that takes images.
        size: (H, W) of the images; the usual one where it is free.
        channels: C of the images.
        layout: ``NCHW`` or ``NHWC``.
        shapes: of every tensor.
        metadata: of the file, as its exporter wrote it.
        changes: to the file's interface, for the user to read.
        sizes: the heights and widths that it takes; None where these are fixed.
    """

    model: ir.Model
    image: ir.Value
    size: tuple[int, int]
    channels: int
    layout: Layout
    shapes: Shapes
    metadata: dict[str, str]
    changes: tuple[str, ...]
    sizes: InputSizes | None = None

    @property
    def input_dims(self) -> tuple[Dim, Dim]:
        """Height and width of the images."""
        return self.size if self.sizes is None else self.sizes.dims

    @property
    def graph(self) -> ir.Graph:
        """The model's one graph."""
        return self.model.graph


def to_plain(
    model: ir.Model,
    image_size: tuple[int, int] | None = None,
    layout: str | None = None,
    metadata: dict[str, str] | None = None,
    dynamic_size: tuple[int, int] | None = None,
    channels: int | None = None,
) -> PlainModel:
    """Normalise a model to plain form, in place.

    Args:
        model: from ``read_onnx_file`` or PyTorch's exporter.
        image_size: (H, W), for files whose height and width are free.
        layout: of the image input, ``NCHW`` or ``NHWC``; by default as the graph reads it.
        metadata: of the file.
        dynamic_size: the least and largest height or width, to keep these free.
        channels: of the image input, for files that leave them free.

    Raises:
        ExportError: it cannot be explained, because of operators outside ONNX, several inputs,
            control flow, or shapes that depend on the data.
    """
    changes: list[str] = []
    passes.InlinePass()(model)
    passes.RemoveInitializersFromInputsPass()(model)
    passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    graph = model.graph
    _normalise_domains(model)
    _check_operators(graph)
    _name_nodes(graph)
    image = _image_input(graph)
    channels, size, layout, batch = read_geometry(image, image_size, layout, channels)
    inner = (channels, *size) if layout == "NCHW" else (*size, channels)
    free = _free_sizes(image, size, batch, dynamic_size)
    resolve_conditions(
        graph,
        image,
        [
            (batch or 2, *((channels, *each) if layout == "NCHW" else (*each, channels)))
            for each in free
        ],
    )
    passes.RemoveUnusedNodesPass()(model)
    sizes: InputSizes | None = None
    dims: tuple[Dim, ...] = inner
    if dynamic_size is not None:
        sizes = find_input_sizes(graph, image, channels, layout, size, dynamic_size)
        dims = (channels, *sizes.dims) if layout == "NCHW" else (*sizes.dims, channels)
    if batch is not None:
        free_batch(graph, image, batch, inner)
        changes.append(f"its batch size was fixed at {batch}; now it is free")
    image.shape = ir.Shape(["N", *map(dim_text, dims)])
    if sizes is None:
        shapes = find_shapes(graph, {image: dims})
    else:
        shapes = replace(
            find_shapes(graph, {image: dims}, sizes.probes), one=sizes.one, largest=sizes.largest
        )
    drop_strided_views(graph, shapes)
    drop_expansions(graph, shapes)
    fold_constants(graph, shapes)
    passes.RemoveUnusedNodesPass()(model)
    for value in graph.outputs:
        if value in shapes.dims:
            value.shape = ir.Shape([dim_text(side) for side in shapes.dims[value]])
    return PlainModel(
        model,
        image,
        size,
        channels,
        "NHWC" if layout == "NHWC" else "NCHW",
        shapes,
        dict(metadata or {}),
        tuple(changes),
        sizes,
    )


def _free_sizes(
    image: ir.Value,
    usual: tuple[int, int],
    batch: int | None,
    limits: tuple[int, int] | None,
) -> list[tuple[int, int]]:
    """List the sizes at which a graph's conditions must agree.

    Raises:
        ExportError: the file fixes its batch or its size, though any size was asked for.
    """
    if limits is None:
        return [usual]
    assert image.shape is not None
    fixed = [side for side in list(image.shape)[1:] if isinstance(side, int) and side > 0]
    if batch is not None or len(fixed) > 1:
        raise ExportError(
            f"the input '{image.name}' {image.shape} fixes its {'batch' if batch else 'size'}: "
            "--dynamic-size needs a file whose batch, height and width are all free"
        )
    return [usual, (limits[0], limits[0]), (limits[1], limits[1])]


def _normalise_domains(model: ir.Model) -> None:
    for node in model.graph.all_nodes():
        if node.domain == "ai.onnx":
            node.domain = ""
        if node.op_type == "Einsum" and "equation" in node.attributes:
            equation = rename_einsum_indices(node.attributes["equation"].as_string())
            node.attributes["equation"] = ir.AttrString("equation", equation)
    imports = model.graph.opset_imports
    if "ai.onnx" in imports:
        imports[""] = imports.pop("ai.onnx")


def rename_einsum_indices(equation: str) -> str:
    """Rename the indices of an Einsum equation to a, b, c .., as TensorRT requires.

    An equation of more than 26 indices stays as it is.
    """
    indices = dict.fromkeys(letter for letter in equation if letter.isalpha())
    if len(indices) > len(ascii_lowercase):
        return equation
    renamed = dict(zip(indices, ascii_lowercase, strict=False))
    return "".join(renamed.get(letter, letter) for letter in equation)


def _check_operators(graph: ir.Graph) -> None:
    for node in graph.all_nodes():
        if node.domain not in DOMAINS:
            raise ExportError(
                f"the node '{node.name}' is {node.domain}::{node.op_type}, an operator of a "
                "vendor, not of ONNX. Such files come from an optimiser that works for one engine: "
                "explain the file as it was before that step"
            )
        if node.op_type in _INTEGER_OPERATORS:
            raise ExportError(
                f"the node '{node.name}' ({node.op_type}) computes in integers, which have no "
                "gradient. Quantise in the QDQ format instead, or explain the float file and "
                "quantise it with: whycam calibrate int8"
            )


def _name_nodes(graph: ir.Graph) -> None:
    """Give every node and value a unique name that does not begin with ``whycam/``."""
    taken: set[str] = set()
    for index, node in enumerate(graph):
        name = node.name or f"{node.op_type}_{index}"
        while name in taken or name.startswith("whycam/"):
            name = f"n/{name}"
        node.name = name
        taken.add(name)
        for output in node.outputs:
            if output.name and output.name.startswith("whycam/") and not output.is_graph_output():
                output.name = f"n/{output.name}"
    for value in list(graph.initializers.values()):
        if value.name and value.name.startswith("whycam/"):
            value.name = f"n/{value.name}"


def _image_input(graph: ir.Graph) -> ir.Value:
    used = [value for value in graph.inputs if value.uses()]
    if len(used) == 1 and used[0].shape is not None and len(used[0].shape) == 4:
        value = used[0]
        if value.dtype not in _IMAGE_TYPES:
            raise ExportError(
                f"the input '{value.name}' has elements of type {value.dtype}; images are float32, "
                "float16 or uint8"
            )
        return value
    listed = ", ".join(f"'{value.name}' {value.shape}" for value in used) or "none"
    raise ExportError(
        "an image classifier has one input of four axes (batch, channels, height, width); this one "
        f"has: {listed}"
    )
