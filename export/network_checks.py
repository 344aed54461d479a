"""Check a network before anything is added to its graph."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np
import onnx_ir as ir

from ..runtime.errors import ExportError
from ..runtime.manifest import Manifest
from .data_flow import Layer
from .heads import OutputMeaning
from .layers import Network
from .loading import LoadedModel
from .open_reference import References
from .original_model import OriginalModel
from .probabilities import check_is_no_probability
from .verify_subject import draw_natural_images


def check_quantised(network: Network, layers: Sequence[Layer], allowed: bool) -> None:
    """Refuse quantisation between the target layer and the scores, unless it was allowed."""
    if allowed:
        return
    producers = [layer.value.producer() for layer in layers]
    place = min(network.position.get(node, 0) for node in producers if node is not None)
    refuse_quantised(network.path[place + 1 :])


def refuse_quantised(nodes: Sequence[ir.Node]) -> None:
    """Refuse quantisation among the nodes that gradients pass.

    Raises:
        ExportError: one of them quantises.
    """
    for node in nodes:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            raise ExportError(
                f"the node '{node.name}' ({node.op_type}) quantises between the target layer and "
                "the class scores, and rounding has no gradient. Explain the float file and "
                "quantise that, or pass --straight-through to treat it as the identity"
            )


def check_network(
    loaded: LoadedModel,
    network: Network,
    meaning: OutputMeaning,
    references: References,
    original: OriginalModel,
    manifest: Manifest,
    is_stated: bool,
) -> None:
    """Check what the outputs hold and, of a PyTorch model, that its graph answers as it does.

    Args:
        loaded: the model.
        network: its graph.
        meaning: of its outputs.
        references: the original network.
        original: the model before anything was added.
        manifest: of the file.
        is_stated: whether the user says what the outputs mean.

    Raises:
        ExportError: an output that was taken for logits holds probabilities.
        VerificationError: the graph answers otherwise than the PyTorch model.
    """
    bare = msgspec.structs.replace(manifest, embedded_preprocess=False, source_size=None)
    if not is_stated:
        images = draw_natural_images(np.random.default_rng(0), 4, bare)
        for head in meaning.heads:
            check_is_no_probability(network, head, original, images, meaning.place_scores)
    if loaded.module is not None and not references.target.is_exact:
        from .references_torch import check_translation

        image = draw_natural_images(np.random.default_rng(0), 2, bare)
        check_translation(loaded.module, original.run(image), image)
