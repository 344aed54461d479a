"""Load a PyTorch model with its weights, preprocessing and labels."""

from __future__ import annotations

import copy
import difflib
import importlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch

from ..runtime.errors import ExportError, MissingExtraError, reason_of
from ..runtime.input_format import Preprocess
from .checkpoint import load_weights
from .classifier import replace_classifier
from .factory import call_factory, call_seeded
from .input_channels import read_input_channels
from .labels import read_labels
from .metadata import (
    ModelMetadata,
    check_interpolation_name,
    from_timm,
    is_trained_on_imagenet,
    read_class_names,
)
from .open_clip_model import PREFIX, load_open_clip, read_open_clip_preprocess
from .preprocessing import (
    PRESETS,
    Overrides,
    apply_overrides,
    choose_preprocess,
    count_stated_channels,
    find_input_size,
    format_example_command,
    neutral_preprocess,
)
from .saved_model import WEIGHTS, is_saved_model, read_saved_model
from .transformers_model import TRANSFORMERS, is_transformers_folder, load_transformers

Factory = Callable[..., Any]

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
        copied = copy.deepcopy(_unwrap(model)).cpu()
        name = type(copied).__name__
        example = example or 'overrides=Overrides(preprocess="imagenet"), of whycam.export'
        source = _prepare_module(copied, name, overrides, example, needs_preprocess)
    elif model.startswith(TRANSFORMERS) or is_transformers_folder(model):
        if num_classes is not None:
            raise ExportError(
                "num_classes does not go with a model of transformers: its config.json says it"
            )
        source = _load_transformers(model, weights, overrides, example, needs_preprocess)
    elif model.startswith("torchvision/"):
        if overrides.channels not in (None, 3):
            raise ExportError(
                f"{model} takes 3 channels; for {overrides.channels} replace its first convolution "
                "in a function of your own, and pass file.py:function"
            )
        source = _load_torchvision(model, weights, num_classes)
    elif model.startswith("timm/"):
        source = _load_timm(model, weights, num_classes, overrides, needs_preprocess)
    elif model.startswith(PREFIX):
        source = _load_open_clip(model, weights, num_classes)
    elif ":" in model:
        place = model.replace("\\", "/").split("/")[-1].partition(":")[0]
        target = f"{place.removesuffix('.py') or 'model'}.onnx"
        example = example or format_example_command(model, target, overrides)
        source = _prepare_module(call_factory(model), model, overrides, example, needs_preprocess)
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


def _load_torchvision(spec: str, weights: str, num_classes: int | None) -> Source:
    models = _import("torchvision.models", "torchvision", spec)
    name = spec.removeprefix("torchvision/")
    known = models.list_models(module=models)
    if name not in known:
        raise ExportError(f"torchvision has no classifier '{name}'{_suggest(name, known)}")
    default = models.get_model_weights(name).DEFAULT
    if weights == "default":
        if num_classes is not None:
            raise ExportError("num_classes does not go with the default weights: they are fixed")
        model = _download(lambda: models.get_model(name, weights=default), spec)
    else:
        options = {} if num_classes is None else {"num_classes": num_classes}
        model = call_seeded(lambda: models.get_model(name, weights=None, **options))
    return Source(
        model=model,
        name=spec,
        weights=weights,
        preprocess=_torchvision_preprocess(default.transforms()),
        labels=tuple(default.meta["categories"]) if weights == "default" else (),
    )


def _torchvision_preprocess(preset: Any) -> Preprocess:
    return Preprocess(
        size=_sides(preset.crop_size),
        resize=tuple(preset.resize_size),
        interpolation=check_interpolation_name(preset.interpolation.value),
        mean=tuple(float(value) for value in preset.mean),
        std=tuple(float(value) for value in preset.std),
    )


def _load_timm(
    spec: str,
    weights: str,
    num_classes: int | None,
    overrides: Overrides,
    needs_preprocess: bool,
) -> Source:
    timm = _import("timm", "timm", spec)
    name = spec.removeprefix("timm/")
    if not timm.is_model(name):
        raise ExportError(f"timm has no model '{name}'{_suggest(name, timm.list_models())}")
    if weights == "default":
        if num_classes is not None:
            raise ExportError("num_classes does not go with the default weights: they are fixed")
        if overrides.channels is not None:
            raise ExportError(
                "channels do not go with the default weights, which are of a fixed number: pass "
                "--weights FILE"
            )
        model = _download(lambda: timm.create_model(name, pretrained=True), spec)
    else:
        options = {} if num_classes is None else {"num_classes": num_classes}
        if overrides.channels is not None:
            options["in_chans"] = overrides.channels
        model = call_seeded(lambda: timm.create_model(name, pretrained=False, **options))
    config = cast("dict[str, Any]", model.pretrained_cfg)
    labels: tuple[str, ...] = ()
    if weights == "default":
        labels = read_class_names(config)
        if not labels and is_trained_on_imagenet(config, cast(int, model.num_classes)):
            labels = read_labels("imagenet")
    stated = from_timm(config, spec)
    if overrides.channels not in (None, stated.channels):
        known = ModelMetadata("the model's pretrained_cfg", stated)
        example = format_example_command(spec, "model.onnx", overrides)
        size = find_input_size(overrides, known) or stated.size
        channels = overrides.channels
        stated = _choose(overrides, known, size, channels, spec, example, needs_preprocess)
    return Source(model, spec, weights, stated, labels)


