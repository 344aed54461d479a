"""Export a classifier, a PyTorch model or an ONNX file, to an ONNX file that also explains."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import msgspec
from numpy.typing import NDArray

from ..runtime.cam import Score
from ..runtime.comparison import Comparison
from ..runtime.errors import ExportError, RequestError
from ..runtime.files import replacing
from ..runtime.manifest import Manifest
from ..runtime.manifest_parts import Activation, DetectorFormat, ExportScore, ExportTask, Task
from ..runtime.prompts import Prompts
from ..runtime.search import Prior
from ..runtime.tft import Tft
from .ablation_head import split_head
from .assemble import assemble
from .attention import find_attention
from .describe import choose_labels, describe
from .detectors.export import DetectorRequest, export_detector
from .detectors.options import check_detector_options
from .finished_file import clean_up, name_tensors, write_model
from .graph_runner import GraphRunner
from .heads import OutputMeaning, join_heads
from .layer_list import interpret
from .layers import Network
from .loading import DEFAULT_OPSET, choose_detector, load_model
from .network_checks import check_network, check_quantised
from .open_reference import open_references
from .options import ExportOptions, plan_export
from .original_model import OriginalModel
from .output_meaning import interpret_embedding
from .plain_model import PlainModel
from .preprocessing import Overrides, keep_whole_image
from .reference_answers import compute_reference_answers
from .verify import verify
from .verify_subject import Subject, prepare_image, subjects_of_all_sizes
from .zero_shot import Similarity, choose_similarity

if TYPE_CHECKING:
    import torch

    from .source import Source

STEPS = (
    "loading the model",
    "finding the target layer",
    "adding the explanation",
    "checking against the network",
    "writing",
)

Step = Callable[[str], None]


@dataclass(frozen=True)
class ExportResult:
    """An exported file and how it was checked.

    Attributes:
        path: the file.
        manifest: the file's manifest.
        verification: how the file compares with the network.
        size: of the file, in bytes.
        seconds: how long the export took.
        notes: what was assumed or changed, for the user to check.
        nodes: how many nodes were added to the graph.
        rules: the operators whose gradients were needed.
    """

    path: Path
    manifest: Manifest
    verification: Comparison
    size: int
    seconds: float
    notes: tuple[str, ...]
    nodes: int
    rules: tuple[str, ...]


def to_onnx(
    model: str | os.PathLike[str] | torch.nn.Module | Source,
    path: str | os.PathLike[str],
    *,
    weights: str = "default",
    weights_key: str | None = None,
    labels: str | Sequence[str] | None = None,
    num_classes: int | None = None,
    overrides: Overrides | None = None,
    task: ExportTask | None = None,
    format: DetectorFormat | None = None,
    activation: Activation | None = None,
    ranks: bool = True,
    head: str | Sequence[str] | None = None,
    target_layer: str | Sequence[str] | None = None,
    methods: Sequence[str] | None = None,
    score: ExportScore | None = None,
    outputs: Sequence[str] | None = None,
    map_methods: Sequence[str] | None = None,
    fused_layers: Sequence[str] = (),
    classes: str | os.PathLike[str] | Prompts | NDArray[Any] | None = None,
    logit_scale: float | None = None,
    logit_bias: float | None = None,
    tft: Tft | None = None,
    priors: Sequence[Prior] = (),
    embed_preprocess: bool = False,
    source_size: tuple[int, int] | None = None,
    dynamic_size: tuple[int, int] | None = None,
    show_bands: Sequence[int] = (),
    top: int | None = None,
    straight_through: bool = False,
    check: Sequence[str | os.PathLike[str]] = (),
    opset: int = DEFAULT_OPSET,
    step: Step | None = None,
) -> ExportResult:
    """Export a classifier as an explaining graph, checked against the network itself.

    Args:
        model: an ONNX file; or ``torchvision/NAME``, ``timm/NAME``, ``package.module:factory``,
            ``file.py:factory``, a folder made by ``whycam train``, a module, or the ``Source``
            that ``resolve`` returns; it takes [N, C, H, W] and returns logits [N, C].
        path: the ONNX file to write.
        weights: ``default``, ``none``, or a .pth or .safetensors file; not for ONNX files.
        weights_key: which of several sets of weights in that file.
        labels: ``imagenet``, a file with one name a line or a JSON list, or the names.
        num_classes: for torchvision and timm models with another number of classes than usual.
        overrides: preprocessing, where the model does not state it or states it wrongly.
        task: what the outputs mean; by default what the graph's last operator says. ``detect``: the
            model is a detector, see ``format``.
        format: of a detector's outputs; by default what graph and file prove.
        activation: of a detector's class logits, where nothing says so.
        ranks: whether a detector's graph suppresses duplicates and chooses the best detections
            itself where ``target`` has -1; else candidates are always named, for engines without
            NonMaxSuppression.
        head: which of the network's outputs to explain, by name or number; several classification
            heads as a sequence, whose classes are then called ``HEAD:CLASS``.
        target_layer: a module's path, a node or a tensor; by default the layer is found from the
            graph. Of a detector one for each level, whose maps are added.
        methods: which methods the file supports; by default all but ``ablation``, which costs an
            output more, and ``cam`` where the head allows it; of a detector Layer-CAM and Grad-CAM.
        score: which class score gradients and Ablation-CAM explain. By default as published:
            gradients the logit, Ablation-CAM the probability. Of a detector ``class``, or the edge
            of the box whose place is explained: how far out it lies.
        outputs: what the graph returns besides probabilities: ``raw`` (activations and gradients),
            ``map`` (finished maps), ``tft`` (the first method's map thresholded by a sweep inside
            the graph); or several. By default raw and map, of a detector map.
        map_methods: the methods whose finished maps are outputs; by default all of the file but
            Score-CAM, and with ``tft`` alone Grad-CAM.
        fused_layers: earlier layers, whose Layer-CAM maps are fused with the target layer's in the
            graph's map: finer detail, at the cost of a backward pass between the layers.
        classes: for an image encoder, whose output is an embedding [N, D]: the word ``input``, for
            a graph with the input ``class_embeddings`` [C, D]; or the class embeddings, as a .npy
            file, a .npz file of ``whycam prompts``, an array or ``Prompts``. Class scores are
            exp(logit_scale) times the cosine similarities, plus logit_bias.
        logit_scale, logit_bias: of the trained model, where it does not have them itself.
        tft: TFT's settings, which the file recommends and a sweep inside the graph follows. With
            ``evaluations`` the graph searches, which needs ``priors`` and the output ``tft``.
        priors: learned distributions of good thresholds, see ``runtime.search``; kept in the file.
        embed_preprocess: let the graph take uint8 images [N, h, w, 3] and resize, crop and
            normalise them itself.
        source_size: (h, w) of these images, which makes preprocessing faster; None for any size.
        dynamic_size: the least and largest height or width in pixels: the graph then takes images
            of any such size in multiples of the network's total stride, and maps have the same.
            The preprocessing's own size is the one that engines are tuned for.
        show_bands: bands that overlays show by default, counted from 1: three as red, green and
            blue, or one in grey; for networks that take bands.
        top: explain the K most probable classes, so that the graph needs no input ``target``.
        straight_through: pass gradients unchanged through quantisation (Q/DQ) after the target
            layer.
        check: further images on which the network's outputs are compared before and after.
        opset: of a PyTorch model's ONNX file; an ONNX file keeps its opset from 18 on.
        step: called with the name of each step as it begins, see ``STEPS``.

    Returns:
        The file, its manifest and its verification.

    Raises:
        ExportError: the model cannot be loaded or exported.
        TargetLayerError: there is no usable target layer.
        VerificationError: the file does not compute what the network does; it is deleted.
        OutputError: the file cannot be written.
        RequestError: options that contradict each other, or that such a model has not.
    """
    begin = time.perf_counter()
    step = step or (lambda _: None)
    target = Path(path)
    is_detector = task == "detect" or format is not None
    if is_detector and task not in (None, "detect"):
        raise RequestError(f"format {format} is of detectors, and task {task} of classifiers")
    check_options = partial(
        check_detector_options,
        outputs,
        methods,
        map_methods,
        score,
        (
            ("head", head is not None, "its format says which outputs hold what"),
            ("num_classes", num_classes is not None, "its outputs say how many classes it has"),
            ("fused_layers", bool(fused_layers), "its levels are added: name them as target_layer"),
            ("classes", classes is not None, "its classes are fixed"),
            ("priors", bool(priors), "these were learnt for classes of whole images"),
            ("embed_preprocess", embed_preprocess, "images are fitted in outside the graph"),
            ("dynamic_size", dynamic_size is not None, "its boxes are of one input size"),
            ("top", top is not None, "target says how many detections are explained, of rank -1"),
        ),
    )
    if is_detector:
        check_options()  # before any work is done
    options = ExportOptions(
        outputs=("raw", "map") if outputs is None else outputs,
        methods=methods,
        map_methods=map_methods,
        fused_layers=fused_layers,
        score=cast("Score | None", score),
        tft=tft,
        priors=priors,
        embed_preprocess=embed_preprocess,
        source_size=source_size,
        top=top,
        dynamic_size=dynamic_size,
        task=cast("Task | None", task),
    )
    if not is_detector:
        options.check()
    _check_classes(classes, logit_scale, logit_bias, num_classes)
    with replacing(target) as temporary:  # first, so that an unwritable folder fails at once
        step(STEPS[0])
        is_encoder = classes is not None
        loaded = load_model(
            model,
            weights,
            weights_key,
            labels,
            num_classes,
            overrides,
            opset,
            dynamic_size=dynamic_size,
            is_encoder=is_encoder,
            detector=choose_detector(task, format, head is None and classes is None),
        )
        if loaded.form is not None:
            wanted = DetectorRequest(
                loaded.form,
                check_options(),
                _name_list(target_layer),
                activation,
                ranks,
                labels is not None,
                tft or Tft(),
                straight_through,
                check,
            )
            steps = [partial(step, name) for name in STEPS[1:]]
            of_detector = export_detector(loaded, wanted, temporary, steps)
            return ExportResult(
                target,
                of_detector.manifest,
                of_detector.verification,
                temporary.stat().st_size,
                time.perf_counter() - begin,
                (*loaded.notes, *of_detector.notes, *loaded.plain.changes),
                of_detector.assembly.nodes,
                of_detector.assembly.rules,
            )
        _check_is_classifier(format, activation, ranks, target_layer, score)
        step(STEPS[1])
        plain = loaded.plain
        if classes is None:
            meaning = interpret(plain, options.task, head, bool(loaded.labels))
            if meaning.place_scores is not None:
                spec = keep_whole_image(loaded.preprocess, overrides or Overrides())
                loaded = replace(loaded, preprocess=spec)
        else:
            similarity = choose_similarity(
                classes, logit_scale, logit_bias, options.task, loaded.logit_parameters
            )
            meaning = _interpret_embedding(plain, similarity, head)
        network = Network(plain, meaning.logits, is_encoder, meaning.place_scores)
        layer = network.find(next(iter(_name_list(target_layer)), None))
        earlier = network.find_earlier(layer, fused_layers)
        attention = find_attention(network) if options.needs_attention else None
        explained = [*earlier, layer, *([attention.layer] if attention is not None else [])]
        check_quantised(network, explained, straight_through)
        parts = split_head(network, layer)
        request, priors_kept, tft = plan_export(options, parts, meaning, loaded)
        names, label_notes = choose_labels(loaded.labels, meaning, is_stated=labels is not None)
        manifest = describe(
            loaded,
            network,
            meaning,
            layer,
            earlier,
            attention,
            parts,
            request,
            tft,
            names,
            show_bands,
        )
        original = OriginalModel(plain, loaded.file)
        manifest = msgspec.structs.replace(
            manifest,
            priors=priors_kept,
            own_outputs=original.names,
        )
        references = open_references(
            loaded, network, meaning, [*earlier, layer], attention, manifest
        )
        is_stated = task is not None or classes is not None
        check_network(loaded, network, meaning, references, original, manifest, is_stated)
        step(STEPS[2])
        assembly = assemble(
            network,
            meaning,
            [*earlier, layer],
            parts if "ablation" in request.methods else None,
            request,
            attention,
        )
        manifest = name_tensors(manifest, assembly)
        clean_up(plain.model)
        step(STEPS[3])
        runner = GraphRunner(plain.model, assembly, manifest)
        subject = Subject(
            runner,
            manifest,
            {},
            references.target,
            plain.size,
            original,
            references.earlier,
            references.attention,
        )
        subjects = subjects_of_all_sizes(subject, plain, runner.tensors)
        verification = verify(subjects, [prepare_image(image, manifest) for image in check])
        answers = compute_reference_answers(
            runner, references.target, manifest, bool(earlier), attention
        )
        step(STEPS[4])
        manifest = msgspec.structs.replace(
            manifest, target_tensor=str(layer.value.name), references=answers
        )
        manifest = write_model(plain.model, assembly, manifest, temporary)
        size = temporary.stat().st_size
    notes = (*loaded.notes, *label_notes, *meaning.notes, *plain.changes)
    if meaning.similarity is not None:
        notes += meaning.similarity.notes
    return ExportResult(
        target,
        manifest,
        verification,
        size,
        time.perf_counter() - begin,
        notes,
        assembly.nodes,
        assembly.rules,
    )


def _name_list(names: str | Sequence[str] | None) -> tuple[str, ...]:
    return () if names is None else (names,) if isinstance(names, str) else tuple(names)


def _check_is_classifier(
    format: str | None,
    activation: str | None,
    ranks: bool,
    target_layer: str | Sequence[str] | None,
    score: str | None,
) -> None:
    """Refuse options of detectors for a model that is none."""
    layers = _name_list(target_layer)
    for name, is_given in (
        ("format", format is not None),
        ("activation", activation is not None),
        ("ranks", not ranks),
        (f"score {score}", score not in (None, "logit", "prob")),
        (f"{len(layers)} target layers", len(layers) > 1),
    ):
        if is_given:
            raise RequestError(
                f"{name}: this is for detectors, and the model was not recognised as one: add task "
                "detect, or leave it out"
            )


def _check_classes(
    classes: Any, logit_scale: float | None, logit_bias: float | None, num_classes: int | None
) -> None:
    """Refuse options of zero-shot classifiers for others, and the other way round."""
    if classes is None and not (logit_scale is None and logit_bias is None):
        raise RequestError(
            "logit_scale and logit_bias are for image encoders, whose classes are text: add "
            "--classes"
        )
    if classes is not None and num_classes is not None:
        raise RequestError("with --classes the classes are known: leave out the number of classes")


def _interpret_embedding(
    plain: PlainModel, similarity: Similarity, head: str | Sequence[str] | None
) -> OutputMeaning:
    """Decide which output is the image embedding; there is one head of similarities."""
    names = [head] if isinstance(head, str) or head is None else list(head)
    if len(names) != 1:
        raise ExportError(
            f"an image encoder has one embedding, and {len(names)} heads were chosen: name one"
        )
    found = interpret_embedding(plain.graph.outputs, plain.shapes, similarity, names[0])
    return join_heads(plain.graph, plain.shapes, (found,))
