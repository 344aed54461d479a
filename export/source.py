"""Where a model comes from: its name, weights, preprocessing and labels."""

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
from .labels import read_labels
from .metadata import Known, from_timm, interpolation
from .preprocessing import (
    PRESETS,
    Overrides,
    choose,
    find_input_size,
    format_example_command,
    override,
)
from .saved_model import WEIGHTS, is_saved_model, read_saved_model

Factory = Callable[..., Any]

_SIDE = 224  # of inputs where nobody says it
_DATA_PARALLEL = (
    torch.nn.DataParallel,
    torch.nn.parallel.DistributedDataParallel,
    torch.optim.swa_utils.AveragedModel,
)


@dataclass(frozen=True)
class Source:
    """A model ready for export.

    Attributes:
        model: in eval mode, float32, on the CPU.
        name: as the user gave it.
        weights: ``default``, ``none`` or a file name.
        preprocess: what its training used.
        labels: class names, or empty.
        notes: what had to be assumed, for the user to check.
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
    """Load a model.

    Args:
        model: ``torchvision/NAME``, ``timm/NAME``, ``package.module:factory``, ``file.py:factory``,
            a folder made by ``whycam train``, or a module as it is. Wrappers of ``torch.compile``
            and data-parallel training are taken off.
        weights: ``default`` (the pretrained ones; of a factory or a module: what it comes
            with), ``none`` (random, the same each time), or a .pth or .safetensors file.
        labels: ``imagenet``, a file with one name a line or a JSON list, or the names.
        num_classes: where the weights have another number of classes than the model by itself.
        overrides: preprocessing that differs from the model's own.
        weights_key: which of several sets of weights in the file.
        needs_preprocess: whether it matters how images are prepared.
        example: how the user of another command than ``whycam export`` says how they are prepared.

    Raises:
        ExportError: unknown model, unusable weights, labels or sizes.
        PreprocessError: the model does not say how images are prepared, and nobody else does.
        MissingExtraError: torchvision or timm is needed and not installed.
    """
    overrides = overrides or Overrides()
    if isinstance(model, str) and is_saved_model(model):
        source = _saved(model, weights)
    elif isinstance(model, torch.nn.Module):
        name = type(_bare(model)).__name__
        example = example or 'overrides=Overrides(preprocess="imagenet"), of whycam.export'
        source = _from_module(_own_copy(model), name, overrides, example, needs_preprocess)
    elif model.startswith("torchvision/"):
        source = _torchvision(model, weights, num_classes)
    elif model.startswith("timm/"):
        source = _timm(model, weights, num_classes)
    elif ":" in model:
        place = model.replace("\\", "/").split("/")[-1].partition(":")[0]
        target = f"{place.removesuffix('.py') or 'model'}.onnx"
        example = example or format_example_command(model, target, overrides)
        source = _from_module(call_factory(model), model, overrides, example, needs_preprocess)
        source = replace(source, name=model.replace("\\", "/").split("/")[-1])
        if num_classes is not None:
            spec = source.preprocess
            replace_classifier(source.model.eval(), num_classes, spec.size, spec.channels)
    else:
        raise ExportError(
            f"cannot tell where to find the model '{model}': write FILE.onnx, torchvision/NAME, "
            "timm/NAME, package.module:factory, file.py:factory, or a folder made by whycam train"
        )
    if weights not in ("default", "none"):
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
        preprocess=override(source.preprocess, overrides),
        labels=read_labels(labels) if labels is not None else source.labels,
    )


def _saved(folder: str, weights: str) -> Source:
    """A model that ``whycam train`` wrote: the architecture, then the weights beside it."""
    saved = read_saved_model(folder)
    source = resolve(saved.model, "none", needs_preprocess=False)
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


def _torchvision(spec: str, weights: str, num_classes: int | None) -> Source:
    models = _import("torchvision.models", "torchvision", spec)
    name = spec.removeprefix("torchvision/")
    known = models.list_models(module=models)
    if name not in known:
        raise ExportError(f"torchvision has no classifier '{name}'{_similar(name, known)}")
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
        interpolation=interpolation(preset.interpolation.value),
        mean=tuple(float(value) for value in preset.mean),
        std=tuple(float(value) for value in preset.std),
    )


def _timm(spec: str, weights: str, num_classes: int | None) -> Source:
    timm = _import("timm", "timm", spec)
    name = spec.removeprefix("timm/")
    if not timm.is_model(name):
        raise ExportError(f"timm has no model '{name}'{_similar(name, timm.list_models())}")
    if weights == "default":
        if num_classes is not None:
            raise ExportError("num_classes does not go with the default weights: they are fixed")
        model = _download(lambda: timm.create_model(name, pretrained=True), spec)
    else:
        options = {} if num_classes is None else {"num_classes": num_classes}
        model = call_seeded(lambda: timm.create_model(name, pretrained=False, **options))
    labels: tuple[str, ...] = ()
    if weights == "default" and model.num_classes == 1000:
        labels = read_labels("imagenet")
    return Source(
        model,
        spec,
        weights,
        from_timm(cast("dict[str, Any]", model.pretrained_cfg), spec),
        labels,
    )


def _bare(model: torch.nn.Module) -> torch.nn.Module:
    """The network inside the wrappers of torch.compile and data-parallel training."""
    while True:
        inner = getattr(model, "_orig_mod", None)
        if isinstance(model, _DATA_PARALLEL):
            inner = model.module
        if not isinstance(inner, torch.nn.Module):
            return model
        model = inner


def _unwrap_parts(model: torch.nn.Module) -> None:
    """Take the same wrappers off the network's parts, in place."""
    for module in list(model.modules()):
        for name, part in list(module.named_children()):
            bare = _bare(part)
            if bare is not part:
                setattr(module, name, bare)


