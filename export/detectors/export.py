"""Export a detector, once it is loaded: from its candidates to the checked file."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import onnx_ir as ir

from ...runtime.background import is_background
from ...runtime.cam import finest
from ...runtime.comparison import Comparison
from ...runtime.engines.detection_selftest import record_references
from ...runtime.errors import ExportError
from ...runtime.manifest import Manifest
from ...runtime.manifest_parts import Activation, Detector, FusedLayer
from ...runtime.tft import Tft
from ..assemble import Assembly
from ..data_flow import Layer
from ..describe import read_tools
from ..dims import Size
from ..finished_file import clean_up, name_tensors, write_model
from ..gradient.reverse import find_path
from ..graph_runner import GraphRunner
from ..layers import Network
from ..loading import LoadedModel
from ..network_checks import refuse_quantised
from ..original_model import OriginalModel
from ..plain_model import PlainModel
from ..verify_subject import prepare_image
from .assemble import Opened, assemble_detector, nodes_after, read_candidates
from .format import Format
from .levels import find_levels, list_pyramid
from .options import DetectorOptions
from .reference import DetectorReference
from .verify import DetectorSubject, verify_detector


@dataclass(frozen=True)
class DetectorRequest:
    """What a detector's file is to hold.

    Attributes:
        form: the format of its outputs.
        options: methods and score.
        layers: names of the layers to explain; empty: the last of each level.
        activation: of class logits, as the user states it.
        ranks: whether the graph chooses the best detections itself.
        is_labelled: whether the user states the labels.
        tft: settings that the file recommends.
        straight_through: whether gradients pass quantisation unchanged.
        check: further images to compare own outputs on.
    """

    form: Format
    options: DetectorOptions
    layers: Sequence[str]
    activation: Activation | None
    ranks: bool
    is_labelled: bool
    tft: Tft
    straight_through: bool
    check: Sequence[str | os.PathLike[str]]


@dataclass(frozen=True)
class DetectorExport:
    """A written file, see ``ExportResult``."""

    manifest: Manifest
    verification: Comparison
    assembly: Assembly
    notes: tuple[str, ...]


def open_detector(
    loaded: LoadedModel, form: Format, activation: Activation | None
) -> tuple[Opened, OriginalModel]:
    """Keep the original network, and record its candidates."""
    original = OriginalModel(loaded.plain, loaded.file)
    opened = read_candidates(loaded.plain, form, activation, loaded.labels, loaded.is_form_stated)
    return opened, original


def follow_score(opened: Opened, options: DetectorOptions) -> tuple[Network, ir.Value]:
    """Open the data flow to what is explained, with the other of scores and boxes."""
    candidates = opened.candidates
    network = Network(opened.plain, opened.end_of(options.score).value)
    other = candidates.boxes if options.score == "class" else candidates.explained
    return network, other.value


def list_detector_layers(
    loaded: LoadedModel, form: Format, activation: Activation | None
) -> tuple[list[Layer], tuple[Layer, ...]]:
    """List the layers at which a detector can be explained, and those of its levels."""
    opened, _ = open_detector(loaded, form, activation)
    network, other = follow_score(opened, DetectorOptions((), "class"))
    try:
        chosen, _ = find_levels(network, other, ())
    except ExportError:
        chosen = ()
    return list_pyramid(network, chosen), chosen


def export_detector(
    loaded: LoadedModel, request: DetectorRequest, path: Path, steps: Sequence[Callable[[], None]]
) -> DetectorExport:
    """Explain a detector's file.

    Args:
        loaded: the model.
        request: what the file is to hold.
        path: where it is written.
        steps: called before finding layers, adding, checking and writing.

    Raises:
        ExportError, TargetLayerError: the detector cannot be read or explained.
        VerificationError: the file does not compute what the network does.
    """
    steps[0]()
    opened, original = open_detector(loaded, request.form, request.activation)
    _refuse_shared_outputs(loaded.plain, original)
    network, other = follow_score(opened, request.options)
    layers, reason = find_levels(network, other, request.layers)
    if not request.straight_through:
        _refuse_quantised_heads(network, layers)
    manifest, notes = _describe(loaded, opened, network, layers, reason, request, original)
    candidates = opened.candidates
    ends = [value.value for value in (candidates.explained, candidates.scores, candidates.boxes)]
    reference = DetectorReference(network, layers, ends)
    steps[1]()
    assert manifest.detector is not None
    assembly = assemble_detector(
        opened, network, layers, request.options.methods, manifest.detector
    )
    manifest = name_tensors(manifest, assembly)
    clean_up(loaded.plain.model)
    steps[2]()
    runner = GraphRunner(loaded.plain.model, assembly, manifest)
    subject = DetectorSubject(runner, manifest, reference, original)
    check = [prepare_image(image, manifest) for image in request.check]
    verification = verify_detector(subject, check)
    steps[3]()
    assert manifest.detector is not None
    explained = msgspec.structs.replace(
        manifest.detector, references=record_references(runner.run, manifest)
    )
    target = msgspec.structs.replace(
        manifest, target_tensor=str(layers[-1].value.name), detector=explained
    )
    manifest = write_model(loaded.plain.model, assembly, target, path)
    return DetectorExport(manifest, verification, assembly, notes)


def _refuse_shared_outputs(plain: PlainModel, original: OriginalModel) -> None:
    """Refuse a file of a fixed batch with outputs that have no row for each image.

    Its batch is freed, and what its end, as suppression, does with one image is not known of more.
    """
    if original.batch is None:
        return
    for value, name in zip(plain.graph.outputs, original.names, strict=True):
        first = (*plain.shapes.dims.get(value, ()), 0)[0]
        if not (isinstance(first, Size) and first.counts_images):
            raise ExportError(
                f"the file takes {original.batch} images at once, and its output '{name}' has not "
                "one row for each of them, as what suppression keeps: remove that output, or "
                "export the network with a free batch"
            )


def _refuse_quantised_heads(network: Network, layers: Sequence[Layer]) -> None:
    """Refuse quantisation after the levels; what lies between two of them has no gradient."""
    head = nodes_after(network, layers, network.logits)
    path, _ = find_path([layer.value for layer in layers], network.logits, head)
    refuse_quantised(path)


def _describe(
    loaded: LoadedModel,
    opened: Opened,
    network: Network,
    layers: Sequence[Layer],
    reason: str,
    request: DetectorRequest,
    original: OriginalModel,
) -> tuple[Manifest, tuple[str, ...]]:
    plain, candidates, options = loaded.plain, opened.candidates, request.options
    count, classes = candidates.scores.shape[1:]
    if not isinstance(count, int) or not isinstance(classes, int):
        raise ExportError(f"the number of candidates is not fixed: scores {candidates.scores}")
    labels = _labels(loaded.labels, classes, request.is_labelled, request.form.name)
    dtype = plain.shapes.dtypes[plain.image]
    try:
        manifest = Manifest(
            model=loaded.name,
            weights=loaded.weights,
            target_layer=layers[-1].name,
            target_layer_reason=reason,
            activations=layers[-1].shape,
            pooled_linear=False,
            task="detect",
            num_classes=classes,
            labels=labels,
            detector=Detector(
                format=request.form.name,
                candidates=count,
                map_size=finest([layer.shape for layer in layers]),
                levels=tuple(FusedLayer(layer.name, layer.shape) for layer in layers),
                score=options.score,
                ranks=request.ranks,
                iou=request.form.iou,
                min_score=request.form.min_score,
            ),
            preprocess=loaded.preprocess,
            layout="NHWC" if plain.layout == "NHWC" else "NCHW",
            image_dtype={ir.DataType.FLOAT: "float32", ir.DataType.FLOAT16: "float16"}.get(  # type: ignore[arg-type]
                dtype, "uint8"
            ),
            own_outputs=original.names,
            outputs=("map",),
            methods=options.methods,
            map_methods=options.methods,
            gradient_score="logit" if candidates.is_logit else "prob",
            ablation_score="prob",
            tft=request.tft,
            precision=plain.shapes.precision,
            opset=plain.graph.opset_imports[""],
            image_bytes=network.image_bytes(),
            tools=read_tools(loaded.module is not None),
        )
    except ValueError as error:
        raise ExportError(f"the options do not fit the model: {error}") from error
    return manifest, candidates.notes


def _labels(labels: tuple[str, ...], classes: int, is_stated: bool, form: str) -> tuple[str, ...]:
    """Complete and check class names, which may hold one for the background."""
    names = labels
    if len(names) == classes + 1:
        names = tuple(name for name in names if not is_background(name))
    if not names or len(names) == classes:
        return names
    raise ExportError(
        f"there are {len(labels)} labels{'' if is_stated else ' in the file'}, but read as the "
        f"format {form} the detector has {classes} classes: name the right format with --format, "
        "or the right classes with --labels"
    )
