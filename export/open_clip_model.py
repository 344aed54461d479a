"""Load models of open_clip: an image encoder and a text encoder, trained together."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch

from ..runtime.errors import ExportError, MissingExtraError, reason_of
from ..runtime.input_format import Preprocess
from .factory import call_seeded
from .metadata import check_interpolation_name

PREFIX = "open_clip/"


def import_open_clip(spec: str) -> Any:
    """Import the package.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        import open_clip
    except ImportError as error:
        raise MissingExtraError("open_clip_torch", "zero-shot", f"the model {spec}") from error
    return open_clip


def load_open_clip(spec: str, weights: str) -> torch.nn.Module:
    """Load a model by its name in open_clip.

    Args:
        spec: ``open_clip/NAME``, or ``open_clip/NAME/TAG`` with the tag of pretrained weights.
        weights: ``default`` (those of the tag), ``none`` (random, the same each time), or a file.

    Raises:
        ExportError: there is no such model or tag, or the weights cannot be read.
        MissingExtraError: open_clip is not installed.
    """
    library = import_open_clip(spec)
    name, _, tag = spec.removeprefix(PREFIX).partition("/")
    if name not in library.list_models():
        raise ExportError(f"open_clip has no model '{name}'; see open_clip.list_models()")
    tags = library.list_pretrained_tags_by_model(name)
    if weights == "default" and tag not in tags:
        raise ExportError(
            f"which weights of {PREFIX}{name}? Write {PREFIX}{name}/TAG with a tag of: "
            f"{', '.join(tags) or 'none are known'}; or pass --weights FILE, or --weights none for "
            "random ones"
        )
    if weights not in ("default", "none") and not Path(weights).is_file():
        raise ExportError(f"there is no file of weights {weights}")
    source = {"default": tag, "none": None}.get(weights, weights)
    level = logging.root.level
    logging.root.setLevel(logging.ERROR)  # it warns of random weights, which were asked for
    try:
        model: torch.nn.Module = call_seeded(lambda: library.create_model(name, source))
    except Exception as error:
        raise ExportError(f"open_clip cannot load {spec}: {reason_of(error)}") from error
    finally:
        logging.root.setLevel(level)
    return model.eval()


def read_open_clip_preprocess(model: torch.nn.Module) -> Preprocess | None:
    """Read how images are prepared; None of modules that open_clip did not configure.

    Raises:
        ExportError: images are prepared in a way that whycam does not know.
    """
    config = getattr(model, "preprocess_cfg", None)
    if config is None:
        config = getattr(getattr(model, "visual", None), "preprocess_cfg", None)
    if not isinstance(config, dict) or "resize_mode" not in config:
        return None
    size = config["size"]
    sides = (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
    mode = config["resize_mode"]
    if mode not in ("shortest", "squash") or config.get("mode", "RGB") != "RGB":
        raise ExportError(
            f"open_clip prepares this model's images by '{mode}', which whycam does not know: "
            "state the preprocessing with --preprocess"
        )
    return Preprocess(
        size=sides,
        resize=sides if mode == "squash" else (min(sides),),
        interpolation=check_interpolation_name(config["interpolation"]),
        mean=tuple(float(value) for value in config["mean"]),
        std=tuple(float(value) for value in config["std"]),
    )
