"""Add the inputs of the graph contract to a classifier's graph."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from ..runtime.cosine import normalise
from ..runtime.input_format import Preprocess
from .dims import BATCH, CLASSES, PROMPTS, Dim, Size, dim_text, product
from .heads import OutputMeaning
from .layers import Network
from .plain_model import PlainModel
from .recorder import Recorder
from .resample import record_preprocess
from .shapes import Shapes
from .tensors import Tensor


@dataclass(frozen=True)
class GraphInputs:
    """The inputs of an explaining graph.

    Attributes:
        name: of the image input.
        image: the network's input after preprocessing, [N, C, H, W] or [N, H, W, C].
        target: the classes to explain, int64 [N, k]; None where the most probable ones are.
        embeddings: the input ``class_embeddings``; None where the classes are fixed.
        class_embeddings: the same, or the constants, normalised, [C, D]; None without them.
        count: the number of classes, C.
    """

    name: str
    image: Tensor
    target: Tensor | None
    embeddings: Tensor | None
    class_embeddings: Tensor | None
    count: Dim


def tensor_of(value: ir.Value, shapes: Shapes, recorder: Recorder) -> Tensor:
    """Wrap a tensor of the network, to record arithmetic on it."""
    return Tensor(recorder, value, shapes.dims[value], shapes.dtypes[value])


def add_inputs(
    network: Network,
    meaning: OutputMeaning,
    recorder: Recorder,
    top: int | None,
    preprocess: Preprocess | None,
    source_size: tuple[int, int] | None,
) -> GraphInputs:
    """Add the inputs ``target`` and ``class_embeddings``, and preprocessing before the image.

    Args:
        network: its graph is extended in place.
        meaning: of its outputs.
        recorder: of the graph; learns the lengths of its symbols.
        top: how many of the most probable classes are explained; None: those of ``target``.
        preprocess: what the graph does to images; None if it takes prepared ones.
        source_size: (h, w) of these images; None: any.
    """
    plain, graph = network.plain, recorder.graph
    own = plain.image
    fed = tensor_of(own, plain.shapes, recorder)
    if preprocess is not None:
        sides: tuple[Dim, ...] = source_size or (Size(1, ("h",)), Size(1, ("w",)))
        fed = new_input(recorder, str(own.name), (BATCH, *sides, 3), ir.DataType.UINT8)
    taken = {value.name for value in (*graph.inputs, *graph.outputs)}
    target = None
    if top is None:
        name = "whycam_target" if "target" in taken else "target"
        target = new_input(recorder, name, (BATCH, CLASSES), ir.DataType.INT64)
        graph.inputs.append(target.value)
        recorder.symbols["k"] = lengths_of(target)[1:2]
    embeddings, class_embeddings, count = _class_embeddings(network, meaning, recorder, taken)
    of_image = lengths_of(fed)
    recorder.symbols["N"] = of_image[0:1]
    if plain.sizes is not None:
        first = 2 if plain.layout == "NCHW" else 1
        for axis, symbol in ((first, "H"), (first + 1, "W")):
            side = of_image[axis : axis + 1]
            recorder.symbols[symbol] = side if plain.sizes.step == 1 else side // plain.sizes.step
    image = fed
    if preprocess is not None:
        if source_size is None:
            recorder.symbols["h"], recorder.symbols["w"] = of_image[1:2], of_image[2:3]
        image = record_preprocess(recorder, fed, preprocess, plain.layout, source_size)
        _replace_input(network, fed.value, image)
    return GraphInputs(str(fed.value.name), image, target, embeddings, class_embeddings, count)


def _class_embeddings(
    network: Network, meaning: OutputMeaning, recorder: Recorder, taken: set[str | None]
) -> tuple[Tensor | None, Tensor | None, Dim]:
    """Add the input ``class_embeddings``, or the constant; with the number of classes."""
    similarity = meaning.similarity
    if similarity is None:
        return None, None, meaning.num_classes
    if similarity.embeddings is not None:
        return None, recorder.constant(similarity.embeddings), meaning.num_classes
    raw = network.plain.shapes.dims[meaning.logits]
    length = product([side for side in raw if isinstance(side, int)])
    name = "whycam_class_embeddings" if "class_embeddings" in taken else "class_embeddings"
    fed = new_input(recorder, name, (PROMPTS, length), ir.DataType.FLOAT)
    recorder.graph.inputs.append(fed.value)
    recorder.symbols["C"] = lengths_of(fed)[0:1]
    return fed, normalise(fed), PROMPTS


def _replace_input(network: Network, fed: ir.Value, prepared: Tensor) -> None:
    """Let the network read the preprocessed image, and the graph take the image itself."""
    own, shapes, graph = network.plain.image, network.plain.shapes, network.plain.graph
    place = list(graph.inputs).index(own)
    mine = set(network.nodes)
    for use in list(own.uses()):
        if use.node in mine:
            use.node.replace_input_with(use.idx, prepared.value)
    graph.inputs[place] = fed
    own.name = f"n/{own.name}"
    # From here on the network begins at the preprocessed image.
    shapes.dims[prepared.value] = shapes.dims[own]
    shapes.dtypes[prepared.value] = shapes.dtypes[own]


def new_input(recorder: Recorder, name: str, dims: Sequence[Dim], dtype: ir.DataType) -> Tensor:
    """Make a tensor that is to become a graph input."""
    shape = ir.Shape([dim_text(side) for side in dims])
    value = ir.Value(name=name, shape=shape, type=ir.TensorType(dtype))
    return Tensor(recorder, value, tuple(dims), dtype)


def lengths_of(tensor: Tensor) -> Tensor:
    """Record a tensor's shape, int64 [rank]."""
    return tensor.recorder.op("Shape", [tensor], (tensor.ndim,), ir.DataType.INT64)


def learn_shapes(plain: PlainModel, recorder: Recorder) -> None:
    """Take what was recorded for a part of the network, whose shapes and constants are known."""
    shapes = plain.shapes
    for value, tensor in recorder.recorded.items():
        shapes.dims[value], shapes.dtypes[value] = tensor.shape, tensor.dtype
    for value in plain.graph.initializers.values():
        if value not in shapes.dims and value.const_value is not None:
            array = value.const_value.numpy()
            shapes.constants[value] = array
            shapes.dims[value] = array.shape
            shapes.dtypes[value] = value.const_value.dtype
