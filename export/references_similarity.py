"""Score the embeddings of a reference network against classes, in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..runtime.cosine import cosine_logits, embedding_gradient, normalise
from .references import Floats, Reference
from .zero_shot import Similarity


class SimilarityReference:
    """A reference whose scores are the cosine similarities of another one's embeddings."""

    def __init__(
        self, encoder: Reference, similarity: Similarity, classes: NDArray[np.float32]
    ) -> None:
        """Score the embeddings of ``encoder`` against ``classes``, [C, D]."""
        self.description = encoder.description
        self.is_exact = encoder.is_exact
        self._encoder = encoder
        self._scale, self._bias = similarity.scale, similarity.bias
        self._classes: Floats = normalise(classes.astype(np.float64))

    def _logits(self, embeddings: Floats) -> Floats:
        logits: Floats = cosine_logits(embeddings, self._classes, self._scale, self._bias)
        return logits

    def forward(self, image: NDArray[Any]) -> tuple[Floats | None, Floats]:
        """See ``Reference``."""
        activations, embeddings = self._encoder.forward(image)
        return activations, self._logits(embeddings)

    def forward32(self, image: NDArray[Any]) -> tuple[Floats | None, Floats]:
        """See ``Reference``."""
        activations, embeddings = self._encoder.forward32(image)
        return activations, self._logits(embeddings)

    def head(self, activations: Floats, images: NDArray[Any]) -> Floats:
        """See ``Reference``."""
        return self._logits(self._encoder.head(activations, images))

    def gradient(self, activations: Floats, seed: Floats, images: NDArray[Any]) -> Floats | None:
        """See ``Reference``."""
        embeddings = self._encoder.head(activations, images)
        inner = embedding_gradient(embeddings, seed @ self._classes, self._scale)
        return self._encoder.gradient(activations, inner, images)
