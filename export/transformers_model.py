"""Load models of Hugging Face's transformers: a folder, or a name on their hub."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import torch

from ..runtime.errors import ExportError, MissingExtraError, reason_of
from .factory import call_seeded
from .metadata import ModelMetadata, read_metadata

TRANSFORMERS = "transformers/"
_CONFIGURATION = "config.json"
_FILES = ["*.json", "*.safetensors", "*.model", "merges.txt", "vocab.txt"]


def is_transformers_folder(path: str | os.PathLike[str]) -> bool:
    """Tell whether a folder holds a model that ``save_pretrained`` wrote."""
    place = Path(path) / _CONFIGURATION
    try:
        return os.path.isfile(place) and "model_type" in json.loads(place.read_text("utf-8"))
    except (OSError, ValueError):
        return False


def load_transformers(
    name: str, with_weights: bool, is_encoder: bool = False
) -> tuple[torch.nn.Module, ModelMetadata]:
    """Load an image classifier with the preprocessing and labels beside it.

    Args:
        name: a folder, or ``OWNER/NAME`` on the hub, which is downloaded once.
        with_weights: its own; else random ones, the same each time.
        is_encoder: load a model with an image and a text encoder, as CLIP, instead.

    Returns:
        The model, and what its ``preprocessor_config.json`` and ``config.json`` state.

    Raises:
        ExportError: it cannot be loaded, is no such model, or its files lack weights.
        MissingExtraError: the package transformers is not installed.
    """
    transformers = import_transformers(name)
    folder = find_transformers_folder(name)
    try:
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
        auto = (_choose_encoders if is_encoder else _choose_classifier)(name, config, transformers)
        if with_weights:
            with _reduced_noise(transformers):
                model, report = auto.from_pretrained(
                    folder, local_files_only=True, output_loading_info=True
                )
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


def import_transformers(name: str) -> Any:
    """Import the package.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        return import_module("transformers")
    except ImportError as error:
        raise MissingExtraError("transformers", "transformers", f"the model {name}") from error


def find_transformers_folder(name: str) -> Path:
    """Return the folder of a model, which is downloaded if the name is one of the hub.

    Raises:
        ExportError: there is no such folder, and it cannot be downloaded.
    """
    return Path(name) if is_transformers_folder(name) else _download(name)


@contextlib.contextmanager
def _reduced_noise(transformers: Any) -> Iterator[None]:
    """Silence warnings and progress bars; what was not loaded is checked."""
    log = transformers.logging
    level, has_bar = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(level)
        if has_bar:
            log.enable_progress_bar()


def _has_two_encoders(config: Any, transformers: Any) -> bool:
    return type(config) in transformers.MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING


def _choose_classifier(name: str, config: Any, transformers: Any) -> Any:
    """Return the class that loads an image classifier."""
    architectures = config.architectures or ["nothing"]
    if any(str(each).endswith("ForImageClassification") for each in architectures):
        return transformers.AutoModelForImageClassification
    listed = ", ".join(architectures)
    if _has_two_encoders(config, transformers):
        raise ExportError(
            f"{name} holds {listed}, an image and a text encoder without classes of their own: add "
            "--classes input, and make prompts with whycam prompts"
        )
    raise ExportError(
        f"{name} holds {listed}, which is no image classifier of transformers: its head would be a "
        "new, untrained one. Name a model that ends in ForImageClassification, or write a factory, "
        "file.py:factory"
    )


def _choose_encoders(name: str, config: Any, transformers: Any) -> Any:
    """Return the class that loads a model with an image and a text encoder."""
    architectures = config.architectures or ["nothing"]
    if any(str(each).endswith("ForImageClassification") for each in architectures):
        raise ExportError(
            f"{name} holds {', '.join(architectures)}, which has classes of its own: leave out "
            "--classes"
        )
    if not _has_two_encoders(config, transformers):
        raise ExportError(
            f"{name} holds {', '.join(architectures)}, which transformers does not know as a model "
            "with an image and a text encoder (CLIP, SigLIP). Of an image encoder alone, write a "
            "factory that returns the module from images to embeddings: file.py:factory"
        )
    return transformers.AutoModelForZeroShotImageClassification


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
