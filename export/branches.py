"""Divide an ONNX file with an image and a text encoder by data flow.

What the image input alone reaches is the image encoder, what the other inputs alone reach the text
encoder. Class scores are products of both: where an embedding of one meets that of the other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as passes
from onnx.reference import ReferenceEvaluator

from ..runtime.errors import ExportError
from .shapes import Shapes
from .subgraph import open_model_session, submodel
from .zero_shot import LogitParameters

_PRODUCTS = {"MatMul", "Gemm", "Einsum"}
_COPIES = {"Identity", "Cast", "Dropout"}
_IMAGE_TYPES = {ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.UINT8}
EMBEDDING = "image_embeds"  # the name of an embedding that the file does not return itself
_TOLERANCE = 1e-3
_IMAGES, _TEXTS, _TOKENS, _SIDE = 2, 3, 8, 224  # where the file leaves them free


@dataclass(frozen=True)
class Branches:
    """The two encoders in a graph.

    Attributes:
        image: the graph input with images.
        texts: the other graph inputs that are read.
        image_embedding, text_embedding: the tensors [N, D] and [T, D] whose products are class
            scores; None where they do not meet.
        products: the nodes at which they meet.
    """

    image: ir.Value
    texts: tuple[ir.Value, ...]
    image_embedding: ir.Value | None
    text_embedding: ir.Value | None
    products: tuple[ir.Node, ...]


def find_branches(graph: ir.Graph) -> Branches | None:
    """Find an image and a text encoder; None where a graph reads no images or nothing else.

    The graph's nodes are put in order.

    Raises:
        ExportError: there are several inputs for images, or both encoders meet in other ways than
            by products of their embeddings.
    """
    graph.sort()  # converters to float16 append casts behind all other nodes
    used = [value for value in graph.inputs if value.uses() and not value.is_initializer()]
    images = [value for value in used if _is_image(value)]
    if len(used) < 2 or not images:
        return None
    if len(images) > 1:
        listed = ", ".join(f"'{value.name}' {value.shape}" for value in images)
        raise ExportError(f"there are several inputs for images: {listed}")
    image = images[0]
    texts = tuple(value for value in used if value is not image)
    of_image, of_texts = _reach(graph, [image]), _reach(graph, texts)
    products: list[ir.Node] = []
    pairs: dict[tuple[ir.Value, ir.Value], None] = {}
    for node in graph:
        given = [value for value in node.inputs if value is not None]
        first = [v for v in given if v in of_image and v not in of_texts]
        second = [v for v in given if v in of_texts and v not in of_image]
        if not first or not second:
            continue
        embedding, text = _embedding_of(first[0], of_image), _embedding_of(second[0], of_texts)
        is_product = node.op_type in _PRODUCTS and len(first) + len(second) == 2
        if not is_product or embedding is None or text is None:
            raise ExportError(
                f"image and text meet at the node '{node.name}' ({node.op_type}), which is no "
                "product of an image embedding and text embeddings: a network that looks at both "
                "together has no image encoder that could be explained alone"
            )
        products.append(node)
        pairs[embedding, text] = None
    if not pairs:
        return Branches(image, texts, None, None, ())
    if len(pairs) > 1:
        names = ", ".join(f"'{embedding.name}'" for embedding, _ in pairs)
        raise ExportError(
            f"image and text meet at several places ({names}): which of them is the image "
            "embedding is not known"
        )
    ((embedding, text),) = pairs
    return Branches(image, texts, embedding, text, tuple(products))


def _is_image(value: ir.Value) -> bool:
    return value.shape is not None and len(value.shape) == 4 and value.dtype in _IMAGE_TYPES


def _reach(graph: ir.Graph, inputs: Sequence[ir.Value]) -> set[ir.Value]:
    """Find the tensors that depend on some inputs, also through subgraphs."""
    reached = set(inputs)
    for node in graph:
        if any(value in reached for value in _inputs_of(node)):
            reached.update(node.outputs)
    return reached


def _inputs_of(node: ir.Node) -> list[ir.Value]:
    """List a node's inputs, and what graphs inside it read."""
    found = [value for value in node.inputs if value is not None]
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            for inner in attribute.as_graph():
                found.extend(_inputs_of(inner))
    return found


