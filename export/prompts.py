"""Compute class embeddings of prompts with a text encoder."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..runtime.cosine import normalise
from ..runtime.errors import DataError, ExportError, RequestError, WhyCamError, reason_of
from ..runtime.prompts import Prompts, check_embeddings
from .requirements import require_torch

TextEncoder = Callable[[Sequence[str]], Any]
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


def load_text_encoder(spec: str, weights: str = "default") -> TextEncoder:
    """Load a text encoder.

    Args:
        spec: ``open_clip/NAME[/TAG]``; ``transformers/FOLDER`` with a folder of a model with two
            encoders and its tokenizer, or a name on the hub; or ``file.py:factory``, which
            returns a function from a list of texts to embeddings [T, D].
        weights: of open_clip: ``default`` (those of the tag), ``none`` or a file.

    Raises:
        ExportError: there is no such model, or it cannot be loaded.
        MissingExtraError: the package is not installed.
    """
    if spec.startswith("open_clip/"):
        return _of_open_clip(spec, weights)
    if weights != "default":
        raise RequestError("weights are chosen for models of open_clip only")
    if spec.startswith("transformers/") or os.path.isdir(spec):
        return _of_transformers(spec)
    if ":" in spec:
        from .factory import call_function

        encoder = call_function(spec)
        if not callable(encoder):
            raise ExportError(f"{spec} must return a function from texts to embeddings [T, D]")
        return encoder  # type: ignore[no-any-return]
    raise RequestError(
        f"cannot tell where to find the text encoder '{spec}': write open_clip/NAME/TAG, "
        "transformers/FOLDER or file.py:factory"
    )


def _of_open_clip(spec: str, weights: str) -> TextEncoder:
    require_torch(f"the model {spec}", "zero-shot")
    from .open_clip_model import PREFIX, import_open_clip, load_open_clip

    model: Any = load_open_clip(spec, weights)
    name = spec.removeprefix(PREFIX).partition("/")[0]
    return encode_by_open_clip(model, import_open_clip(spec).get_tokenizer(name))


def encode_by_open_clip(model: Any, tokenizer: Any) -> TextEncoder:
    """Return the text encoder of a model of open_clip; a text that it would cut off is refused."""
    import torch

    def encode(texts: Sequence[str]) -> Any:
        tokens = tokenizer(list(texts))
        length = tokens.shape[1]
        longer = tokenizer(list(texts), context_length=length + 1)
        cut = (longer[:, :length] != tokens).any(1)
        if cut.any():
            raise _too_long(texts[int(cut.int().argmax())], length)
        with torch.no_grad():
            return model.encode_text(tokens)

    return encode


def _of_transformers(spec: str) -> TextEncoder:
    require_torch(f"the model {spec}", "zero-shot")
    import torch

    from .transformers_model import find_transformers_folder, import_transformers, load_transformers

    name = spec if os.path.isdir(spec) else spec.removeprefix("transformers/")
    transformers = import_transformers(name)
    model: Any
    model, _ = load_transformers(name, True, is_encoder=True)
    try:
        tokenizer: Any = transformers.AutoTokenizer.from_pretrained(find_transformers_folder(name))
    except Exception as error:
        raise ExportError(
            f"transformers cannot load the tokenizer of {name}: {reason_of(error)}"
        ) from error
    length = min(
        tokenizer.model_max_length,
        getattr(model.config.text_config, "max_position_embeddings", tokenizer.model_max_length),
    )
    # SigLIP was trained on texts filled up to their full length.
    is_siglip = getattr(model, "logit_bias", None) is not None
    padding = "max_length" if is_siglip else True

    def encode(texts: Sequence[str]) -> Any:
        for text in texts:
            if len(tokenizer(text)["input_ids"]) > length:
                raise _too_long(text, length)
        given = tokenizer(list(texts), padding=padding, max_length=length, return_tensors="pt")
        with torch.no_grad():
            found = model.get_text_features(**given)
        return found if isinstance(found, torch.Tensor) else found.pooler_output

    return encode


def _too_long(text: str, length: int) -> DataError:
    return DataError(
        f"the text '{text}' is longer than the {length} tokens that the text encoder reads: "
        "shorten it"
    )
