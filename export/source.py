"""Where a model comes from: its name, weights, preprocessing and labels."""

from __future__ import annotations

import copy
import difflib
import importlib
import importlib.util
import json
import math
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import msgspec
import torch

from ..runtime.errors import ExportError, MissingExtraError
from ..runtime.input_format import Interpolation, Preprocess
from .classifier import replace_classifier
from .saved import WEIGHTS, is_saved, read_saved

IMAGENET = Preprocess(size=(224, 224), resize=(256,), interpolation="bilinear")

Factory = Callable[..., Any]


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


@dataclass(frozen=True)
class Overrides:
    """Preprocessing given by the user, in place of the model's own configuration.

    Attributes:
        image_size: side, or (H, W), of the network input; the resize keeps its proportion to it.
        resize: the shorter side before the crop.
        interpolation: of the resize.
        mean, std: per channel, for values in [0, 1].
    """

    image_size: int | tuple[int, int] | None = None
    resize: int | None = None
    interpolation: Interpolation | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None


def resolve(
    model: str | torch.nn.Module,
    weights: str = "default",
    labels: str | Sequence[str] | None = None,
    num_classes: int | None = None,
    overrides: Overrides | None = None,
) -> Source:
    """Load a model.

    Args:
        model: ``torchvision/NAME``, ``timm/NAME``, ``package.module:factory``,
            ``file.py:factory``, a folder made by ``whycam train``, or a module as it is.
        weights: ``default`` (the pretrained ones; of a factory or a module: what it comes
            with), ``none`` (random, the same each time), or a .pth or .safetensors file.
        labels: ``imagenet``, a file with one name a line or a JSON list, or the names.
        num_classes: where the weights have another number of classes than the model by itself.
        overrides: preprocessing that differs from the model's own.

    Raises:
        ExportError: unknown model, unusable weights, labels or sizes.
        MissingExtraError: torchvision or timm is needed and not installed.
    """
    overrides = overrides or Overrides()
    if isinstance(model, str) and is_saved(model):
        source = _saved(model, weights)
    elif isinstance(model, torch.nn.Module):
        source = _from_module(_own_copy(model), type(_bare(model)).__name__)
    elif model.startswith("torchvision/"):
        source = _torchvision(model, weights, num_classes)
    elif model.startswith("timm/"):
        source = _timm(model, weights, num_classes)
    elif ":" in model:
        source = _from_module(_call_factory(model), model.replace("\\", "/").split("/")[-1])
        if num_classes is not None:
            replace_classifier(source.model.eval(), num_classes, source.preprocess.size)
    else:
        raise ExportError(
            f"cannot tell where to find the model '{model}': write torchvision/NAME, timm/NAME, "
            "package.module:factory, file.py:factory, or a folder made by whycam train"
        )
    if weights not in ("default", "none"):
        _load_weights(source.model, Path(weights))
        source = replace(source, weights=Path(weights).name, labels=())
    _check_finite(source.model)
    return replace(
        source,
        model=source.model.eval().requires_grad_(False),
        preprocess=_override(source.preprocess, overrides),
        labels=_labels(labels) if labels is not None else source.labels,
        notes=() if overrides.mean and overrides.std else source.notes,
    )


