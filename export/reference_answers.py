"""Compute the reference answers in a file, by which every engine is checked on loading."""

from __future__ import annotations

import numpy as np

from ..runtime import cam
from ..runtime.engines import selftest
from ..runtime.manifest import Manifest
from ..runtime.manifest_parts import Reference
from .attention import AttentionMaps
from .graph_runner import GraphRunner
from .reference_scores import compute_probabilities, differentiate_score
from .references import Reference as Network


def compute_reference_answers(
    runner: GraphRunner,
    network: Network,
    manifest: Manifest,
    is_fused: bool,
    attention: AttentionMaps | None = None,
) -> tuple[Reference, ...]:
    """Compute the network's answers for the built-in test patterns.

    Where the network does not give gradients or activations, the verified graph's are taken.
    """
    answers = []
    method = selftest.method_of(manifest)
    names = [*runner.tensors]
    free = manifest.dynamic_size
    # One pattern at the usual size and one that is not square, where the graph takes both.
    sizes = [None, None] if free is None else [manifest.preprocess.size, (free.least, free.most)]
    for index, size in enumerate(sizes):
        at_size = manifest.at(size)
        image = selftest.make_input(at_size, index).astype(manifest.image_type)
        feeds = {"image": image, "target": np.array([[-1]], np.int64)}
        outputs = runner.run(feeds, names)
        activations, raw = network.forward(outputs.get("network_input", image))
        exact = compute_probabilities(raw, manifest.output_heads)
        # Of equal probabilities, as of saturated sigmoids, the one whose gradient was run.
        target = int(outputs["targets"][0, 0])
        gradients = outputs["gradients"][:, :1].astype(np.float64)
        weights = outputs.get("ablation_weights")
        if activations is None:
            activations = outputs["activations"].astype(np.float64)
        seed = differentiate_score(
            raw, np.array([target]), manifest.gradient_score, manifest.output_heads
        )
        exact_gradients = network.gradient(
            np.asarray(activations, np.float64), seed, outputs.get("network_input", image)
        )
        if exact_gradients is not None:
            gradients = exact_gradients[:, None]
        if is_fused:
            layers = [n.removeprefix("activations_") for n in names if n.startswith("activations_")]
            raws = [
                cam.raw_map(
                    "layercam", outputs[f"activations_{i}"], outputs[f"gradients_{i}"][:, :1]
                )
                for i in layers
            ]
            raw_map = cam.fuse(
                [
                    *raws,
                    cam.raw_map("layercam", outputs["activations"], outputs["gradients"][:, :1]),
                ]
            )
        elif method == "legrad":
            assert attention is not None
            relevance = cam.attention_relevance(outputs["attention_gradients"][:, :1])
            raw_map = attention.take(relevance)
        else:
            method_weights = (
                weights[:, :1] if weights is not None and method == "ablation" else None
            )
            raw_map = selftest.reference_map(method, activations, gradients, method_weights)
        answers.append(
            Reference(
                pattern=index,
                target=target,
                probability=float(exact[0, target]),
                raw_map=tuple(float(f"{value:.7g}") for value in np.asarray(raw_map).flatten()),
                size=size,
            )
        )
    return tuple(answers)
