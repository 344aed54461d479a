"""Write and read trained models: a folder with weights and a description of the network."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import torch

from ..runtime.errors import ExportError
from ..runtime.files import replacing, write_json
from ..runtime.manifest import Preprocess

WEIGHTS, DESCRIPTION = "model.safetensors", "model.json"


class SavedModel(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The description that ``whycam train`` writes beside the weights.

    Attributes:
        model: the architecture, as ``whycam export`` takes it.
        num_classes: None for the architecture's default.
        labels: class names, or empty.
        preprocess: how an image becomes the input.
        history: one entry for each training.
    """

    model: str
    num_classes: int | None
    labels: tuple[str, ...]
    preprocess: Preprocess
    history: tuple[dict[str, object], ...] = ()


def is_saved_model(path: str | os.PathLike[str]) -> bool:
    """Tell whether a folder holds a trained model."""
    return os.path.isfile(Path(path) / DESCRIPTION)  # False, where pathlib raises


def save_model(folder: Path, description: SavedModel, state: dict[str, torch.Tensor]) -> None:
    """Write a trained model, each file atomically.

    Raises:
        OutputError: the folder cannot be written.
    """
    from safetensors.torch import save_file

    with replacing(folder / WEIGHTS) as temporary:
        # Copies: tensors that share memory are refused.
        save_file({k: v.detach().cpu().clone() for k, v in state.items()}, str(temporary))
    write_json(folder / DESCRIPTION, description)


def read_saved_model(folder: str | os.PathLike[str]) -> SavedModel:
    """Read the description of a trained model.

    Raises:
        ExportError: the folder does not hold one, or it is damaged.
    """
    path = Path(folder) / DESCRIPTION
    try:
        return msgspec.json.decode(path.read_bytes(), type=SavedModel)
    except (OSError, ValueError, msgspec.MsgspecError) as error:
        raise ExportError(f"{folder} holds no model trained by whycam: {error}") from error