def _own_copy(model: torch.nn.Module) -> torch.nn.Module:
    """A copy on the CPU: the caller's model, maybe in training, stays as it is."""
    return copy.deepcopy(_bare(model)).cpu()


def _from_module(
    model: torch.nn.Module, name: str, overrides: Overrides, example: str, needs_preprocess: bool
) -> Source:
    """A model of the user's own; some bring their configuration along."""
    model = _bare(model).cpu()
    _unwrap_parts(model)
    notes = _precision(model)
    known = _known(model, name)
    size = find_input_size(overrides, known)
    if size is None and overrides.preprocess in PRESETS:
        notes = (
            *notes,
            f"{name} does not say the size of its input: {_SIDE} x {_SIDE} was assumed; if it is "
            "another, pass --image-size",
        )
    size = size or (_SIDE, _SIDE)
    if needs_preprocess:
        preprocess = choose(overrides, known, size, None, name, example)
    else:
        preprocess = Preprocess(size=size, resize=size)
    return Source(model.float(), name, "default", preprocess, (), notes)


def _precision(model: torch.nn.Module) -> tuple[str, ...]:
    """Say which weights are not of the precision of exported files."""
    tensors = (t for t in model.state_dict().values() if t.is_floating_point())
    other = sorted({str(t.dtype).removeprefix("torch.") for t in tensors} - {"float32"})
    if not other:
        return ()
    return (f"the model's weights are {', '.join(other)}; it was exported in float32",)


def _known(model: torch.nn.Module, name: str) -> Known | None:
    """What a module says of its images: timm's configuration, or torchvision's transforms."""
    config = getattr(model, "pretrained_cfg", None)
    if isinstance(config, dict) and "input_size" in config and "mean" in config:
        return Known("the model's pretrained_cfg", from_timm(config, name))
    preset = getattr(model, "transforms", None)
    if all(hasattr(preset, part) for part in ("crop_size", "resize_size", "mean", "std")):
        return Known("the model's transforms", _torchvision_preprocess(preset))
    return None


def _import(module: str, package: str, spec: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtraError(package, "export", f"the model {spec}") from error


def _download(create: Factory, spec: str) -> torch.nn.Module:
    hub = logging.getLogger("huggingface_hub")  # it warns of each of its attempts
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
            raise ExportError(f"the weights are broken: {name} holds NaN or infinite values")


def _similar(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, known, n=3)
    return f"; did you mean {', '.join(close)}?" if close else ""


def _sides(size: Any) -> tuple[int, int]:
    sides = [size] if isinstance(size, int) else [int(side) for side in size]
    return sides[0], sides[-1]
