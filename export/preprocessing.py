"""Decide how images are prepared for a network: as the user or the model states, never guessed."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from ..runtime.errors import ExportError, PreprocessError
from ..runtime.input_format import Color, Interpolation, Preprocess, color_of
from .metadata import ModelMetadata, from_huggingface, image_processor_of

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_BYTE = 1 / 255
# Entries that only Hugging Face's image processors have.
_HUGGINGFACE = {"image_mean", "do_normalize", "do_resize", "do_center_crop", "image_processor_type"}
_CROPPED = 256 / 224  # shorter side before the crop, as a part of the network's input


@dataclass(frozen=True)
class Preset:
    """Preprocessing that many networks share.

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
    """Preprocessing as the user states it, which overrides the model's.

    Attributes:
        preprocess: a name in ``PRESETS``, or a JSON file: the fields of ``Preprocess``, or Hugging
            Face's ``preprocessor_config.json``.
        image_size: side, or (H, W), of the network input; the resize keeps its proportion to it.
        resize: the shorter side before the crop; 0: resize straight to the input's size.
        interpolation: of the resize.
        mean, std: per channel in the network's order, for values in [0, 1]; one number each for
            grey.
        color: the network's channel order, ``L`` for grey, or ``bands`` for channels that are no
            colours.
        channels: of the network's input; None: as its first convolution or its file says.
        value_range: (low, high), the pixel values that training mapped to 0 and 1, for images of
            more than 8 bits.
        layout: of an ONNX file's input.
    """

    preprocess: str | None = None
    image_size: int | tuple[int, int] | None = None
    resize: int | None = None
    interpolation: Interpolation | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    color: Color | None = None
    channels: int | None = None
    value_range: tuple[float, float] | None = None
    layout: str | None = None

    @property
    def size(self) -> tuple[int, int] | None:
        """(H, W) of the network input."""
        size = self.image_size
        return (size, size) if isinstance(size, int) else size


def find_input_size(overrides: Overrides, known: ModelMetadata | None) -> tuple[int, int] | None:
    """Find (H, W) of the network input as the user, the user's file or the model states it.

    Raises:
        ExportError: the user's file with preprocessing cannot be read.
    """
    if overrides.size is not None:
        return overrides.size
    name = overrides.preprocess
    if name is not None and name.endswith(".json"):
        stated = _from_file(Path(name), None)
        return None if stated is None else stated.size
    return None if known is None or known.preprocess is None else known.preprocess.size


def choose_preprocess(
    overrides: Overrides,
    known: ModelMetadata | None,
    size: tuple[int, int],
    channels: int,
    name: str,
    example: str,
    is_needed: bool = True,
) -> Preprocess:
    """Decide how images are prepared: as the user states, else as the model does.

    Args:
        overrides: what the user states.
        known: what the model states; None for nothing.
        size: (H, W) of the network input.
        channels: of the network input.
        name: of the model, for the message.
        example: a command that states the preprocessing, for the message.
        is_needed: whether its numbers matter; else they are 0 and 1, of the right shape.

    Raises:
        PreprocessError: neither the user nor the model states it.
        ExportError: what is stated is invalid.
    """
    if not is_needed:
        ones = (1.0,) * channels
        return Preprocess(size, size, color=color_of(channels), mean=ones, std=ones)
    with _as_export_error():
        base = _base(overrides, size, channels)
        stated = None if known is None else known.preprocess
        if base is None and stated is not None and stated.channels == channels:
            base = _resized(stated, size)
        if base is None and overrides.mean is not None and overrides.std is not None:
            base = _preset("zero-one", size, overrides, channels)
    if base is None:
        why = "does not state how its images are prepared"
        if stated is not None:
            why = f"takes {channels} channels, and states preprocessing for {stated.channels}"
        raise PreprocessError(
            f"{name} {why}. State it with --preprocess "
            f"({', '.join(PRESETS)}, or a JSON file; see whycam export --help). For example: "
            f"{example}"
        )
    return _changed(base, overrides, channels)


def keep_whole_image(spec: Preprocess, overrides: Overrides) -> Preprocess:
    """Leave out a preset's centre crop, which is for classifiers: objects lie at the edges too.

    What the model, a file or ``Overrides.resize`` states stays.
    """
    if overrides.preprocess not in PRESETS or overrides.resize is not None:
        return spec
    return msgspec.structs.replace(spec, resize=spec.size)


def format_example_command(
    model: str,
    target: str,
    overrides: Overrides,
    channels: int | None = None,
    takes_pixels: bool = False,
) -> str:
    """Format a command that states the preprocessing, with the user's other options.

    Args:
        model: as the user gave it.
        target: the file to write.
        overrides: what the user states.
        channels: of the network input, where known.
        takes_pixels: whether the input is uint8, so that pixels stay as they are.
    """
    count = _count_channels(overrides, channels)
    words = ["whycam", "export", model, "-o", target]
    if overrides.size is not None:
        words += ["--image-size", "{}x{}".format(*overrides.size)]
    if overrides.layout is not None:
        words += ["--layout", overrides.layout]
    if overrides.color is not None:
        words += ["--color", overrides.color]
    if overrides.channels is not None:
        words += ["--channels", str(overrides.channels)]
    if overrides.value_range is not None:
        words += ["--value-range", "{:g}:{:g}".format(*overrides.value_range)]
    preset = "raw" if takes_pixels else "imagenet" if count == 3 else "zero-one"
    return shlex.join([*words, "--preprocess", preset])