def _saved(folder: str, weights: str) -> Source:
    """A model that ``whycam train`` wrote: the architecture, then the weights beside it."""
    saved = read_saved(folder)
    source = resolve(saved.model, "none")
    if saved.num_classes is not None:
        replace_classifier(source.model, saved.num_classes, saved.preprocess.size)
    if weights == "default":
        _load_weights(source.model, Path(folder) / WEIGHTS)
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
        model = _random(lambda: models.get_model(name, weights=None, **options))
    preset = default.transforms()
    return Source(
        model=model,
        name=spec,
        weights=weights,
        preprocess=Preprocess(
            size=_sides(preset.crop_size),
            resize=tuple(preset.resize_size),
            interpolation=_interpolation(preset.interpolation.value),
            mean=_triple(preset.mean),
            std=_triple(preset.std),
        ),
        labels=tuple(default.meta["categories"]) if weights == "default" else (),
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
        model = _random(lambda: timm.create_model(name, pretrained=False, **options))
    labels: tuple[str, ...] = ()
    if weights == "default" and model.num_classes == 1000:
        labels = _labels("imagenet")
    return Source(
        model,
        spec,
        weights,
        _timm_preprocess(cast("dict[str, Any]", model.pretrained_cfg), spec),
        labels,
    )


def _timm_preprocess(config: dict[str, Any], spec: str) -> Preprocess:
    channels, height, width = config["input_size"]
    if channels != 3:
        raise ExportError(f"{spec} takes {channels} channels; whycam explains RGB pictures")
    scaled = tuple(math.floor(side / config["crop_pct"]) for side in (height, width))
    mode = config.get("crop_mode") or "center"
    if mode == "border" or (mode == "center" and height != width):
        raise ExportError(
            f"{spec} is configured for crop mode '{mode}' at {height} x {width}, which whycam "
            "cannot reproduce; give a square --image-size and --resize, or crop your pictures"
        )
    return Preprocess(
        size=(height, width),
        resize=scaled if mode == "squash" else scaled[:1],
        interpolation=_interpolation(config["interpolation"]),
        mean=_triple(config["mean"]),
        std=_triple(config["std"]),
    )


def _bare(model: torch.nn.Module) -> torch.nn.Module:
    """The network inside the wrappers of torch.compile and data-parallel training."""
    while True:
        inner = getattr(model, "_orig_mod", None)
        if isinstance(model, torch.nn.DataParallel | torch.nn.parallel.DistributedDataParallel):
            inner = model.module
        if not isinstance(inner, torch.nn.Module):
            return model
        model = inner


def _own_copy(model: torch.nn.Module) -> torch.nn.Module:
    """A float32 copy on the CPU: the caller's model, maybe in training, stays as it is."""
    return copy.deepcopy(_bare(model)).cpu().float()


def _from_module(model: torch.nn.Module, name: str) -> Source:
    """A model of the user's own; timm models bring their configuration along."""
    config = getattr(model, "pretrained_cfg", None)
    if isinstance(config, dict) and "input_size" in config:
        return Source(model, name, "default", _timm_preprocess(config, name), ())
    note = (
        "the model says nothing of its preprocessing: ImageNet's was assumed (shorter side 256, "
        "crop 224, bilinear, its mean and std). If it was trained otherwise, pass image_size, "
        "resize, interpolation, mean and std"
    )
    return Source(model, name, "default", IMAGENET, (), (note,))


def _call_factory(spec: str) -> torch.nn.Module:
    """Run ``file.py:factory`` or ``package.module:factory``, which returns the model."""
    place, _, name = spec.rpartition(":")
    module = _module_from_file(Path(place)) if place.endswith(".py") else _module(place)
    factory = getattr(module, name, None)
    if not callable(factory):
        raise ExportError(f"{place} has no function or class '{name}'")
    try:
        model = _random(factory)
    except Exception as error:
        raise ExportError(
            f"{spec} failed: {type(error).__name__}: {error} (it is called without arguments)"
        ) from error
    if not isinstance(model, torch.nn.Module):
        raise ExportError(f"{spec} returned {type(model).__name__}, not a torch.nn.Module")
    return model


def _module_from_file(path: Path) -> ModuleType:
    if not os.path.isfile(path):  # False, where pathlib raises: names too long, or with NUL
        raise ExportError(f"there is no file {path}")
    specification = importlib.util.spec_from_file_location(path.stem, path)
    assert specification is not None
    assert specification.loader is not None
    loader = specification.loader
    module = importlib.util.module_from_spec(specification)
    sys.modules[path.stem] = module  # dataclasses and pickles look their module up by name

    def run() -> ModuleType:
        loader.exec_module(module)
        return module

    return _run_import(run, str(path))


def _module(name: str) -> ModuleType:
    if "" not in sys.path:
        sys.path.insert(0, "")  # as `python -m` does: modules beside the user
    return _run_import(lambda: importlib.import_module(name), name)


def _run_import(run: Callable[[], ModuleType], name: str) -> ModuleType:
    try:
        return run()
    except Exception as error:
        raise ExportError(f"cannot import {name}: {type(error).__name__}: {error}") from error


def _import(module: str, package: str, spec: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtraError(package, "export", f"the model {spec}") from error


def _download(create: Factory, spec: str) -> torch.nn.Module:
    try:
        return cast(torch.nn.Module, create())
    except Exception as error:
        raise ExportError(
            f"cannot get the pretrained weights of {spec}: {type(error).__name__}: {error}. "
            "Without a connection pass --weights FILE, or --weights none for random ones"
        ) from error


def _random(create: Factory) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return create()


def _load_weights(model: torch.nn.Module, path: Path) -> None:
    state = _strip(_read_state(path))
    own = model.state_dict()
    for name, tensor in state.items():
        if name in own and own[name].shape != tensor.shape:
            hint = ""
            if tensor.ndim and own[name].shape[1:] == tensor.shape[1:]:
                hint = f". If that is the classifier, pass --num-classes {tensor.shape[0]}"
            raise ExportError(
                f"{path} does not fit the model: {name} is {list(tensor.shape)} in the file and "
                f"{list(own[name].shape)} in the model{hint}"
            )
    missing = [name for name in own if name not in state and "num_batches_tracked" not in name]
    surplus = [name for name in state if name not in own]
    if missing or surplus:
        raise ExportError(
            f"{path} does not fit the model: {_some(missing)} missing, {_some(surplus)} unknown"
        )
    model.load_state_dict(state, strict=False)


def _read_state(path: Path) -> dict[str, Any]:
    if not os.path.isfile(path):
        raise ExportError(f"there is no weight file {path}")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except ImportError as error:
        raise MissingExtraError("safetensors", "export", f"reading {path}") from error
    except Exception as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise ExportError(
            f"cannot read weights from {path}: {lines[0]} (only tensors are read, never pickled "
            "code)"
        ) from error
    if not isinstance(state, dict):
        raise ExportError(f"{path} holds a {type(state).__name__}, not a state dict of tensors")
    return state


def _strip(state: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Unwrap what training scripts put around a state dict."""
    for wrapper in ("state_dict", "model_state_dict", "model"):
        if isinstance(state.get(wrapper), dict):
            state = state[wrapper]
            break
    for prefix in ("module.", "_orig_mod."):
        if state and all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return {name: t for name, t in state.items() if isinstance(t, torch.Tensor)}


def _some(names: Sequence[str]) -> str:
    if not names:
        return "nothing"
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _check_finite(model: torch.nn.Module) -> None:
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise ExportError(f"the weights are broken: {name} holds NaN or infinite values")


def _override(own: Preprocess, wanted: Overrides) -> Preprocess:
    changes: dict[str, Any] = {
        name: getattr(wanted, name)
        for name in ("interpolation", "mean", "std")
        if getattr(wanted, name) is not None
    }
    try:
        if wanted.image_size is not None:
            size = _sides(wanted.image_size)
            changes["size"] = size
            changes["resize"] = _scaled(own, size)
        if wanted.resize is not None:
            changes["resize"] = (wanted.resize,)
        return msgspec.convert(
            msgspec.to_builtins(msgspec.structs.replace(own, **changes)), Preprocess
        )
    except (ValueError, OverflowError, msgspec.ValidationError) as error:
        raise ExportError(f"unusable preprocessing: {error}") from error


def _scaled(own: Preprocess, size: tuple[int, int]) -> tuple[int, ...]:
    """The model's own resize, in its proportion to another input size."""
    if len(own.resize) == 1:
        # The shorter side: it must cover the longer side of an oblong input.
        return (round(own.resize[0] * max(size) / max(own.size)),)
    return tuple(
        round(before * new / side)
        for before, side, new in zip(own.resize, own.size, size, strict=False)
    )


def _labels(labels: str | Sequence[str]) -> tuple[str, ...]:
    if not isinstance(labels, str):
        return tuple(labels)
    if labels == "imagenet":
        models = _import("torchvision.models", "torchvision", "with labels imagenet")
        return tuple(models.ResNet50_Weights.DEFAULT.meta["categories"])
    path = Path(labels)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ExportError(f"cannot read labels from {path}: {error}") from error
    if text.lstrip().startswith("["):
        try:
            names = json.loads(text)
        except ValueError as error:
            raise ExportError(f"{path} is not valid JSON: {error}") from error
        return tuple(str(name) for name in names)
    return tuple(line.strip() for line in text.splitlines() if line.strip())


def _similar(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, known, n=3)
    return f"; did you mean {', '.join(close)}?" if close else ""


def _sides(size: Any) -> tuple[int, int]:
    sides = [size] if isinstance(size, int) else [int(side) for side in size]
    return sides[0], sides[-1]


def _triple(values: Any) -> tuple[float, float, float]:
    red, green, blue = (float(value) for value in values)
    return red, green, blue


def _interpolation(name: str) -> Interpolation:
    if name not in ("nearest", "bilinear", "bicubic", "lanczos"):
        raise ExportError(
            f"the model is configured for interpolation '{name}'; pass --interpolation bilinear "
            "or bicubic"
        )
    return cast(Interpolation, name)