def _load_transformers(
    model: str, weights: str, overrides: Overrides, example: str | None, needs_preprocess: bool
) -> Source:
    """Load a model of transformers, with what its files state."""
    name = model if is_transformers_folder(model) else model.removeprefix(TRANSFORMERS)
    module, known = load_transformers(name, weights == "default")
    shown = name.replace("\\", "/").rstrip("/").split("/")[-1]
    target = f"{shown}.onnx"
    example = example or format_example_command(model, target, overrides)
    source = _prepare_module(module, shown, overrides, example, needs_preprocess, known)
    labels = known.labels if weights == "default" else ()
    return replace(source, name=shown, labels=labels, weights=weights)


def _loads_weights(model: str | torch.nn.Module) -> bool:
    """Tell whether a loader of another package reads the file of weights itself."""
    return isinstance(model, str) and model.startswith(PREFIX)


def _load_open_clip(spec: str, weights: str, num_classes: int | None) -> Source:
    if num_classes is not None:
        raise ExportError(f"{spec} has no classes of its own: name them with --classes")
    model = load_open_clip(spec, weights)
    preprocess = read_open_clip_preprocess(model)
    if preprocess is None:
        raise ExportError(f"open_clip does not say how images are prepared for {spec}")
    return Source(model, spec, Path(weights).name, preprocess, ())


def _unwrap(model: torch.nn.Module) -> torch.nn.Module:
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
            unwrapped = _unwrap(part)
            if unwrapped is not part:
                setattr(module, name, unwrapped)


def _prepare_module(
    model: torch.nn.Module,
    name: str,
    overrides: Overrides,
    example: str,
    needs_preprocess: bool,
    known: ModelMetadata | None = None,
) -> Source:
    """Prepare the user's own model, whose configuration may state preprocessing and labels."""
    model = _unwrap(model).cpu()
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
    preprocess = _choose(overrides, known, size, channels, name, example, needs_preprocess)
    labels = () if known is None else known.labels
    if labels and known is not None:
        notes = (*notes, f"labels read from {known.source}")
    return Source(model, name, "default", preprocess, labels, notes)


def _choose(
    overrides: Overrides,
    known: ModelMetadata | None,
    size: tuple[int, int],
    channels: int,
    name: str,
    example: str,
    needs_preprocess: bool,
) -> Preprocess:
    if not needs_preprocess:
        return neutral_preprocess(size, channels)
    return choose_preprocess(overrides, known, size, channels, name, example)


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
        return ModelMetadata("the model's transforms", _torchvision_preprocess(preset))
    return None


def _read_image_size(model: torch.nn.Module) -> tuple[int, int] | None:
    """Read the input size from a Hugging Face model's configuration."""
    size = getattr(getattr(model, "config", None), "image_size", None)
    is_stated = isinstance(size, int) or (
        isinstance(size, list | tuple)
        and len(size) == 2
        and all(isinstance(side, int) for side in size)
    )
    return _sides(size) if is_stated else None


def _import(module: str, package: str, spec: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtraError(package, "export", f"the model {spec}") from error


def _download(create: Factory, spec: str) -> torch.nn.Module:
    hub = logging.getLogger("huggingface_hub")  # it logs a warning for every retry
    level = hub.level
    hub.setLevel(logging.ERROR)
    try:
        return cast(torch.nn.Module, create())
    except Exception as error:
        cause: BaseException = error
        while (inner := cause.__cause__ or cause.__context__) is not None:
            cause = inner
        raise ExportError(
            f"cannot download the pretrained weights of {spec} ({reason_of(cause)}): pass "
            "--weights FILE, or --weights none for random ones"
        ) from error
    finally:
        hub.setLevel(level)


def _check_finite(model: torch.nn.Module) -> None:
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise ExportError(f"the weights are damaged: {name} holds NaN or infinite values")


def _suggest(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, known, n=3)
    return f"; did you mean {', '.join(close)}?" if close else ""


def _sides(size: Any) -> tuple[int, int]:
    sides = [size] if isinstance(size, int) else [int(side) for side in size]
    return sides[0], sides[-1]
