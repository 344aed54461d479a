"""Load a PyTorch model or an ONNX file as a plain graph with preprocessing and labels."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx
import onnx_ir as ir

from ..runtime.errors import ExportError, MissingExtraError, RequestError
from ..runtime.input_format import Preprocess
from ..runtime.manifest import METADATA_KEY
from ..runtime.manifest_parts import DetectorFormat, ExportTask
from .branches import cut_image_encoder, find_branches, read_parameters
from .detectors.recognise import choose_format, default_preprocess
from .labels import read_labels
from .metadata import ModelMetadata, read_metadata
from .onnx_reading import convert_model, load_onnx_file
from .plain_model import PlainModel, to_plain
from .preprocessing import (
    Overrides,
    choose_preprocess,
    count_stated_channels,
    find_input_size,
    format_example_command,
    keep_whole_image,
)
from .requirements import require_torch
from .zero_shot import LogitParameters

if TYPE_CHECKING:
    import torch

    from .detectors.format import Format
    from .source import Source

DEFAULT_OPSET = 18


@dataclass(frozen=True)
class LoadedModel:
    """A network ready for export.

    Attributes:
        name: as the user gave it, without folders.
        weights: ``default``, ``none`` or a file name.
        plain: its graph.
        preprocess: how an image becomes its input.
        labels: class names, or empty.
        notes: what was assumed or read from elsewhere, for the user to check.
        module: the PyTorch model, in eval mode, which returns the graph's outputs, see
            ``return_tensors``; None for an ONNX file.
        file: the ONNX file, or of a file with two encoders the part with the image's, serialised;
            None for a PyTorch model.
        logit_parameters: of an image encoder's cosine similarities, where the PyTorch model says.
        form: the format of a detector's outputs; None of other networks.
        is_form_stated: whether the user names that format.
    """

    name: str
    weights: str
    plain: PlainModel
    preprocess: Preprocess
    labels: tuple[str, ...]
    notes: tuple[str, ...]
    module: torch.nn.Module | None = None
    file: Path | bytes | None = None
    logit_parameters: LogitParameters | None = None
    form: Format | None = None
    is_form_stated: bool = False


@dataclass(frozen=True)
class DetectorChoice:
    """What the user states of a detector.

    Attributes:
        is_stated: whether the user says that the model is one.
        format: of its outputs; None: as the graph and file prove.
    """

    is_stated: bool = False
    format: DetectorFormat | None = None


def choose_detector(
    task: ExportTask | None, format: DetectorFormat | None, may_be_found: bool
) -> DetectorChoice | None:
    """Decide what the user states of a detector; None: the model is to be a classifier.

    Args:
        task, format: see ``to_onnx``.
        may_be_found: whether no other option says that it is a classifier.
    """
    is_stated = task == "detect" or format is not None
    return (
        DetectorChoice(is_stated, format) if is_stated or (task is None and may_be_found) else None
    )


def is_onnx_file(model: Any) -> bool:
    """Tell whether the user named an ONNX file."""
    return isinstance(model, str | os.PathLike) and os.fspath(model).lower().endswith(".onnx")


def load_model(
    model: str | os.PathLike[str] | torch.nn.Module | Source,
    weights: str,
    weights_key: str | None,
    labels: str | Sequence[str] | None,
    num_classes: int | None,
    overrides: Overrides | None,
    opset: int,
    needs_preprocess: bool = True,
    dynamic_size: tuple[int, int] | None = None,
    is_encoder: bool = False,
    detector: DetectorChoice | None = None,
) -> LoadedModel:
    """Load a model from any source that ``to_onnx`` takes.

    Args:
        model, weights, weights_key, labels, num_classes, overrides, opset: see ``to_onnx``.
        needs_preprocess: whether it matters how images are prepared.
        dynamic_size: see ``to_onnx``.
        is_encoder: whether image embeddings are needed, so that of a model with a text encoder the
            image encoder is taken.
        detector: what the user states of a detector; None: the model is none.

    Raises:
        ExportError, ModelFileError: it cannot be loaded.
        PreprocessError: neither the user nor the model states the preprocessing.
    """
    options = overrides or Overrides()
    if is_onnx_file(model):
        if weights not in ("default", "none") or num_classes is not None or weights_key is not None:
            raise RequestError(
                "an ONNX file holds its weights: --weights, --weights-key and --num-classes are "
                "for PyTorch models"
            )
        file = Path(os.fspath(model))  # type: ignore[arg-type]
        return _load_onnx(
            file, labels, options, needs_preprocess, dynamic_size, is_encoder, detector
        )
    require_torch("exporting a PyTorch model")
    _check_exporter()
    import torch

    from .from_torch import to_ir
    from .model_outputs import return_tensors
    from .open_clip_model import PREFIX
    from .resolve import resolve
    from .source import Source

    if not is_encoder and isinstance(model, str) and model.startswith(PREFIX):
        raise RequestError(
            f"{model} is an image encoder and has no classes of its own: add --classes input or "
            "--classes FILE"
        )
    if isinstance(model, Source):
        source = model
    else:
        named = os.fspath(model) if isinstance(model, os.PathLike) else model
        source = resolve(
            named,
            weights,
            labels,
            num_classes,
            options,
            weights_key=weights_key,
            needs_preprocess=needs_preprocess,
            is_encoder=is_encoder,
        )
    parameters = None
    spec = source.preprocess
    if is_encoder:
        import torch

        from .image_encoder import find_image_encoder, read_logit_parameters

        parameters = read_logit_parameters(source.model)
        example = torch.zeros(2, spec.channels, *spec.size)
        source = replace(source, model=find_image_encoder(source.model, example))
    module, names = return_tensors(source.model, torch.zeros(2, spec.channels, *spec.size))
    translated = to_ir(module, spec.size, opset, spec.channels, dynamic_size, names)
    plain = to_plain(translated, spec.size, "NCHW", dynamic_size=dynamic_size)
    form = None if detector is None else _recognise(plain, {}, detector)
    return LoadedModel(
        source.name,
        source.weights,
        plain,
        spec if form is None else keep_whole_image(spec, options),
        source.labels,
        source.notes,
        module,
        logit_parameters=parameters,
        form=form,
        is_form_stated=detector is not None and detector.format is not None,
    )


def _recognise(
    plain: PlainModel, metadata: Mapping[str, str], detector: DetectorChoice
) -> Format | None:
    return choose_format(plain, metadata, detector.format, detector.is_stated)


def _check_exporter() -> None:
    try:
        import onnxscript
    except ImportError as error:
        raise MissingExtraError("onnxscript", "export", "export") from error
    del onnxscript


def _load_onnx(
    path: Path,
    labels: str | Sequence[str] | None,
    overrides: Overrides,
    needs_preprocess: bool,
    dynamic_size: tuple[int, int] | None,
    is_encoder: bool,
    detector: DetectorChoice | None,
) -> LoadedModel:
    proto = load_onnx_file(path)
    metadata = {entry.key: entry.value for entry in proto.metadata_props}
    if METADATA_KEY in metadata:
        raise ExportError(
            f"{path} was made by whycam export already. Start from the file that it was made from"
        )
    part = _cut_file(proto, path, is_encoder)
    if part is not None:
        proto = part.proto
    loaded = convert_model(proto, path)
    known = _read_metadata(metadata, path, overrides)
    size = overrides.size
    if size is None and _has_free_size(loaded):
        size = find_input_size(overrides, known)
    channels = count_stated_channels(overrides)
    plain = to_plain(loaded, size, overrides.layout, metadata, dynamic_size, channels)
    target = str(path.with_suffix(".explained.onnx"))
    form = None if detector is None else _recognise(plain, metadata, detector)
    usual = None if form is None else default_preprocess(form, plain)
    if form is not None and usual is not None and (known is None or known.preprocess is None):
        source = f"the format {form.name}, as it usually is"
        known = ModelMetadata(source, usual, () if known is None else known.labels)
    takes_pixels = plain.image.dtype == ir.DataType.UINT8
    example = format_example_command(str(path), target, overrides, plain.channels, takes_pixels)
    spec = choose_preprocess(
        overrides, known, plain.size, plain.channels, path.name, example, needs_preprocess
    )
    if form is not None:
        spec = keep_whole_image(spec, overrides)
    names = read_labels(labels) if labels is not None else () if known is None else known.labels
    notes = _notes(known, overrides, labels)
    return LoadedModel(
        path.name,
        path.name,
        plain,
        spec,
        names,
        notes if part is None else (*notes, part.note),
        file=path if part is None else proto.SerializeToString(),
        logit_parameters=None if part is None else part.parameters,
        form=form,
        is_form_stated=detector is not None and detector.format is not None,
    )


@dataclass(frozen=True)
class _Part:
    """The image encoder of a file with two encoders.

    Attributes:
        proto: the file with nothing else.
        parameters: of the class scores, where the file computes them.
        note: what was left out, for the user.
    """

    proto: onnx.ModelProto
    parameters: LogitParameters | None
    note: str


def _cut_file(proto: onnx.ModelProto, path: Path, is_encoder: bool) -> _Part | None:
    """Cut the image encoder out of a file with two encoders; None of a file with one input.

    Raises:
        RequestError: there are two encoders, and no classes were asked for.
        ExportError: images and texts meet in another way than by products of embeddings.
    """
    if len(proto.graph.input) < 2:
        return None
    try:
        model = ir.from_proto(proto)
    except Exception:  # damaged, which is said where the whole file is converted
        return None
    if not is_encoder:
        with contextlib.suppress(ExportError):  # what is no classifier is said as of any file
            branches = find_branches(model.graph)
            if branches is not None and branches.image_embedding is not None:
                raise RequestError(
                    f"{path.name} has an image and a text encoder and no classes of its own: add "
                    "--classes input, and make prompts with: whycam prompts WORDS --model "
                    f"{path.name} -o FILE.npz"
                )
        return None
    branches = find_branches(model.graph)
    if branches is None:
        return None
    parameters = read_parameters(model, branches)
    note = cut_image_encoder(model, branches)
    return _Part(ir.to_proto(model), parameters, note)


def _has_free_size(model: ir.Model) -> bool:
    """Tell whether an image input leaves its height and width free."""
    shapes = [list(value.shape or ()) for value in model.graph.inputs]
    return any(
        len(sides) == 4 and not all(isinstance(side, int) and side > 0 for side in sides[1:])
        for sides in shapes
    )


def _read_metadata(
    metadata: Mapping[str, str], path: Path, overrides: Overrides
) -> ModelMetadata | None:
    """Read a file's metadata; errors in it do not matter where the user states preprocessing."""
    try:
        return read_metadata(metadata, path)
    except (ExportError, MissingExtraError):
        if overrides.preprocess is None:
            raise
        return None


def _notes(
    known: ModelMetadata | None, overrides: Overrides, labels: str | Sequence[str] | None
) -> tuple[str, ...]:
    if known is None:
        return ()
    used = []
    if known.preprocess is not None and overrides.preprocess is None:
        used.append("preprocessing")
    if known.labels and labels is None:
        used.append("labels")
    return (f"{' and '.join(used)} read from {known.source}",) if used else ()
