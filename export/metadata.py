"""Read preprocessing and labels from metadata of timm, Hugging Face, Ultralytics and Paddle."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, get_args

from ..runtime.errors import ExportError
from ..runtime.input_format import Interpolation, Letterbox, Preprocess, color_of
from .paddle import CONFIGURATIONS, from_paddle

_PROCESSOR = "preprocessor_config.json"
_BYTE = 1 / 255
# Pillow's numbers, as Hugging Face's image processors store them.
_RESAMPLE: dict[int, Interpolation] = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}
# Hugging Face's families that read one number as the shorter side; others as both sides.
_SHORTER_SIDE = ("ConvNext", "PoolFormer", "Levit", "MobileNet", "MobileViT", "Bit")
# How timm's tags end that say on which data the classes were trained last: fb_in22k_ft_in1k_384.
_IMAGENET_TAG = re.compile(r"(^|_)in1k(_\d+)?$")
_SQUASHED_FROM = 384  # ConvNeXt's processor crops below that


@dataclass(frozen=True)
class ModelMetadata:
    """Preprocessing and labels that a model states.

    Attributes:
        source: where they were read, for messages.
        preprocess: None where only labels are known.
        labels: class names, or empty.
    """

    source: str
    preprocess: Preprocess | None
    labels: tuple[str, ...] = ()


def read_metadata(metadata: Mapping[str, str], path: Path) -> ModelMetadata | None:
    """Read preprocessing and labels from an ONNX file's metadata or the files beside it.

    That is Ultralytics' metadata, or beside the file Hugging Face's
    ``preprocessor_config.json`` or ``processor_config.json`` with ``config.json``, timm's
    ``config.json``, and Paddle's ``inference.yml`` or ``infer_cfg.yml``.

    Args:
        metadata: of the file.
        path: the ONNX file.

    Returns:
        None where there are neither.

    Raises:
        ExportError: such a file is damaged, or states preprocessing that cannot be reproduced.
        MissingExtraError: a Paddle file needs the package PyYAML.
    """
    if metadata.get("task") in ("classify", "detect") and "names" in metadata:
        return _ultralytics(metadata)
    config = _json_beside(path, "config.json")
    labels = read_class_names(config)
    for name in (_PROCESSOR, "processor_config.json"):
        settings = _json_beside(path, name)
        if settings is not None and (name == _PROCESSOR or "image_processor" in settings):
            processor = image_processor_of(settings)
            where = str(path.with_name(name))
            return ModelMetadata(where, from_huggingface(processor, where), labels)
    where = str(path.with_name("config.json"))
    if config is not None and isinstance(config.get("pretrained_cfg"), dict):
        return ModelMetadata(where, from_timm(config["pretrained_cfg"], where), labels)
    if labels:
        return ModelMetadata(where, None, labels)
    for name in CONFIGURATIONS:
        beside = path.with_name(name)
        if beside.is_file():
            return ModelMetadata(str(beside), *from_paddle(beside))
    return None


def image_processor_of(data: dict[str, Any]) -> dict[str, Any]:
    """Return the image processor's settings in a file of Hugging Face.

    A ``preprocessor_config.json`` is these settings; a ``processor_config.json``, of models that
    take images and text, holds them under a key.
    """
    inner = data.get("image_processor")
    return inner if isinstance(inner, dict) else data


def _json_beside(path: Path, name: str) -> dict[str, Any] | None:
    beside = path.with_name(name)
    try:
        if not beside.is_file():
            return None
        data = json.loads(beside.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ExportError(f"cannot read {beside}: {error}") from error
    return data if isinstance(data, dict) else None


def read_class_names(config: Mapping[str, Any] | None) -> tuple[str, ...]:
    """Read class names from the configuration of a Hugging Face or timm model.

    Hugging Face's defaults, ``LABEL_0`` and so on, name nothing and are left out.
    """
    if config is None:
        return ()
    names = config.get("id2label")
    if isinstance(names, dict) and names and all(str(key).isdecimal() for key in names):
        ordered = sorted(names.items(), key=lambda item: int(item[0]))
        if [int(key) for key, _ in ordered] == list(range(len(ordered))):
            labels = tuple(str(name) for _, name in ordered)
            defaults = tuple(f"LABEL_{index}" for index in range(len(labels)))
            return () if labels == defaults else labels
    listed = config.get("label_names")
    return tuple(map(str, listed)) if isinstance(listed, list | tuple) else ()


def is_trained_on_imagenet(config: Mapping[str, Any], num_classes: int) -> bool:
    """Tell whether a timm model's own configuration says that its classes are ImageNet-1k's."""
    tag = str(config.get("tag") or "")
    return num_classes == 1000 and _IMAGENET_TAG.search(tag) is not None


def _ultralytics(metadata: Mapping[str, str]) -> ModelMetadata:
    """Read metadata of Ultralytics: RGB in [0, 1], the shorter side resized, the centre cropped.

    For an oblong input the image is resized without a crop; for a detector it is fitted in.
    """
    try:
        names = ast.literal_eval(metadata["names"])
        size = ast.literal_eval(metadata.get("imgsz", "224"))
        sides = (size, size) if isinstance(size, int) else (int(size[0]), int(size[-1]))
        labels = tuple(str(names[index]) for index in range(len(names)))
        is_detector = metadata["task"] == "detect"
        cropped = sides[:1] if sides[0] == sides[1] else sides
        spec = Preprocess(
            size=sides,
            resize=() if is_detector else cropped,
            antialias=not is_detector,
            letterbox=Letterbox() if is_detector else None,
            mean=(0.0,) * 3,
            std=(1.0,) * 3,
        )
    except (ValueError, SyntaxError, KeyError, TypeError, IndexError, MemoryError) as error:
        raise ExportError(
            f"the file's metadata (names, imgsz) cannot be read: {error!r}"
        ) from error
    return ModelMetadata("the file's Ultralytics metadata", spec, labels)


def from_timm(config: Mapping[str, Any], name: str) -> Preprocess:
    """Read the configuration of a model of timm (``pretrained_cfg``).

    Args:
        config: with ``input_size``, ``mean`` and ``std``.
        name: of the model or file, for messages.

    Raises:
        ExportError: the crop cannot be reproduced, or the numbers are invalid.
    """
    try:
        channels, height, width = config["input_size"]
        scaled = tuple(int(side / config.get("crop_pct", 0.875)) for side in (height, width))
        mode = config.get("crop_mode") or "center"
        if mode == "border" or (mode == "center" and height != width):
            raise ExportError(
                f"{name} is configured for crop mode '{mode}' at {height} x {width}, which whycam "
                "cannot reproduce; give a square --image-size and --resize, or crop your images"
            )
        if len(config["mean"]) != channels:
            raise ValueError(f"{len(config['mean'])} means for {channels} channels")
        return Preprocess(
            size=(height, width),
            resize=scaled if mode == "squash" else scaled[:1],
            interpolation=check_interpolation_name(config.get("interpolation", "bilinear")),
            color=color_of(channels),
            mean=tuple(float(value) for value in config["mean"]),
            std=tuple(float(value) for value in config["std"]),
        )
    except (KeyError, TypeError, ValueError, ZeroDivisionError, OverflowError) as error:
        raise ExportError(f"{name} has an unusable configuration: {error!r}") from error


def check_interpolation_name(name: str) -> Interpolation:
    """Check an interpolation's name.

    Raises:
        ExportError: there is none of that name.
    """
    if name not in get_args(Interpolation):
        raise ExportError(
            f"the model is configured for interpolation '{name}'; pass --interpolation bilinear "
            "or bicubic"
        )
    return cast(Interpolation, name)


def from_huggingface(data: Mapping[str, Any], where: str) -> Preprocess:
    """Read an image processor's configuration (``preprocessor_config.json``).

    Args:
        data: the file's contents; those of the older feature extractors as well.
        where: it came from, for messages.

    Raises:
        ExportError: it is invalid, or does not state the input size.
    """
    family = str(data.get("image_processor_type") or data.get("feature_extractor_type") or "")
    try:
        size, resize = _huggingface_sizes(data, family)
        mean, std = _huggingface_normalisation(data, family)
        return Preprocess(
            size=size,
            resize=resize if data.get("do_resize", True) else (),
            interpolation=_RESAMPLE[int(data.get("resample", 2))],
            color="BGR" if data.get("do_flip_channel_order") else "RGB",
            mean=mean,
            std=std,
        )
    except (KeyError, TypeError, ValueError, ZeroDivisionError, OverflowError) as error:
        raise ExportError(f"{where} does not hold usable preprocessing: {error!r}") from error


def _huggingface_sizes(
    data: Mapping[str, Any], family: str
) -> tuple[tuple[int, int], tuple[int, ...]]:
    """Read the input size, and the resize before the crop."""
    entry = data.get("size")
    crop = _sides(data.get("crop_size")) if data.get("do_center_crop") else None
    part = data.get("crop_pct", 224 / 256 if family.startswith("ConvNext") else None)
    shorter = entry.get("shortest_edge") if isinstance(entry, dict) else None
    if isinstance(entry, int) and (part is not None or family.startswith(_SHORTER_SIDE)):
        shorter = entry
    if shorter is None:
        resize = _sides(entry)
        size = crop or resize
        if size is None:
            raise ValueError("no size, crop_size or shortest_edge")
        return size, resize or size
    square = (int(shorter), int(shorter))
    if part is None:
        # LeViT's processor states the size after the crop.
        longer = int(256 / 224 * shorter) if family.startswith("Levit") else int(shorter)
        return crop or square, (longer,)
    if crop is None and shorter >= _SQUASHED_FROM:
        return square, square
    return crop or square, (int(shorter / float(part)),)


def _huggingface_normalisation(
    data: Mapping[str, Any], family: str
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Convert ((x * factor - offset) - mean) / std to mean and std for values in [0, 1]."""
    factor = float(data.get("rescale_factor", _BYTE)) if data.get("do_rescale", True) else 1.0
    offset = 1.0 if data.get("rescale_offset") else 0.0
    mean, std = [0.0] * 3, [1.0] * 3
    if data.get("do_normalize", "image_mean" in data):
        mean = [float(value) for value in data["image_mean"]]
        std = [float(value) for value in data["image_std"]]
    if data.get("include_top", family.startswith("EfficientNet")):
        std = [value * value for value in std]  # its processor divides twice
    scale = 255 * factor
    return tuple((m + offset) / scale for m in mean), tuple(s / scale for s in std)


def _sides(size: Any) -> tuple[int, int] | None:
    if isinstance(size, int):
        return size, size
    if isinstance(size, dict) and {"height", "width"} <= set(size):
        return int(size["height"]), int(size["width"])
    return None
