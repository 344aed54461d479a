"""How images are prepared for a network: said by its owner or by the model, never guessed."""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, get_args

import msgspec

from ..runtime.errors import ExportError, PreprocessError
from ..runtime.input_format import Color, Interpolation, Preprocess

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_BYTE = 1 / 255
_CROPPED = 256 / 224  # shorter side before the crop, as a part of the network's input
# Pillow's numbers, as Hugging Face's image processors store them.
_RESAMPLE: dict[int, Interpolation] = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}


@dataclass(frozen=True)
class Preset:
    """A way in which many networks were trained.

    Attributes:
        mean, std: per channel in the network's order, for values in [0, 1].
        color: the network's channel order.
        is_cropped: whether the shorter side is resized to 256 / 224 of the input and the centre
            cropped; else images are resized straight to the input's size.
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    color: Color
    is_cropped: bool


PRESETS: dict[str, Preset] = {
    "imagenet": Preset(IMAGENET_MEAN, IMAGENET_STD, "RGB", True),  # torchvision, most of PyTorch
    "tf": Preset((0.5,) * 3, (0.5,) * 3, "RGB", False),  # Keras: -1 .. 1
    # Caffe and Keras: 0 .. 255 less ImageNet's mean.
    "caffe": Preset((103.939 / 255, 116.779 / 255, 123.68 / 255), (_BYTE,) * 3, "BGR", True),
    "zero-one": Preset((0.0,) * 3, (1.0,) * 3, "RGB", False),
    "raw": Preset((0.0,) * 3, (_BYTE,) * 3, "RGB", False),
}


@dataclass(frozen=True)
class Overrides:
    """What the user says of preprocessing; it wins over whatever the model says.

    Attributes:
        preprocess: a name in ``PRESETS``, or a JSON file: the fields of ``Preprocess``, or Hugging
            Face's ``preprocessor_config.json``.
        image_size: side, or (H, W), of the network input; the resize keeps its proportion to it.
        resize: the shorter side before the crop; 0: resize straight to the input's size.
        interpolation: of the resize.
        mean, std: per channel in the network's order, for values in [0, 1]; one number each for
            grey.
        color: the network's channel order, or ``L`` for grey.
        layout: of an ONNX file's input.
    """

    preprocess: str | None = None
    image_size: int | tuple[int, int] | None = None
    resize: int | None = None
    interpolation: Interpolation | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    color: Color | None = None
    layout: str | None = None

    @property
    def size(self) -> tuple[int, int] | None:
        """(H, W) of the network input."""
        size = self.image_size
        return (size, size) if isinstance(size, int) else size


@dataclass(frozen=True)
class Known:
    """What a model says of itself.

    Attributes:
        where: it was read from, for people.
        preprocess: None where only labels are known.
        labels: class names, or empty.
    """

    where: str
    preprocess: Preprocess | None
    labels: tuple[str, ...] = ()

    @property
    def size(self) -> tuple[int, int] | None:
        """(H, W) of the network input."""
        return None if self.preprocess is None else self.preprocess.size


def choose(
    overrides: Overrides,
    known: Known | None,
    size: tuple[int, int],
    channels: int,
    name: str,
    command: str,
) -> Preprocess:
    """Decide how images are prepared.

    Args:
        overrides: what the user says.
        known: what the model says; None: nothing.
        size: (H, W) of the network input.
        channels: of the network input, 1 or 3.
        name: of the model, for the message.
        command: the user's command without preprocessing, for the message.

    Raises:
        PreprocessError: nobody says it.
        ExportError: what is said makes no sense.
    """
    if channels not in (1, 3):
        raise ExportError(f"{name} takes images of {channels} channels; whycam explains 1 or 3")
    try:
        base = _base(overrides, size, channels)
        if base is None and known is not None and known.preprocess is not None:
            base = _resized(known.preprocess, size)
        if base is None and overrides.mean is not None and overrides.std is not None:
            base = _preset("zero-one", size, channels)
    except (ValueError, OverflowError, msgspec.ValidationError) as error:
        raise ExportError(f"unusable preprocessing: {error}") from error
    if base is None:
        raise PreprocessError(
            f"{name} does not say how images are prepared for it, and a wrong guess would make "
            f"every answer wrong. Say how it was trained with --preprocess ({', '.join(PRESETS)}, "
            "or a JSON file; whycam export --help tells what each means), or with --mean and "
            f"--std. For example: {command} --preprocess imagenet"
        )
    return _changed(base, overrides, channels)


def _base(overrides: Overrides, size: tuple[int, int], channels: int) -> Preprocess | None:
    wish = overrides.preprocess
    if wish is None:
        return None
    if wish in PRESETS:
        if channels == 1 and wish in ("imagenet", "caffe") and overrides.mean is None:
            raise ExportError(
                f"--preprocess {wish} has numbers for three channels, and the network takes one: "
                "give --mean and --std as well"
            )
        return _preset(wish, size, channels)
    if wish.endswith(".json"):
        return _from_file(Path(wish), size)
    raise ExportError(
        f"there is no preprocessing '{wish}'; choose from: {', '.join(PRESETS)}, or a JSON file"
    )


def _preset(name: str, size: tuple[int, int], channels: int) -> Preprocess:
    preset = PRESETS[name]
    resize = (round(max(size) * _CROPPED),) if preset.is_cropped else size
    return Preprocess(
        size=size,
        resize=resize,
        interpolation="bilinear",
        color="L" if channels == 1 else preset.color,
        mean=preset.mean[:channels],
        std=preset.std[:channels],
    )


def _resized(spec: Preprocess, size: tuple[int, int]) -> Preprocess:
    """The same for another input size: the resize keeps its proportion to it."""
    if spec.size == size:
        return spec
    if len(spec.resize) == 1:
        # The shorter side: it must cover the longer side of an oblong input.
        resize: tuple[int, ...] = (round(spec.resize[0] * max(size) / max(spec.size)),)
    else:
        resize = tuple(
            round(before * new / side)
            for before, side, new in zip(spec.resize, spec.size, size, strict=False)
        )
    return _checked(spec, {"size": size, "resize": resize})


def _changed(spec: Preprocess, overrides: Overrides, channels: int) -> Preprocess:
    changes: dict[str, Any] = {
        name: getattr(overrides, name)
        for name in ("interpolation", "mean", "std", "color")
        if getattr(overrides, name) is not None
    }
    if overrides.resize is not None:
        changes["resize"] = (overrides.resize,) if overrides.resize else spec.size
    color = changes.get("color", spec.color)
    if (color == "L") != (channels == 1):
        raise ExportError(f"color {color} does not go with an input of {channels} channels")
    return _checked(spec, changes)


def _checked(spec: Preprocess, changes: Mapping[str, Any]) -> Preprocess:
    try:
        changed = msgspec.structs.replace(spec, **changes)
        return msgspec.convert(msgspec.to_builtins(changed), Preprocess)
    except (ValueError, OverflowError, msgspec.ValidationError) as error:
        raise ExportError(f"unusable preprocessing: {error}") from error


def override(spec: Preprocess, overrides: Overrides) -> Preprocess:
    """A model's own preprocessing with what the user says otherwise.

    Raises:
        ExportError: what is said makes no sense.
    """
    size = overrides.size or spec.size
    try:
        base = _base(overrides, size, spec.channels) or _resized(spec, size)
    except (ValueError, OverflowError, msgspec.ValidationError) as error:
        raise ExportError(f"unusable preprocessing: {error}") from error
    return _changed(base, overrides, base.channels)


def _from_file(path: Path, size: tuple[int, int]) -> Preprocess:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ExportError(f"cannot read preprocessing from {path}: {error}") from error
    if not isinstance(data, dict):
        raise ExportError(f"{path} does not hold an object with preprocessing")
    data = data.get("preprocess", data)
    if "image_mean" in data or "do_normalize" in data:
        return _huggingface(data, size, str(path))
    try:
        return msgspec.convert({"size": size, "resize": size} | data, Preprocess)
    except (msgspec.ValidationError, ValueError) as error:
        raise ExportError(f"{path} does not hold usable preprocessing: {error}") from error


def _huggingface(data: Mapping[str, Any], size: tuple[int, int], where: str) -> Preprocess:
    """From an image processor's configuration (preprocessor_config.json)."""
    try:
        scaled = bool(data.get("do_rescale", True))
        factor = float(data.get("rescale_factor", _BYTE)) * 255 if scaled else 255.0
        normalised = bool(data.get("do_normalize", True))
        mean = tuple(float(v) for v in data["image_mean"]) if normalised else (0.0,) * 3
        std = tuple(float(v) for v in data["image_std"]) if normalised else (1.0,) * 3
        crop = data.get("crop_size") if data.get("do_center_crop") else None
        sides = _sides(crop) or _sides(data.get("size")) or size
        shortest = data.get("size", {})
        short = shortest.get("shortest_edge") if isinstance(shortest, dict) else None
        if short is not None and crop is None and data.get("crop_pct") is not None:
            crop, short = short, round(short / float(data["crop_pct"]))
        resize: tuple[int, ...] = (int(short),) if short is not None else sides
        if not data.get("do_resize", True):
            resize = ()
        spec = Preprocess(
            size=sides if short is None else (_sides(crop) or (int(short), int(short))),
            resize=resize,
            interpolation=_RESAMPLE.get(int(data.get("resample", 2)), "bilinear"),
            mean=tuple(m / factor for m in mean),
            std=tuple(s / factor for s in std),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ExportError(f"{where} does not hold usable preprocessing: {error!r}") from error
    return _resized(spec, size)


def _sides(size: Any) -> tuple[int, int] | None:
    if isinstance(size, int):
        return size, size
    if isinstance(size, dict) and {"height", "width"} <= set(size):
        return int(size["height"]), int(size["width"])
    return None


def read_metadata(metadata: Mapping[str, str], path: Path) -> Known | None:
    """What an ONNX file's metadata, or the files beside it, say of its images and labels.

    Known are Ultralytics' metadata, timm's ``config.json`` and Hugging Face's
    ``preprocessor_config.json`` and ``config.json`` beside the file.

    Args:
        metadata: of the file.
        path: the ONNX file.

    Returns:
        None where nothing is known.

    Raises:
        ExportError: such a file is there and damaged.
    """
    if "names" in metadata and metadata.get("task", "classify") == "classify":
        return _ultralytics(metadata)
    config = _json_beside(path, "config.json")
    processor = _json_beside(path, "preprocessor_config.json")
    labels = _id2label(config)
    if processor is not None:
        where = path.with_name("preprocessor_config.json")
        return Known(str(where), _huggingface(processor, (224, 224), str(where)), labels)
    if config is not None and isinstance(config.get("pretrained_cfg"), dict):
        where = path.with_name("config.json")
        return Known(str(where), from_timm(config["pretrained_cfg"], str(where)), labels)
    return Known(str(path.with_name("config.json")), None, labels) if labels else None


def _json_beside(path: Path, name: str) -> dict[str, Any] | None:
    beside = path.with_name(name)
    try:
        if not beside.is_file():
            return None
        data = json.loads(beside.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ExportError(f"cannot read {beside}: {error}") from error
    return data if isinstance(data, dict) else None


def _id2label(config: Mapping[str, Any] | None) -> tuple[str, ...]:
    if config is None:
        return ()
    names = config.get("id2label")
    if isinstance(names, dict) and names and all(str(key).isdecimal() for key in names):
        ordered = sorted(names.items(), key=lambda item: int(item[0]))
        if [int(key) for key, _ in ordered] == list(range(len(ordered))):
            return tuple(str(name) for _, name in ordered)
    labels = config.get("label_names")
    return tuple(map(str, labels)) if isinstance(labels, list) else ()


def _ultralytics(metadata: Mapping[str, str]) -> Known:
    """A classifier of Ultralytics: shorter side to the input, centre crop, RGB in 0 .. 1."""
    try:
        names = ast.literal_eval(metadata["names"])
        size = ast.literal_eval(metadata.get("imgsz", "224"))
        sides = (size, size) if isinstance(size, int) else (int(size[0]), int(size[-1]))
        labels = tuple(str(names[i]) for i in range(len(names)))
    except (ValueError, SyntaxError, KeyError, TypeError, IndexError) as error:
        raise ExportError(
            f"the file's metadata (names, imgsz) cannot be read: {error!r}"
        ) from error
    spec = Preprocess(
        size=sides, resize=(max(sides),), interpolation="bilinear", mean=(0.0,) * 3, std=(1.0,) * 3
    )
    return Known("the file's Ultralytics metadata", spec, labels)


def from_timm(config: Mapping[str, Any], name: str) -> Preprocess:
    """From the configuration of a model of timm (``pretrained_cfg``).

    Raises:
        ExportError: a crop that cannot be reproduced, or other channels than RGB.
    """
    channels, height, width = config["input_size"]
    if channels != 3:
        raise ExportError(f"{name} takes {channels} channels; whycam explains RGB images")
    scaled = tuple(int(side / config.get("crop_pct", 0.875)) for side in (height, width))
    mode = config.get("crop_mode") or "center"
    if mode == "border" or (mode == "center" and height != width):
        raise ExportError(
            f"{name} is configured for crop mode '{mode}' at {height} x {width}, which whycam "
            "cannot reproduce; give a square --image-size and --resize, or crop your images"
        )
    return Preprocess(
        size=(height, width),
        resize=scaled if mode == "squash" else scaled[:1],
        interpolation=interpolation(config.get("interpolation", "bilinear")),
        mean=tuple(float(value) for value in config["mean"]),
        std=tuple(float(value) for value in config["std"]),
    )


def interpolation(name: str) -> Interpolation:
    """An interpolation by name.

    Raises:
        ExportError: there is none of that name.
    """
    if name not in get_args(Interpolation):
        raise ExportError(
            f"the model is configured for interpolation '{name}'; pass --interpolation bilinear "
            "or bicubic"
        )
    return cast(Interpolation, name)
