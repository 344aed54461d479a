"""Open the original network, from which class scores and gradients follow independently."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..runtime.manifest import Manifest
from ..runtime.place_weights import example_region
from ..runtime.prompts import example_prompts
from .attention import AttentionMaps
from .data_flow import Layer
from .heads import OutputMeaning, PlaceScores
from .layers import Network
from .loading import LoadedModel
from .references import OnnxReference, Reference
from .references_similarity import SimilarityReference
from .verify_subject import AttentionReference

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class References:
    """The original network from each layer that is explained.

    Attributes:
        target: from the target layer.
        earlier: from each fused layer.
        attention: from the attention whose maps are explained; None without it.
    """

    target: Reference
    earlier: tuple[Reference, ...]
    attention: AttentionReference | None


def open_references(
    loaded: LoadedModel,
    network: Network,
    meaning: OutputMeaning,
    layers: Sequence[Layer],
    attention: AttentionMaps | None,
    manifest: Manifest,
) -> References:
    """Open the original network, from which class scores follow by ``meaning``.

    Args:
        loaded: the model.
        network: its graph.
        meaning: of its outputs.
        layers: the fused layers, and last the target layer.
        attention: whose maps are explained; None without it.
        manifest: of the file.
    """
    *earlier, target = (
        _score_similarity(_open_layer(loaded, network, meaning, layer), meaning, manifest)
        for layer in layers
    )
    of_attention = None
    if attention is not None:
        graph = OnnxReference(network, meaning, attention.layer)
        of_attention = AttentionReference(attention, _score_similarity(graph, meaning, manifest))
    return References(target, tuple(earlier), of_attention)


def _score_similarity(
    reference: Reference, meaning: OutputMeaning, manifest: Manifest
) -> Reference:
    """Score the reference's embeddings against classes, where it is an image encoder."""
    similarity = meaning.similarity
    if similarity is None:
        return reference
    embeddings = similarity.embeddings
    if embeddings is None:
        embeddings = example_prompts(manifest).embeddings
    return SimilarityReference(reference, similarity, embeddings)


def _open_layer(
    loaded: LoadedModel, network: Network, meaning: OutputMeaning, layer: Layer
) -> Reference:
    head, reduce = meaning.heads[0], None
    if meaning.place_scores is not None:
        reduce = _mean_of_region(meaning.place_scores)
    # Of a segmentation network the scores must be what the module returns.
    is_returned = meaning.place_scores is None or meaning.place_scores.value is head.output
    if loaded.module is not None and is_returned:
        from .references_torch import TorchReference

        plain, outputs = network.plain, list(network.plain.graph.outputs)
        try:
            return TorchReference(
                loaded.module,
                layer,
                (plain.channels, *plain.size),
                places=[outputs.index(head.output) for head in meaning.heads],
                ends_in_activation=reduce is None
                and any(head.logits is not head.output for head in meaning.heads),
                reduce=reduce,
            )
        except LookupError:
            pass
    description = "the original file" if loaded.module is None else "the graph that PyTorch wrote"
    return OnnxReference(network, meaning, layer, description)


def _mean_of_region(places: PlaceScores) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return what averages scores over the region that a file's reference answers are of."""
    import torch

    weights = example_region(places.size)

    def reduce(scores: torch.Tensor) -> torch.Tensor:
        region = torch.from_numpy(weights).to(scores.dtype)
        return (scores.permute(*places.order) * region).sum((2, 3)) / region.sum()

    return reduce
