"""Load a PyTorch model from a name, a factory, a folder or a module."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from ..runtime.errors import ExportError
from .checkpoint import load_weights
from .classifier import replace_classifier
from .factory import call_factory
from .labels import read_labels
from .open_clip_model import PREFIX
from .preprocessing import (
    Overrides,
    apply_overrides,
    format_example_command,
)
from .saved_model import WEIGHTS, is_saved_model, read_saved_model
from .source import Source, prepare_module, unwrap
from .transformers_model import TRANSFORMERS, is_transformers_folder
from .zoo import load_from_open_clip, load_from_timm, load_from_torchvision, load_from_transformers


def resolve(
    model: str | torch.nn.Module,
    weights: str = "default",
    labels: str | Sequence[str] | None = None,
    num_classes: int | None = None,
    overrides: Overrides | None = None,
    *,
    weights_key: str | None = None,
    needs_preprocess: bool = True,
    example: str | None = None,
    is_encoder: bool = False,
) -> Source:
    """Load a PyTorch model from a name, a factory, a folder or a module.

    Args:
        model: ``torchvision/NAME``, ``timm/NAME``, ``open_clip/NAME/TAG`` (an image encoder),
            ``transformers/OWNER/NAME`` of the hub, ``package.module:factory``,
            ``file.py:factory``, a folder made by ``whycam train`` or by transformers'
            ``save_pretrained``, or a module as it is. Wrappers of ``torch.compile`` and
            data-parallel training are taken off.
        weights: ``default`` (the pretrained ones; of a factory or a module: what it comes
            with), ``none`` (random, the same each time), or a .pth or .safetensors file.
        labels: ``imagenet``, a file with one name a line or a JSON list, or the names.
        num_classes: where the weights have another number of classes than the model by itself.
        overrides: preprocessing that differs from the model's own.
        weights_key: which of several sets of weights in the file.
        needs_preprocess: whether it matters how images are prepared.
        example: a command that states the preprocessing, for commands other than ``whycam export``.
        is_encoder: whether a model with an image and a text encoder is needed, as CLIP.

    Raises:
        ExportError: unknown model, unusable weights, labels or sizes.
        PreprocessError: neither the user nor the model states the preprocessing.
        MissingExtraError: torchvision or timm is needed and not installed.
    """
    overrides = overrides or Overrides()
    if isinstance(model, str) and is_saved_model(model):
        source = _load_saved(model, weights)
    elif isinstance(model, torch.nn.Module):
        # The caller's model may be in training, and stays as it is.
        copied = copy.deepcopy(unwrap(model)).cpu()
        name = type(copied).__name__
        example = example or 'overrides=Overrides(preprocess="imagenet"), of whycam.export'
        source = prepare_module(copied, name, overrides, example, needs_preprocess)
    elif model.startswith(TRANSFORMERS) or is_transformers_folder(model):
        if num_classes is not None:
            raise ExportError(
                "num_classes does not go with a model of transformers: its config.json says it"
            )
        source = load_from_transformers(
            model, weights, overrides, example, needs_preprocess, is_encoder
        )
    elif model.startswith("torchvision/"):
        if overrides.channels not in (None, 3):
            raise ExportError(
                f"{model} takes 3 channels; for {overrides.channels} replace its first convolution "
                "in a function of your own, and pass file.py:function"
            )
        source = load_from_torchvision(model, weights, num_classes)
    elif model.startswith("timm/"):
        source = load_from_timm(model, weights, num_classes, overrides, needs_preprocess)
    elif model.startswith(PREFIX):
        source = load_from_open_clip(model, weights, num_classes)
    elif ":" in model:
        place = model.replace("\\", "/").split("/")[-1].partition(":")[0]
        target = f"{place.removesuffix('.py') or 'model'}.onnx"
        example = example or format_example_command(model, target, overrides)
        source = prepare_module(call_factory(model), model, overrides, example, needs_preprocess)
        source = replace(source, name=model.replace("\\", "/").split("/")[-1])
        if num_classes is not None:
            spec = source.preprocess
            replace_classifier(source.model.eval(), num_classes, spec.size, spec.channels)
    else:
        raise ExportError(
            f"cannot tell where to find the model '{model}': write FILE.onnx, torchvision/NAME, "
            "timm/NAME, open_clip/NAME/TAG, transformers/OWNER/NAME, package.module:factory, "
            "file.py:factory, or a folder made by whycam train or by save_pretrained of "
            "transformers"
        )
    if weights not in ("default", "none") and not _loads_weights(model):
        notes = load_weights(source.model, Path(weights), weights_key)
        source = replace(
            source, weights=Path(weights).name, labels=(), notes=(*source.notes, *notes)
        )
    elif weights_key is not None:
        raise ExportError("weights_key chooses among the weights of a file: pass --weights FILE")
    _check_finite(source.model)
    return replace(
        source,
        model=source.model.eval().requires_grad_(False),
        preprocess=apply_overrides(source.preprocess, overrides),
        labels=read_labels(labels) if labels is not None else source.labels,
    )


def _load_saved(folder: str, weights: str) -> Source:
    """Load a model that ``whycam train`` wrote: the architecture, then the weights beside it."""
    saved = read_saved_model(folder)
    channels = saved.preprocess.channels
    stated = Overrides(channels=channels) if channels != 3 else None
    source = resolve(saved.model, "none", overrides=stated, needs_preprocess=False)
    if saved.num_classes is not None:
        spec = saved.preprocess
        replace_classifier(source.model, saved.num_classes, spec.size, spec.channels)
    if weights == "default":
        load_weights(source.model, Path(folder) / WEIGHTS)
    return replace(
        source,
        weights=WEIGHTS if weights == "default" else weights,
        preprocess=saved.preprocess,
        labels=saved.labels,
        notes=(),
    )


def _loads_weights(model: str | torch.nn.Module) -> bool:
    """Tell whether a loader of another package reads the file of weights itself."""
    return isinstance(model, str) and model.startswith(PREFIX)


def _check_finite(model: torch.nn.Module) -> None:
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise ExportError(f"the weights are damaged: {name} holds NaN or infinite values")