def _embedding_of(value: ir.Value, reach: set[ir.Value]) -> ir.Value | None:
    """Walk back over transposes and factors to an embedding; None if its rank is another than 2."""
    while True:
        if value.shape is not None and len(value.shape) != 2:
            return None
        node = value.producer()
        if node is None:
            return value
        if node.op_type == "Unsqueeze":
            return None
        given = [each for each in node.inputs if each is not None and each in reach]
        is_factor = (
            node.op_type in ("Mul", "Div") and len(given) == 1 and node.inputs[0] is given[0]
        )
        is_factor = is_factor and _number(node.inputs[1]) is not None  # no normalisation
        if not (is_factor or node.op_type in _COPIES or node.op_type == "Transpose"):
            return value
        value = given[0]


def _number(value: ir.Value | None) -> float | None:
    """Compute a single number that depends on no input; None for anything else."""
    if value is None or not _is_constant(value):
        return None
    array = _compute(value)
    return float(array.item()) if array.size == 1 else None


def _is_constant(value: ir.Value) -> bool:
    pending: list[ir.Value] = [value]
    visited: set[ir.Value] = set()
    while pending:
        current = pending.pop()
        node = current.producer()
        if current in visited or current.is_initializer():
            continue
        if node is None or len(visited) > 50:
            return False
        visited.add(current)
        pending.extend(_inputs_of(node))
    return True


def _compute(value: ir.Value) -> np.ndarray:
    if value.const_value is not None:
        return value.const_value.numpy()
    node = value.producer()
    assert node is not None
    assert node.graph is not None
    part = ir.to_proto(submodel(node.graph, [], [value], Shapes({}, {}, {}, {})))
    results: Sequence[Any] = ReferenceEvaluator(part).run(None, {})  # type: ignore[assignment]
    return np.asarray(results[0])


def cut_image_encoder(model: ir.Model, branches: Branches) -> str:
    """Leave only the image encoder of a graph, in place.

    Returns:
        What was left out, for the user.

    Raises:
        ExportError: nothing that the graph returns or multiplies depends on the image alone.
    """
    graph = model.graph
    of_texts = _reach(graph, branches.texts)
    kept = [value for value in graph.outputs if value not in of_texts]
    dropped = [str(value.name) for value in graph.outputs if value in of_texts]
    embedding = branches.image_embedding
    if embedding is not None:
        # What meets the texts is the embedding; other outputs of the image encoder are steps to it.
        kept = [embedding]
        if not embedding.is_graph_output():
            taken = {value.name for node in graph for value in node.outputs}
            embedding.name = EMBEDDING if EMBEDDING not in taken else f"whycam_{EMBEDDING}"
    if not kept:
        raise ExportError(
            f"no output depends on the image '{branches.image.name}' alone, and there is no "
            "product of an image embedding with text embeddings: such a network is no zero-shot "
            "classifier"
        )
    _keep(model, [branches.image], kept)
    texts = ", ".join(f"'{value.name}'" for value in branches.texts)
    return (
        f"the image encoder is what the input '{branches.image.name}' alone reaches, up to "
        f"{', '.join(repr(str(value.name)) for value in kept)}: the file has neither the inputs "
        f"{texts} nor the outputs {', '.join(map(repr, dropped))} of the original"
    )


def cut_text_encoder(model: ir.Model, branches: Branches) -> None:
    """Leave only the text encoder of a graph, in place.

    Raises:
        ExportError: nothing that the graph returns or multiplies depends on the texts alone.
    """
    graph = model.graph
    of_image = _reach(graph, [branches.image])
    kept = [value for value in graph.outputs if value not in of_image]
    if branches.text_embedding is not None:
        kept = [branches.text_embedding]
    if not kept:
        raise ExportError("no output depends on the texts alone")
    _keep(model, branches.texts, kept)


def open_branch(model: ir.Model, is_fused: bool = True) -> Any:
    """Open an inference session of ONNX Runtime on the CPU for a file's encoder.

    Raises:
        ExportError: it cannot run the graph.
    """
    halves = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
    is_half = any(value.dtype in halves for value in model.graph.initializers.values())
    return open_model_session(model, "fp16" if is_half else "fp32", is_fused=is_fused)


