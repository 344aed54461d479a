"""Read preprocessing and labels of Paddle's classifiers from the YAML file beside the model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast, get_args

from ..runtime.errors import ExportError, MissingExtraError
from ..runtime.input_format import Interpolation, Preprocess

CONFIGURATIONS = ("inference.yml", "infer_cfg.yml")
# Steps without effect on the network's input.
_IGNORED = {"DecodeImage", "ToCHWImage", "KeepKeys"}


def from_paddle(path: Path) -> tuple[Preprocess, tuple[str, ...]]:
    """Read what PaddleClas and PaddleX write beside an exported classifier.

    Args:
        path: ``inference.yml`` or ``infer_cfg.yml``, with ``PreProcess.transform_ops`` and maybe
            ``PostProcess.Topk.label_list``.

    Returns:
        How images are prepared, and the class names or ().

    Raises:
        ExportError: it cannot be read, or a step cannot be reproduced.
        MissingExtraError: the package PyYAML is not installed.
    """
    try:
        import yaml  # type: ignore[import-untyped]
    except ImportError as error:
        raise MissingExtraError("pyyaml", "onnx", f"reading {path}") from error
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
        steps = [step for each in data["PreProcess"]["transform_ops"] for step in _steps(each)]
        topk = (data.get("PostProcess") or {}).get("Topk") or {}
        labels = tuple(str(name) for name in topk.get("label_list") or ())
        return _preprocess(steps), labels
    except (
        OSError,
        LookupError,
        TypeError,
        ValueError,
        ArithmeticError,
        AttributeError,
        yaml.YAMLError,
    ) as error:
        raise ExportError(f"{path} does not hold usable preprocessing: {error!r}") from error


def _steps(entry: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """Read a step's name and options, in either of Paddle's two notations."""
    if "type" in entry:
        return [(str(entry["type"]), entry)]
    return [(str(name), options or {}) for name, options in entry.items()]


def _preprocess(steps: list[tuple[str, Mapping[str, Any]]]) -> Preprocess:
    resize: tuple[int, ...] = ()
    size: tuple[int, int] | None = None
    mean: tuple[float, ...] = (0.0,) * 3
    std: tuple[float, ...] = (1 / 255,) * 3
    interpolation = "bilinear"
    for name, options in steps:
        if name == "ResizeImage":
            interpolation = str(options.get("interpolation") or "bilinear")
            if options.get("resize_short"):
                resize = (int(options["resize_short"]),)
            else:
                width, height = _pair(options["size"])
                resize = size = (height, width)
        elif name == "CropImage":
            width, height = _pair(options["size"])
            size = (height, width)
        elif name == "NormalizeImage":
            scale = 255 * _number(options.get("scale", 1 / 255))
            mean = tuple(float(value) / scale for value in options["mean"])
            std = tuple(float(value) / scale for value in options["std"])
        elif name not in _IGNORED:
            raise ValueError(f"the step {name} is not known to whycam")
    if interpolation not in get_args(Interpolation):
        raise ValueError(f"the interpolation {interpolation} is not known to whycam")
    if size is None:
        raise ValueError("no step says the size of the input")
    return Preprocess(
        size=size,
        resize=resize,
        interpolation=cast(Interpolation, interpolation),
        mean=mean,
        std=std,
    )


def _pair(size: Any) -> tuple[int, int]:
    """Read (width, height), as Paddle orders them."""
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))


def _number(value: Any) -> float:
    """Read a number, or a quotient such as ``1.0/255.0``."""
    parts = [float(part) for part in str(value).split("/")]
    return parts[0] / parts[1] if len(parts) == 2 else float(value)
