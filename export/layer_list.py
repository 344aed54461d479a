"""List the layers at which a model can be explained."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from ..runtime.errors import ExportError
from ..runtime.manifest_parts import Activation, DetectorFormat, ExportTask, Task
from .data_flow import Layer
from .detectors.export import list_detector_layers
from .heads import OutputMeaning, join_heads
from .layers import Network
from .loading import DEFAULT_OPSET, choose_detector, load_model
from .output_meaning import has_image_scores, interpret_outputs
from .place_scores import find_place_scores, note_place_scores, refuse_place_scores
from .plain_model import PlainModel
from .preprocessing import Overrides

if TYPE_CHECKING:
    import torch

    from .source import Source


def list_layers(
    model: str | os.PathLike[str] | torch.nn.Module | Source,
    *,
    weights: str = "none",
    num_classes: int | None = None,
    overrides: Overrides | None = None,
    task: ExportTask | None = None,
    head: str | Sequence[str] | None = None,
    is_encoder: bool = False,
    format: DetectorFormat | None = None,
    activation: Activation | None = None,
    labels: str | Sequence[str] | None = None,
) -> tuple[list[Layer], tuple[Layer, ...]]:
    """List the layers at which a model can be explained, and those ``to_onnx`` would choose.

    Args:
        model, weights, num_classes, overrides, task, head: as for ``to_onnx``; weights and
            preprocessing make no difference here.
        is_encoder: whether it is an image encoder, as ``to_onnx`` takes with ``classes``.
        format, activation, labels: of a detector, as for ``to_onnx``.

    Returns:
        The layers from image to logits, and the target layer by default, or none; of a detector
        one for each level.

    Raises:
        ExportError: the model cannot be loaded or translated.
    """
    loaded = load_model(
        model,
        weights,
        None,
        labels,
        num_classes,
        overrides,
        DEFAULT_OPSET,
        needs_preprocess=False,
        is_encoder=is_encoder,
        detector=choose_detector(task, format, may_be_found=head is None and not is_encoder),
    )
    if loaded.form is not None:
        return list_detector_layers(loaded, loaded.form, activation)
    assert task != "detect"
    meaning = interpret(loaded.plain, task, head, bool(loaded.labels))
    network = Network(loaded.plain, meaning.logits, is_encoder, meaning.place_scores)
    try:
        chosen: tuple[Layer, ...] = (network.find(),)
    except ExportError:
        chosen = ()
    return network.layers, chosen


def interpret(
    plain: PlainModel, task: Task | None, head: str | Sequence[str] | None, has_labels: bool
) -> OutputMeaning:
    """Decide what the outputs mean, and join the heads that the user chose.

    A network without an output of one number a class and image may have scores at every place.
    """
    names = [head] if isinstance(head, str) else head
    if not has_image_scores(plain.graph.outputs, plain.shapes, names):
        of_places = find_place_scores(plain, task, names, has_labels)
        if of_places is not None:
            return of_places
    elif names is not None and len(names) > 1:
        refuse_place_scores(plain, names)
    found = interpret_outputs(plain.graph.outputs, plain.shapes, task, names)
    beside = note_place_scores(plain) if names is None else None
    if beside is not None:
        note = beside if found[0].note is None else f"{found[0].note}; {beside}"
        found = (replace(found[0], note=note), *found[1:])
    return join_heads(plain.graph, plain.shapes, found)
