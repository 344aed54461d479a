"""Describe an exported file in its manifest: sizes, classes, layers, and what made it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import onnx_ir as ir

from ..runtime.errors import ExportError
from ..runtime.input_format import DynamicSize
from ..runtime.manifest import Manifest
from ..runtime.manifest_parts import Attention, FusedLayer
from ..runtime.tft import Tft
from ..runtime.version import package_version
from .ablation_head import Head
from .assemble import Request
from .attention import AttentionMaps
from .data_flow import Layer
from .dims import lengths_at
from .heads import OutputMeaning
from .labels import name_classes
from .layers import Network
from .loading import LoadedModel
from .plain_model import PlainModel
from .zero_shot import label_classes


def describe(
    loaded: LoadedModel,
    network: Network,
    meaning: OutputMeaning,
    layer: Layer,
    earlier: Sequence[Layer],
    attention: AttentionMaps | None,
    head: Head,
    request: Request,
    tft: Tft,
    labels: tuple[str, ...],
    show_bands: Sequence[int],
) -> Manifest:
    """Describe a file before it is verified.

    Args:
        loaded: the model.
        network: its data flow.
        meaning: of its outputs.
        layer: the target layer.
        earlier: layers whose maps are fused with its own.
        attention: whose maps ``legrad`` reads.
        head: what follows the target layer, in parts.
        request: what is added to the graph.
        tft: settings that the file recommends.
        labels: of the classes.
        show_bands: that overlays show.

    Raises:
        ExportError: the options do not fit the model.
    """
    plain = network.plain
    dtype = plain.shapes.dtypes[plain.image]
    try:
        return Manifest(
            model=loaded.name,
            weights=loaded.weights,
            target_layer=layer.name,
            target_layer_reason=layer.reason,
            activations=layer.shape,
            pooled_linear=head.is_pooled_linear and meaning.similarity is None,
            task="heads" if meaning.single is None else meaning.single.task,
            num_classes=meaning.num_classes,
            heads=meaning.output_heads if meaning.single is None else (),
            labels=labels,
            preprocess=loaded.preprocess,
            dynamic_size=_dynamic_size(plain, layer),
            layout="NHWC" if plain.layout == "NHWC" else "NCHW",
            image_dtype={ir.DataType.FLOAT: "float32", ir.DataType.FLOAT16: "float16"}.get(  # type: ignore[arg-type]
                dtype, "uint8"
            ),
            top=request.top,
            outputs=request.outputs,
            methods=request.methods,
            map_methods=request.map_methods,
            fused_layers=tuple(FusedLayer(other.name, other.shape) for other in earlier),
            attention=None
            if attention is None
            else Attention(attention.layer.name, attention.shape),
            class_embeddings=_length_of_input(network, meaning),
            region=None if meaning.place_scores is None else meaning.place_scores.size,
            embedded_preprocess=request.preprocess is not None,
            source_size=request.source_size,
            show_bands=tuple(show_bands),
            gradient_score=request.gradient_score,
            ablation_score=request.ablation_score,
            tft=tft,
            precision=plain.shapes.precision,
            opset=plain.graph.opset_imports[""],
            image_bytes=network.image_bytes(),
            tools=read_tools(loaded.module is not None),
        )
    except ValueError as error:
        raise ExportError(f"the options do not fit the model: {error}") from error


def _dynamic_size(plain: PlainModel, layer: Layer) -> DynamicSize | None:
    """Describe the sizes that a graph takes, and how the layer's activations grow with them."""
    sizes = plain.sizes
    if sizes is None:
        return None
    spatial = [plain.shapes.dims[layer.value][axis] for axis in layer.arrangement.order[2:]]
    larger = {name: length + (name != "N") for name, length in sizes.one.items()}
    before, after = lengths_at(spatial, sizes.one), lengths_at(spatial, larger)
    rows, columns = (b - a for a, b in zip(before, after, strict=True))
    return DynamicSize(sizes.least, sizes.most, sizes.step, (rows, columns))


def _length_of_input(network: Network, meaning: OutputMeaning) -> int | None:
    """Return the length of class embeddings that the graph takes; None if it takes none."""
    if meaning.similarity is None or meaning.similarity.embeddings is not None:
        return None
    dims = network.plain.shapes.dims[meaning.logits]
    return math.prod(side for side in dims if isinstance(side, int))


def read_tools(reads_torch: bool) -> dict[str, str]:
    """Look up the versions of the packages that made a file."""
    from importlib.metadata import distributions

    names = ("torch", "onnx", "onnx-ir", "onnxscript") if reads_torch else ("onnx", "onnx-ir")
    versions = {name: dist.version for name in names for dist in distributions(name=name)}
    return {"whycam": package_version(), **versions}


def choose_labels(
    labels: Sequence[str], meaning: OutputMeaning, is_stated: bool
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Complete and check class names; returns them with notes.

    Names that the user stated must fit; those of the model's configuration that do not are left
    out with a note, for a head may have been replaced.
    """
    if meaning.similarity is not None:
        labels = label_classes(meaning.similarity, labels)
    by_head = name_classes(labels, meaning.output_heads)
    problems = [
        f"there are {len(names)} labels, but {_owner(meaning, head.name)} has {head.num_classes} "
        "classes"
        for head, names in zip(meaning.heads, by_head, strict=True)
        if names and len(names) != head.num_classes
    ]
    if problems and is_stated:
        raise ExportError(problems[0])
    notes = tuple(f"{problem}: the labels were left out" for problem in problems)
    by_head = [
        names if len(names) == head.num_classes else ()
        for head, names in zip(meaning.heads, by_head, strict=True)
    ]
    if meaning.single is not None:
        return by_head[0], notes
    return tuple(
        f"{head.name}:{names[index] if names else index}"
        for head, names in zip(meaning.heads, by_head, strict=True)
        for index in range(head.num_classes)
    ), notes


def _owner(meaning: OutputMeaning, name: str) -> str:
    return "the model" if meaning.single is not None else f"its output '{name}'"
