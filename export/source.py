"""Load a PyTorch model with its weights, preprocessing and labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from ..runtime.input_format import Preprocess
from .input_channels import read_input_channels
from .metadata import (
    ModelMetadata,
    check_interpolation_name,
    from_timm,
    read_class_names,
)
from .open_clip_model import read_open_clip_preprocess
from .preprocessing import (
    PRESETS,
    Overrides,
    choose_preprocess,
    count_stated_channels,
    find_input_size,
)

_DEFAULT_SIDE = 224  # of inputs whose size neither user nor model states
_DATA_PARALLEL = (
    torch.nn.DataParallel,
    torch.nn.parallel.DistributedDataParallel,
    torch.optim.swa_utils.AveragedModel,
)


@dataclass(frozen=True)
class Source:
    """A PyTorch model ready for export.

    Attributes:
        model: in eval mode, float32, on the CPU.
        name: as the user gave it.
        weights: ``default``, ``none`` or a file name.
        preprocess: how its images are prepared.
        labels: class names, or empty.
        notes: what was assumed, for the user to check.
    """

    model: torch.nn.Module
    name: str
    weights: str
    preprocess: Preprocess
    labels: tuple[str, ...]
    notes: tuple[str, ...] = ()


def read_torchvision_preprocess(preset: Any) -> Preprocess:
    """Read what the transforms of torchvision's weights do.

    Those of segmentation networks keep each image's shape, and a graph has one: whole images are
    resized to a square of that side.
    """
    crop = getattr(preset, "crop_size", None)
    size = _sides(preset.resize_size if crop is None else crop)
    return Preprocess(
        size=size,
        resize=tuple(preset.resize_size) if crop is not None else size,
        interpolation=check_interpolation_name(preset.interpolation.value),
        mean=tuple(float(value) for value in preset.mean),
        std=tuple(float(value) for value in preset.std),
    )


def unwrap(model: torch.nn.Module) -> torch.nn.Module:
    """Unwrap a network from torch.compile and data-parallel training."""
    while True:
        inner = getattr(model, "_orig_mod", None)
        if isinstance(model, _DATA_PARALLEL):
            inner = model.module
        if not isinstance(inner, torch.nn.Module):
            return model
        model = inner


def _unwrap_parts(model: torch.nn.Module) -> None:
    """Unwrap the network's parts in the same way, in place."""
    for module in list(model.modules()):
        for name, part in list(module.named_children()):
            unwrapped = unwrap(part)
            if unwrapped is not part:
                setattr(module, name, unwrapped)


def prepare_module(
    model: torch.nn.Module,
    name: str,
    overrides: Overrides,
    example: str,
    needs_preprocess: bool,
    known: ModelMetadata | None = None,
) -> Source:
    """Prepare the user's own model, whose configuration may state preprocessing and labels."""
    model = unwrap(model).cpu()
    _unwrap_parts(model)
    notes = _note_precision(model)
    known = known or _read_module_metadata(model, name)
    size = find_input_size(overrides, known) or _read_image_size(model)
    if size is None and overrides.preprocess in PRESETS:
        notes = (
            *notes,
            f"{name} does not state its input size: {_DEFAULT_SIDE} x {_DEFAULT_SIDE} was assumed. "
            "Pass --image-size if it is another",
        )
    size = size or (_DEFAULT_SIDE, _DEFAULT_SIDE)
    model = model.float()
    channels = count_stated_channels(overrides)
    if channels is None:
        channels = read_input_channels(model, size) or 3
        if channels != 3:
            count = f"{channels} channel{'s' * (channels > 1)}"
            notes = (*notes, f"images have {count}, as the first convolution has")
    preprocess = choose_preprocess(
        overrides, known, size, channels, name, example, needs_preprocess
    )
    labels = () if known is None else known.labels
    if labels and known is not None:
        notes = (*notes, f"labels read from {known.source}")
    return Source(model, name, "default", preprocess, labels, notes)


def _note_precision(model: torch.nn.Module) -> tuple[str, ...]:
    """Note which weights are not float32, the precision of exported files."""
    tensors = (t for t in model.state_dict().values() if t.is_floating_point())
    other = sorted({str(t.dtype).removeprefix("torch.") for t in tensors} - {"float32"})
    if not other:
        return ()
    return (f"the model's weights are {', '.join(other)}; it was exported in float32",)


def _read_module_metadata(model: torch.nn.Module, name: str) -> ModelMetadata | None:
    """Read what a module states: timm's or Hugging Face's configuration, torchvision's transforms.

    A timm configuration's tag says nothing of weights that were loaded since, but its names do.
    """
    config = getattr(model, "pretrained_cfg", None)
    if isinstance(config, dict) and "input_size" in config and "mean" in config:
        labels = read_class_names(config)
        return ModelMetadata("the model's pretrained_cfg", from_timm(config, name), labels)
    prepared = read_open_clip_preprocess(model)
    if prepared is not None:
        return ModelMetadata("the model's preprocess_cfg", prepared)
    config = getattr(model, "config", None)
    if isinstance(getattr(config, "id2label", None), dict):
        labels = read_class_names({"id2label": config.id2label})  # type: ignore[union-attr]
        return ModelMetadata("the model's config.id2label", None, labels)
    preset = getattr(model, "transforms", None)
    if all(hasattr(preset, part) for part in ("crop_size", "resize_size", "mean", "std")):
        return ModelMetadata("the model's transforms", read_torchvision_preprocess(preset))
    return None


def _read_image_size(model: torch.nn.Module) -> tuple[int, int] | None:
    """Read the input size from a Hugging Face model's configuration."""
    config = getattr(model, "config", None)
    size = getattr(getattr(config, "vision_config", config), "image_size", None)
    is_stated = isinstance(size, int) or (
        isinstance(size, list | tuple)
        and len(size) == 2
        and all(isinstance(side, int) for side in size)
    )
    return _sides(size) if is_stated else None


def _sides(size: Any) -> tuple[int, int]:
    sides = [size] if isinstance(size, int) else [int(side) for side in size]
    return sides[0], sides[-1]
