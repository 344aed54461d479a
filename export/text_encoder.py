"""Load the text encoder of a zero-shot classifier."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..runtime.errors import ExportError, RequestError, reason_of
from .loading import is_onnx_file
from .requirements import require_torch
from .texts import TextEncoder, fill_texts, refuse_long_text


def load_text_encoder(spec: str, weights: str = "default") -> TextEncoder:
    """Load a text encoder.

    Args:
        spec: ``open_clip/NAME[/TAG]``; a folder of transformers with a model of two encoders and
            its tokenizer, or ``transformers/OWNER/NAME`` of the hub; an ONNX file with a text
            encoder, and a tokenizer beside it; or ``file.py:factory``, which returns a function
            from a list of texts to embeddings [T, D].
        weights: of open_clip: ``default`` (those of the tag), ``none`` or a file.

    Raises:
        ExportError: there is no such model, or it cannot be loaded.
        MissingExtraError: the package is not installed.
    """
    if is_onnx_file(spec):
        from .onnx_text_encoder import load_onnx_text_encoder

        _refuse_weights(weights)
        return load_onnx_text_encoder(Path(spec))
    if spec.startswith("open_clip/"):
        return _of_open_clip(spec, weights)
    _refuse_weights(weights)
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
        "transformers/OWNER/NAME, a folder of transformers, FILE.onnx or file.py:factory"
    )


def _refuse_weights(weights: str) -> None:
    if weights != "default":
        raise RequestError("weights are chosen for models of open_clip only")


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
            refuse_long_text(texts[int(cut.int().argmax())], length + 1, length)
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
    padding = fill_texts(is_siglip, length)

    def encode(texts: Sequence[str]) -> Any:
        for text in texts:
            refuse_long_text(text, len(tokenizer(text)["input_ids"]), length)
        given = tokenizer(list(texts), **padding, return_tensors="pt")
        with torch.no_grad():
            found = model.get_text_features(**given)
        return found if isinstance(found, torch.Tensor) else found.pooler_output

    return encode
