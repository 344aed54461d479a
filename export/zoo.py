"""Load models of torchvision, timm, transformers and open_clip."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch

from ..runtime.errors import ExportError, MissingExtraError, reason_of
from ..runtime.suggest import suggest
from .factory import call_seeded
from .labels import read_labels
from .metadata import (
    ModelMetadata,
    from_timm,
    is_trained_on_imagenet,
    read_class_names,
)
from .open_clip_model import load_open_clip, read_open_clip_preprocess
from .preprocessing import (
    Overrides,
    choose_preprocess,
    find_input_size,
    format_example_command,
)
from .source import Source, prepare_module, read_torchvision_preprocess
from .transformers_model import TRANSFORMERS, is_transformers_folder, load_transformers


def load_from_torchvision(spec: str, weights: str, num_classes: int | None) -> Source:
    """Load a classifier or a segmentation network of torchvision by name."""
    models = _import("torchvision.models", "torchvision", spec)
    name = spec.removeprefix("torchvision/")
    segmenters = models.list_models(module=models.segmentation)
    known = [*models.list_models(module=models), *segmenters]
    if name not in known:
        raise ExportError(
            f"torchvision has no classifier or segmentation network '{name}'{_suggest(name, known)}"
        )
    default = models.get_model_weights(name).DEFAULT
    if weights == "default":
        if num_classes is not None:
            raise ExportError("num_classes does not go with the default weights: they are fixed")
        model = _download(lambda: models.get_model(name, weights=default), spec)
    else:
        options: dict[str, Any] = {} if num_classes is None else {"num_classes": num_classes}
        if name in segmenters:
            options["weights_backbone"] = None  # else they are downloaded
        model = call_seeded(lambda: models.get_model(name, weights=None, **options))
    return Source(
        model=model,
        name=spec,
        weights=weights,
        preprocess=read_torchvision_preprocess(default.transforms()),
        labels=tuple(default.meta["categories"]) if weights == "default" else (),
    )


def load_from_timm(
    spec: str,
    weights: str,
    num_classes: int | None,
    overrides: Overrides,
    needs_preprocess: bool,
) -> Source:
    """Load a model of timm by name, for another number of channels where the user asks."""
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
        stated = choose_preprocess(
            overrides, known, size, channels, spec, example, needs_preprocess
        )
    return Source(model, spec, weights, stated, labels)


def load_from_transformers(
    model: str,
    weights: str,
    overrides: Overrides,
    example: str | None,
    needs_preprocess: bool,
    is_encoder: bool,
) -> Source:
    """Load a model of transformers, with what its files state."""
    name = model if is_transformers_folder(model) else model.removeprefix(TRANSFORMERS)
    module, known = load_transformers(name, weights == "default", is_encoder)
    shown = name.replace("\\", "/").rstrip("/").split("/")[-1]
    target = f"{shown}.onnx"
    example = example or format_example_command(model, target, overrides)
    source = prepare_module(module, shown, overrides, example, needs_preprocess, known)
    labels = known.labels if weights == "default" else ()
    return replace(source, name=shown, labels=labels, weights=weights)


def load_from_open_clip(spec: str, weights: str, num_classes: int | None) -> Source:
    """Load an image encoder of open_clip by name and tag."""
    if num_classes is not None:
        raise ExportError(f"{spec} has no classes of its own: name them with --classes")
    model = load_open_clip(spec, weights)
    preprocess = read_open_clip_preprocess(model)
    if preprocess is None:
        raise ExportError(f"open_clip does not say how images are prepared for {spec}")
    return Source(model, spec, Path(weights).name, preprocess, ())


def _import(module: str, package: str, spec: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtraError(package, "export", f"the model {spec}") from error


def _download(create: Callable[[], Any], spec: str) -> torch.nn.Module:
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


def _suggest(name: str, known: Sequence[str]) -> str:
    close = suggest(name, known)
    return f"; did you mean {', '.join(close)}?" if close else ""
