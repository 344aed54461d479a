"""Compute class scores of an image embedding: scaled cosine similarities with class embeddings.

Zero-shot classifiers (CLIP, Radford et al. 2021; SigLIP, Zhai et al. 2023) score an image embedding
e against class embeddings w_c: z_c = s cos(e, w_c) + b. Written against the Python array API, so
that the same lines are recorded into a graph and check it in float64.
"""

from __future__ import annotations

from typing import Any

import array_api_compat

Array = Any
_LEAST_NORM = 1e-12


def normalise(vectors: Array) -> Array:
    """Divide the rows of [M, D] by their Euclidean norms."""
    return vectors / _norms(vectors)


def cosine_logits(embeddings: Array, classes: Array, scale: float, bias: float) -> Array:
    """Compute s cos(e, w_c) + b.

    Args:
        embeddings: e, float [M, D].
        classes: w, float [C, D], normalised.
        scale: s.
        bias: b.

    Returns:
        float [M, C].
    """
    xp = array_api_compat.array_namespace(embeddings)
    logits = scale * (normalise(embeddings) @ xp.matrix_transpose(classes))
    return logits + bias if bias else logits


def embedding_gradient(embeddings: Array, directions: Array, scale: float) -> Array:
    """Differentiate s (e / |e|) . u by e, that is s (u - (e^ . u) e^) / |e|, with e^ = e / |e|.

    Args:
        embeddings: e, float [..., D].
        directions: u, float [..., D]; for the logit of class c the class embedding w_c, for a sum
            of seeds times logits the sum of seeds times class embeddings.
        scale: s.

    Returns:
        float, of the shape to which both broadcast.
    """
    norms = _norms(embeddings)
    unit = embeddings / norms
    along = (unit * directions).sum(-1, keepdims=True)
    return (directions - along * unit) * scale / norms


def _norms(vectors: Array) -> Array:
    xp = array_api_compat.array_namespace(vectors)
    return xp.maximum(xp.sqrt((vectors * vectors).sum(-1, keepdims=True)), _LEAST_NORM)