def _keep(model: ir.Model, inputs: Sequence[ir.Value], outputs: Sequence[ir.Value]) -> None:
    graph = model.graph
    for value in list(graph.outputs):
        graph.outputs.remove(value)
    graph.outputs.extend(outputs)
    for value in outputs:
        if value.type is None:
            value.type = ir.TensorType(ir.DataType.FLOAT)
    passes.RemoveUnusedNodesPass()(model)
    for value in [value for value in graph.inputs if value not in inputs]:
        graph.inputs.remove(value)


def read_parameters(model: ir.Model, branches: Branches) -> LogitParameters | None:
    """Read scale and bias of class scores from a graph, and check them by its own answers.

    Returns:
        None where the graph returns no scores, or other ones than scaled cosine similarities.
    """
    for product in branches.products:
        for output in model.graph.outputs:
            found = _scale_and_bias(product, output, branches)
            if found is None or not found[0] > 0:
                continue
            scale, bias = found
            if _is_confirmed(model, branches, output, scale, bias):
                return LogitParameters(math.log(scale), bias)
    return None


def _scale_and_bias(
    product: ir.Node, output: ir.Value, branches: Branches
) -> tuple[float, float | None] | None:
    """Read the scores' scale, from both operands and what follows; None if more follows."""
    scale, bias = 1.0, None
    value = output
    while value not in product.outputs:
        node = value.producer()
        if node is None:
            return None
        numbers = [_number(each) for each in node.inputs]
        if node.op_type in _COPIES or node.op_type == "Transpose":
            value = node.inputs[0]  # type: ignore[assignment]
            continue
        place = next((i for i, each in enumerate(numbers) if each is None), None)
        if node.op_type not in ("Mul", "Div", "Add", "Sub") or place is None or len(numbers) != 2:
            return None
        number = numbers[1 - place]
        if number is None or (place == 1 and node.op_type in ("Div", "Sub")):
            return None
        if node.op_type in ("Add", "Sub"):
            if bias is not None:
                return None
            bias = scale * (number if node.op_type == "Add" else -number)
        else:
            scale *= number if node.op_type == "Mul" else 1 / number
        value = node.inputs[place]  # type: ignore[assignment]
    for operand in product.inputs[:2]:
        while operand not in (branches.image_embedding, branches.text_embedding):
            assert operand is not None
            node = operand.producer()
            assert node is not None
            if node.op_type in ("Mul", "Div"):
                number = _number(node.inputs[1])
                assert number is not None
                scale *= number if node.op_type == "Mul" else 1 / number
            operand = node.inputs[0]
    return scale, bias


def _is_confirmed(
    model: ir.Model, branches: Branches, output: ir.Value, scale: float, bias: float | None
) -> bool:
    """Tell whether scores of random images and texts are the scaled cosines of their embeddings."""
    extended = ir.from_proto(ir.to_proto(model))
    values = {value.name: value for node in extended.graph for value in node.outputs}
    names = [output.name, branches.image_embedding.name, branches.text_embedding.name]  # type: ignore[union-attr]
    for name in names:
        if not values[name].is_graph_output():
            extended.graph.outputs.append(values[name])
    rng = np.random.default_rng(0)
    feeds = {}
    for value in (branches.image, *branches.texts):
        is_image = value is branches.image
        usual = (_IMAGES, 3, _SIDE, _SIDE) if is_image else (_TEXTS, _TOKENS)
        shape = [
            side if isinstance(side, int) else other
            for side, other in zip(value.shape or (), usual, strict=False)
        ]
        assert value.dtype is not None
        kind = value.dtype.numpy()
        if is_image:
            feeds[str(value.name)] = rng.standard_normal(shape).astype(kind)
        else:  # tokens 0 and 1 are in every vocabulary, and a mask has no others
            bits = rng.integers(0, 2, shape)
            bits[:, 0] = 1
            feeds[str(value.name)] = bits.astype(kind)
    try:
        scores, image, text = open_branch(extended, is_fused=False).run(names, feeds)
    except Exception:
        return False
    unit = [each / np.linalg.norm(each, axis=1, keepdims=True) for each in (image, text)]
    expected = scale * (unit[0] @ unit[1].T) + (bias or 0.0)
    close = [
        each.shape == scores.shape and np.allclose(scores, each, atol=_TOLERANCE * scale)
        for each in (expected, expected.T)
    ]
    return any(close)