def apply_overrides(spec: Preprocess, overrides: Overrides) -> Preprocess:
    """Change a model's preprocessing where the user states otherwise.

    Raises:
        ExportError: what is stated is invalid.
    """
    size = find_input_size(overrides, None) or spec.size
    with _as_export_error():
        base = _base(overrides, size, spec.channels) or _resized(spec, size)
    return _changed(base, overrides, spec.channels)


def count_stated_channels(overrides: Overrides) -> int | None:
    """Count the input's channels as the user states them; None where nothing says.

    Raises:
        ExportError: the user's file with preprocessing cannot be read.
    """
    if overrides.channels is not None:
        return overrides.channels
    if overrides.color not in (None, "bands"):
        return 1 if overrides.color == "L" else 3
    if overrides.mean is not None:
        return len(overrides.mean)
    name = overrides.preprocess
    if name is not None and name.endswith(".json"):
        stated = _from_file(Path(name), (1, 1))
        return None if stated is None else stated.channels
    return None


def _count_channels(overrides: Overrides, channels: int | None) -> int:
    return channels or count_stated_channels(overrides) or 3


def _base(overrides: Overrides, size: tuple[int, int], channels: int) -> Preprocess | None:
    name = overrides.preprocess
    if name is None:
        return None
    if name in PRESETS:
        if overrides.color is not None:
            _check_color(overrides.color, channels)
        has_numbers = overrides.mean is not None and overrides.std is not None
        if channels != 3 and name in ("imagenet", "caffe") and not has_numbers:
            raise ExportError(
                f"--preprocess {name} has numbers for three channels, and the network takes "
                f"{channels}: pass --mean and --std as well"
            )
        return _preset(name, size, overrides, channels)
    if name.endswith(".json"):
        stated = _from_file(Path(name), size)
        return None if stated is None else _resized(stated, size)
    raise ExportError(
        f"there is no preprocessing '{name}'; choose from: {', '.join(PRESETS)}, or a JSON file"
    )


def _preset(name: str, size: tuple[int, int], overrides: Overrides, channels: int) -> Preprocess:
    preset = PRESETS[name]
    mean: tuple[float, ...] = preset.mean
    std: tuple[float, ...] = preset.std
    if channels != 3:  # numbers that are alike for all channels, or that ``overrides`` replaces
        mean, std = mean[:1] * channels, std[:1] * channels
    resize = (round(max(size) * _CROPPED),) if preset.is_cropped else size
    return Preprocess(
        size=size,
        resize=resize,
        color=overrides.color or (preset.color if channels == 3 else color_of(channels)),
        mean=overrides.mean or mean,
        std=overrides.std or std,
    )


def _resized(spec: Preprocess, size: tuple[int, int]) -> Preprocess:
    """Scale preprocessing to another input size; the resize keeps its proportion to it."""
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
        for name in ("interpolation", "mean", "std", "color", "value_range")
        if getattr(overrides, name) is not None
    }
    if overrides.resize is not None:
        changes["resize"] = (overrides.resize,) if overrides.resize else spec.size
    _check_color(changes.get("color", spec.color), channels)
    changed = _checked(spec, changes)
    if changed.channels != channels:
        raise ExportError(
            f"mean {changed.mean} and std {changed.std} are for {changed.channels} channels, and "
            f"the network takes {channels}"
        )
    return changed


def _check_color(color: Color, channels: int) -> None:
    fitting = {1: "L", 3: "RGB or BGR"}.get(channels, "bands")
    if color == "bands" or color in fitting:
        return
    one = ", with one number each for --mean and --std" if channels == 1 else ""
    raise ExportError(
        f"color {color} does not go with an input of {channels} channels: pass --color "
        f"{fitting}{one}"
    )


def _checked(spec: Preprocess, changes: Mapping[str, Any]) -> Preprocess:
    with _as_export_error():
        changed = msgspec.structs.replace(spec, **changes)
        return msgspec.convert(msgspec.to_builtins(changed), Preprocess)


@contextmanager
def _as_export_error() -> Iterator[None]:
    try:
        yield
    except (ValueError, OverflowError, msgspec.ValidationError) as error:
        raise ExportError(f"unusable preprocessing: {error}") from error


def _from_file(path: Path, size: tuple[int, int] | None) -> Preprocess | None:
    """Read preprocessing from a JSON file; None where neither it nor ``size`` gives a size."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ExportError(f"cannot read preprocessing from {path}: {error}") from error
    if not isinstance(data, dict):
        raise ExportError(f"{path} does not hold an object with preprocessing")
    data = image_processor_of(data.get("preprocess", data))
    if not _HUGGINGFACE.isdisjoint(data):
        return from_huggingface(data, str(path))
    stated = data.get("size", size)
    if stated is None:
        return None
    try:
        resize = [] if data.get("letterbox") is not None else stated
        return msgspec.convert({"size": stated, "resize": resize, **data}, Preprocess)
    except (msgspec.ValidationError, ValueError) as error:
        raise ExportError(f"{path} does not hold usable preprocessing: {error}") from error
