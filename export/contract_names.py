"""Keep the names of the graph contract free for what is added to a graph."""

from __future__ import annotations

from collections.abc import Collection

import onnx_ir as ir

CONTRACT = (
    "target",
    "class_embeddings",
    "region",
    "place_scores",
    "probabilities",
    "targets",
    "activations",
    "gradients",
    "ablation_weights",
    "attention_maps",
    "attention_gradients",
    "maps",
    "original_maps",
    "thresholds",
    "rpi",
    "masked_probabilities",
)

OF_DETECTORS = ("detections", "scores", "boxes", "candidate_scores", "candidate_boxes")

# Each followed by the name of a method or a head.
_CONTRACT_PREFIXES = ("maps_", "probabilities_")


def free_contract_names(graph: ir.Graph, further: Collection[str] = ()) -> None:
    """Rename tensors inside the graph whose names the contract reserves, and ``further`` ones."""
    reserved = {value.name for value in (*graph.inputs, *graph.outputs)}
    for node in graph:
        for value in node.outputs:
            if _is_of_contract(value.name, further) and value.name not in reserved:
                value.name = f"n/{value.name}"
    for value in list(graph.initializers.values()):
        if _is_of_contract(value.name, further):
            value.name = f"n/{value.name}"


def _is_of_contract(name: str | None, further: Collection[str]) -> bool:
    return name is not None and (
        name in CONTRACT or name in further or name.startswith(_CONTRACT_PREFIXES)
    )
