"""Compute class embeddings of prompts with a text encoder."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..runtime.cosine import normalise
from ..runtime.errors import DataError, ExportError, RequestError, WhyCamError, reason_of
from ..runtime.prompts import Prompts, check_embeddings
from .texts import TextEncoder

_BATCH = 64


def embed_prompts(
    encoder: TextEncoder, names: Sequence[str], templates: Sequence[str] = ("{}",)
) -> Prompts:
    """Embed classes; several templates are averaged, as CLIP's authors do.

    Args:
        encoder: from texts to embeddings [T, D].
        names: of the classes.
        templates: sentences with ``{}`` in place of the name.

    Returns:
        The names with embeddings of length 1.

    Raises:
        RequestError: no name, or a template without ``{}``.
        DataError: two names are alike, or the encoder returns no usable embeddings.
    """
    if not names:
        raise RequestError("no prompt was given")
    for template in templates:
        if template.count("{}") != 1:
            raise RequestError(f"the template '{template}' must hold the name's place, {{}}, once")
    texts = [template.replace("{}", name) for name in names for template in templates]
    parts = [
        _embed(encoder, texts[start : start + _BATCH]) for start in range(0, len(texts), _BATCH)
    ]
    unit = normalise(np.concatenate(parts).astype(np.float64))
    mean = normalise(unit.reshape(len(names), len(templates), -1).mean(1))
    return Prompts(tuple(names), mean.astype(np.float32))


def _embed(encoder: TextEncoder, texts: Sequence[str]) -> NDArray[np.float32]:
    try:
        found = encoder(texts)
    except WhyCamError:
        raise
    except Exception as error:
        raise ExportError(
            f"the text encoder does not take the texts: {reason_of(error)}"
        ) from error
    if hasattr(found, "detach"):
        found = found.detach().cpu().float().numpy()
    embeddings = check_embeddings(found, "the text encoder")
    if len(embeddings) != len(texts):
        raise DataError(
            f"the text encoder gave {len(embeddings)} embeddings for {len(texts)} texts"
        )
    return embeddings
