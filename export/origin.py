"""Where an export begins: a PyTorch model or an ONNX file, as a plain graph with its facts."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..runtime.errors import ExportError, MissingExtraError, RequestError
from ..runtime.manifest import METADATA_KEY, Preprocess
from .labels import read_labels
from .preprocessing import Overrides, choose, read_metadata
from .reading import PlainModel, read_onnx_file, to_plain

if TYPE_CHECKING:
    import torch

    from .source import Source


@dataclass(frozen=True)
class Origin:
    """A classifier ready to be explained.

    Attributes:
        name: as the user gave it, without folders.
        weights: ``default``, ``none`` or a file name.
        plain: its graph.
        preprocess: how an image becomes its input.
        labels: class names, or empty.
        notes: what had to be assumed or was found, for the user to check.
        module: the PyTorch model, in eval mode; None for an ONNX file.
    """

    name: str
    weights: str
    plain: PlainModel
    preprocess: Preprocess
    labels: tuple[str, ...]
    notes: tuple[str, ...]
    module: torch.nn.Module | None


def is_onnx_file(model: Any) -> bool:
    """Whether what the user named is an ONNX file."""
    return isinstance(model, str | os.PathLike) and os.fspath(model).lower().endswith(".onnx")


def load_origin(
    model: str | os.PathLike[str] | torch.nn.Module | Source,
    weights: str,
    weights_key: str | None,
    labels: str | Sequence[str] | None,
    num_classes: int | None,
    overrides: Overrides | None,
    opset: int,
    needs_preprocess: bool = True,
) -> Origin:
    """Load a model from anywhere.

    Args:
        model, weights, weights_key, labels, num_classes, overrides, opset: see ``to_onnx``.
        needs_preprocess: whether it matters how images are prepared.

    Raises:
        ExportError, ModelFileError: it cannot be loaded.
        PreprocessError: nothing says how images are prepared.
    """
    wishes = overrides or Overrides()
    if is_onnx_file(model):
        if weights not in ("default", "none") or num_classes is not None or weights_key is not None:
            raise RequestError(
                "an ONNX file holds its weights: --weights, --weights-key and --num-classes are "
                "for PyTorch models"
            )
        return _from_onnx(Path(os.fspath(model)), labels, wishes, needs_preprocess)  # type: ignore[arg-type]
    from . import require_torch

    require_torch("exporting a PyTorch model")
    _check_exporter()
    from .from_torch import to_ir
    from .source import Source, resolve

    if isinstance(model, Source):
        source = model
    else:
        named = os.fspath(model) if isinstance(model, os.PathLike) else model
        source = resolve(
            named,
            weights,
            labels,
            num_classes,
            wishes,
            weights_key=weights_key,
            needs_preprocess=needs_preprocess,
        )
    translated = to_ir(source.model, source.preprocess.size, opset, source.preprocess.channels)
    plain = to_plain(translated, source.preprocess.size, "NCHW")
    return Origin(
        source.name,
        source.weights,
        plain,
        source.preprocess,
        source.labels,
        source.notes,
        source.model,
    )


def _check_exporter() -> None:
    try:
        import onnxscript
    except ImportError as error:
        raise MissingExtraError("onnxscript", "export", "export") from error
    del onnxscript


def _from_onnx(
    path: Path, labels: str | Sequence[str] | None, overrides: Overrides, needs_preprocess: bool
) -> Origin:
    loaded = read_onnx_file(path)
    metadata = dict(loaded.metadata_props)
    if METADATA_KEY in metadata:
        raise ExportError(
            f"{path} explains itself already: it was made by whycam export. Start from the file "
            "that it was made of"
        )
    size = overrides.image_size
    sides = (size, size) if isinstance(size, int) else size
    known = read_metadata(metadata, path)
    if sides is None and known is not None and known.size is not None:
        sides = known.size
    plain = to_plain(loaded, sides, overrides.layout, metadata)
    if needs_preprocess:
        command = f"whycam export {path} -o {path.with_suffix('.explained.onnx')}"
        spec = choose(overrides, known, plain.size, plain.channels, path.name, command)
    else:
        channels = plain.channels
        spec = Preprocess(
            size=plain.size,
            resize=plain.size,
            color="L" if channels == 1 else "RGB",
            mean=(0.0,) * (1 if channels == 1 else 3),
            std=(1.0,) * (1 if channels == 1 else 3),
        )
    names = read_labels(labels) if labels is not None else () if known is None else known.labels
    notes = () if known is None else (f"preprocessing and labels read from {known.where}",)
    return Origin(path.name, path.name, plain, spec, tuple(names), notes, None)
