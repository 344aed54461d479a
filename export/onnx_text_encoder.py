"""Embed texts by an ONNX file with a text encoder and the tokenizer beside it, without torch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import onnx_ir as ir

from ..runtime.errors import ExportError, MissingExtraError, reason_of
from .branches import cut_text_encoder, find_branches, open_branch
from .onnx_reading import load_onnx_file
from .texts import TextEncoder, fill_texts, refuse_long_text

_TOKENIZER = "tokenizer_config.json"
_LONGEST = 1 << 20  # a tokenizer without a bound states 1e30


def load_onnx_text_encoder(path: Path) -> TextEncoder:
    """Load the text encoder of an ONNX file, alone or beside an image encoder.

    Args:
        path: of the file; the tokenizer's files are in the same folder or the one above.

    Raises:
        ModelFileError, ExportError: it cannot be read, or has no text encoder.
        MissingExtraError: the package transformers is not installed.
    """
    model = ir.from_proto(load_onnx_file(path))
    branches = find_branches(model.graph)
    if branches is not None:
        cut_text_encoder(model, branches)
    output = _find_embedding(model.graph, path)
    session = open_branch(model)
    inputs = {value.name: value for value in session.get_inputs()}
    tokenizer, length = _load_tokenizer(path)
    fixed = [value.shape[1] for value in inputs.values() if isinstance(value.shape[1], int)]
    length = min([length, *fixed])
    # Where no mask says which tokens count, texts are as long as in training.
    is_filled = bool(fixed) or "attention_mask" not in inputs

    def encode(texts: Sequence[str]) -> Any:
        for text in texts:
            refuse_long_text(text, len(tokenizer(text)["input_ids"]), length)
        tokens = tokenizer(
            list(texts),
            **fill_texts(is_filled, length),
            return_attention_mask="attention_mask" in inputs,
            return_tensors="np",
        )
        missing = [name for name in inputs if name not in tokens]
        if missing:
            raise ExportError(
                f"the text encoder of {path} reads '{missing[0]}', which the tokenizer does not "
                "give: write a factory, file.py:factory"
            )
        feeds = {
            name: tokens[name].astype("int32" if value.type == "tensor(int32)" else "int64")
            for name, value in inputs.items()
        }
        rows = next(iter(inputs.values())).shape[0]
        if isinstance(rows, int):  # a file that takes so many texts at a time
            return _encode_by_parts(session, output, feeds, rows)
        return session.run([output], feeds)[0]

    return encode


def _encode_by_parts(session: Any, output: str, feeds: dict[str, Any], rows: int) -> Any:
    import numpy as np

    count = len(next(iter(feeds.values())))
    parts = []
    for start in range(0, count, rows):
        index = np.arange(start, start + rows).clip(max=count - 1)
        part = {name: values[index] for name, values in feeds.items()}
        parts.append(session.run([output], part)[0])
    return np.concatenate(parts)[:count]


def _find_embedding(graph: ir.Graph, path: Path) -> str:
    """Find the output with one vector a text."""
    if any(value.shape is not None and len(value.shape) != 2 for value in graph.inputs):
        raise ExportError(f"{path} has no text encoder: its inputs are no tokens [texts, length]")
    fitting = [
        value
        for value in graph.outputs
        if value.shape is None or (len(value.shape) == 2 and value.dtype == ir.DataType.FLOAT)
    ]
    named = [value for value in fitting if value.name == "text_embeds"]
    if len(named or fitting) != 1:
        listed = ", ".join(f"'{value.name}' {value.shape}" for value in graph.outputs)
        raise ExportError(f"which output of {path} is the text embedding is not known: {listed}")
    return str((named or fitting)[0].name)


def _load_tokenizer(path: Path) -> tuple[Any, int]:
    """Load the tokenizer, and the largest number of tokens."""
    folder = next(
        (each for each in (path.parent, path.parent.parent) if (each / _TOKENIZER).is_file()), None
    )
    if folder is None:
        raise ExportError(
            f"there is no {_TOKENIZER} beside {path} or in the folder above: put the tokenizer's "
            "files of the model there"
        )
    try:
        transformers: Any = import_module("transformers")
    except ImportError as error:
        raise MissingExtraError("transformers", "zero-shot", f"the tokenizer of {path}") from error
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:
        raise ExportError(
            f"transformers cannot load the tokenizer in {folder}: {reason_of(error)}"
        ) from error
    length = min(tokenizer.model_max_length, _stated_length(folder))
    if length > _LONGEST:
        raise ExportError(
            f"{folder / _TOKENIZER} does not state model_max_length, how many tokens the text "
            "encoder reads"
        )
    return tokenizer, int(length)


def _stated_length(folder: Path) -> float:
    try:
        config = json.loads((folder / "config.json").read_text("utf-8"))
        return float(config["text_config"]["max_position_embeddings"])
    except (OSError, ValueError, KeyError, TypeError):
        return float("inf")
