"""The reference answers that a file carries, by which every engine is checked when it loads it."""

from __future__ import annotations

import numpy as np

from ..runtime import cam
from ..runtime.engines import selftest
from ..runtime.manifest import Manifest, Reference
from .graph_runner import GraphRunner
from .reference_scores import compute_probabilities, differentiate_score
from .references import Reference as Network


def compute_reference_answers(
    runner: GraphRunner, network: Network, manifest: Manifest, is_fused: bool
) -> tuple[Reference, ...]:
    """What the network itself answers for the built-in test patterns, as far as it can be asked.

    Where it cannot, the graph's own answers, which verification has held against it.
    """
    found = []
    method = selftest.method_of(manifest)
    names = [*runner.tensors]
    for index in range(selftest.PATTERNS):
        image = selftest.make_input(manifest, index).astype(manifest.image_type)
        feeds = {"image": image, "target": np.array([[-1]], np.int64)}
        own = runner.run(feeds, names)
        activations, raw = network.forward(own.get("network_input", image))
        exact = compute_probabilities(raw, manifest.task)
        target = int(exact[0].argmax())
        gradients = own["gradients"][:, :1].astype(np.float64)
        weights = own.get("ablation_weights")
        if activations is None:
            activations = own["activations"].astype(np.float64)
        seed = differentiate_score(raw, np.array([target]), manifest.gradient_score, manifest.task)
        true = network.gradient(activations, seed)
        if true is not None:
            gradients = true[:, None]
        if is_fused:
            layers = [n.removeprefix("activations_") for n in names if n.startswith("activations_")]
            raws = [
                cam.raw_map("layercam", own[f"activations_{i}"], own[f"gradients_{i}"][:, :1])
                for i in layers
            ]
            raw_map = cam.fuse(
                [*raws, cam.raw_map("layercam", own["activations"], own["gradients"][:, :1])]
            )
        else:
            own_weights = weights[:, :1] if weights is not None and method == "ablation" else None
            raw_map = selftest.reference_map(method, activations, gradients, own_weights)
        found.append(
            Reference(
                pattern=index,
                target=target,
                probability=float(exact[0, target]),
                raw_map=tuple(float(f"{value:.7g}") for value in np.asarray(raw_map).flatten()),
            )
        )
    return tuple(found)
