"""Load image classifiers of Hugging Face's transformers: a folder, or a name on their hub."""

from __future__ import annotations

import json
import os
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import torch

from ..runtime.errors import ExportError, MissingExtraError, reason_of
from .factory import call_seeded
from .metadata import ModelMetadata, read_metadata

TRANSFORMERS = "transformers/"
_CONFIGURATION = "config.json"
_FILES = ["*.json", "*.safetensors"]


def is_transformers_folder(path: str | os.PathLike[str]) -> bool:
    """Tell whether a folder holds a model that ``save_pretrained`` wrote."""
    place = Path(path) / _CONFIGURATION
    try:
        return os.path.isfile(place) and "model_type" in json.loads(place.read_text("utf-8"))
    except (OSError, ValueError):
        return False


def load_transformers(name: str, with_weights: bool) -> tuple[torch.nn.Module, ModelMetadata]:
    """Load an image classifier with the preprocessing and labels beside it.

    Args:
        name: a folder, or ``OWNER/NAME`` on the hub, which is downloaded once.
        with_weights: its own; else random ones, the same each time.

    Returns:
        The model, and what its ``preprocessor_config.json`` and ``config.json`` state.

    Raises:
        ExportError: it cannot be loaded, is no image classifier, or its files lack weights.
        MissingExtraError: the package transformers is not installed.
    """
    try:
        transformers: Any = import_module("transformers")
    except ImportError as error:
        raise MissingExtraError("transformers", "transformers", f"the model {name}") from error
    folder = Path(name) if is_transformers_folder(name) else _download(name)
    try:
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
        _check_is_classifier(name, config)
        auto = transformers.AutoModelForImageClassification
        if with_weights:
            level = transformers.logging.get_verbosity()
            transformers.logging.set_verbosity_error()
            try:
                model, report = auto.from_pretrained(
                    folder, local_files_only=True, output_loading_info=True
                )
            finally:
                transformers.logging.set_verbosity(level)
            _check_is_complete(name, report)
        else:
            model = call_seeded(lambda: auto.from_config(config))
    except ExportError:
        raise
    except Exception as error:
        raise ExportError(f"transformers cannot load {name}: {reason_of(error)}") from error
    known = read_metadata({}, folder / _CONFIGURATION)
    return cast(torch.nn.Module, model.eval()), known or ModelMetadata(
        str(folder / _CONFIGURATION), None
    )


def _check_is_classifier(name: str, config: Any) -> None:
    architectures = config.architectures or ["nothing"]
    if not any(str(each).endswith("ForImageClassification") for each in architectures):
        raise ExportError(
            f"{name} holds {', '.join(architectures)}, which is no image classifier of "
            "transformers: its head would be a new, untrained one. Name a model that ends in "
            "ForImageClassification, or write a factory, file.py:factory"
        )


def _check_is_complete(name: str, report: dict[str, Any]) -> None:
    """Refuse a checkpoint without all weights: transformers fills the gaps with random numbers."""
    missing = [*report.get("missing_keys", ()), *report.get("mismatched_keys", ())]
    if missing:
        raise ExportError(
            f"the weights in {name} lack {len(missing)} tensors of the model, as {missing[0]}"
        )


def _download(name: str) -> Path:
    hub: Any = import_module("huggingface_hub")  # comes with transformers
    try:
        return Path(hub.snapshot_download(name, allow_patterns=_FILES))
    except Exception as error:
        raise ExportError(
            f"there is no folder {name} with a {_CONFIGURATION} of transformers, and it cannot be "
            f"downloaded as a model of the hub ({reason_of(error)})"
        ) from error
