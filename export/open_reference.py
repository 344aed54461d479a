"""Open the original network, from which class scores and gradients follow independently."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..runtime.manifest import Manifest
from ..runtime.prompts import example_prompts
from .data_flow import Layer
from .heads import OutputMeaning
from .layers import Network
from .loading import LoadedModel
from .references import OnnxReference, Reference
from .references_similarity import SimilarityReference

if TYPE_CHECKING:
    pass


def open_reference(
    loaded: LoadedModel, network: Network, meaning: OutputMeaning, layer: Layer, manifest: Manifest
) -> Reference:
    """Open the original network, from which class scores follow by ``meaning``."""
    reference = _network_reference(loaded, network, meaning, layer)
    return score_similarity(reference, meaning, manifest)


def score_similarity(reference: Reference, meaning: OutputMeaning, manifest: Manifest) -> Reference:
    """Score the reference's embeddings against classes, where it is an image encoder."""
    similarity = meaning.similarity
    if similarity is None:
        return reference
    embeddings = similarity.embeddings
    if embeddings is None:
        embeddings = example_prompts(manifest).embeddings
    return SimilarityReference(reference, similarity, embeddings)


def _network_reference(
    loaded: LoadedModel, network: Network, meaning: OutputMeaning, layer: Layer
) -> Reference:
    if loaded.module is not None:
        from .references_torch import TorchReference

        plain, outputs = network.plain, list(network.plain.graph.outputs)
        try:
            return TorchReference(
                loaded.module,
                layer,
                (plain.channels, *plain.size),
                places=[outputs.index(head.output) for head in meaning.heads],
                ends_in_activation=any(head.logits is not head.output for head in meaning.heads),
            )
        except LookupError:
            pass
    description = "the original file" if loaded.module is None else "the graph that PyTorch wrote"
    return OnnxReference(network, meaning, layer, description)
