"""Export a classifier, a PyTorch model or an ONNX file, as one ONNX file that explains itself."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ..runtime.cam import Score
from ..runtime.comparison import ENGINE, Comparison
from ..runtime.engines import selftest
from ..runtime.engines.opening import open_engine
from ..runtime.errors import ExportError, VerificationError
from ..runtime.files import replacing
from ..runtime.manifest import FusedLayer, Manifest, Task
from ..runtime.onnxfile import append_manifest, digest, read_manifest
from ..runtime.search import Prior
from ..runtime.tft import Tft
from ..runtime.version import package_version
from .ablation import Head, split_head
from .assemble import Assembly, Request, assemble
from .graph_runner import GraphRunner
from .layers import Layer, Network
from .loading import LoadedModel, load_model
from .options import ExportOptions, plan_export
from .original_model import OriginalModel
from .output_meaning import OutputMeaning, interpret_outputs, may_be_probabilities
from .preprocessing import Overrides
from .reference_answers import compute_reference_answers
from .references import OnnxReference, Reference
from .verify import Subject, draw_natural_images, verify

if TYPE_CHECKING:
    import torch

    from .source import Source

DEFAULT_OPSET = 18
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
    """What an export made.

    Attributes:
        path: the file.
        manifest: what it says of itself.
        verification: how it compares with the network that it was made of.
        size: of the file, in bytes.
        seconds: the whole export took.
        notes: what had to be assumed or changed, for the user to check.
        nodes: how many nodes were added to the network's own.
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
    task: Task | None = None,
    output: str | None = None,
    target_layer: str | None = None,
    methods: Sequence[str] | None = None,
    score: Score | None = None,
    outputs: Sequence[str] = ("raw", "map"),
    map_methods: Sequence[str] | None = None,
    fused_layers: Sequence[str] = (),
    tft: Tft | None = None,
    priors: Sequence[Prior] = (),
    embed_preprocess: bool = False,
    source_size: tuple[int, int] | None = None,
    top: int | None = None,
    straight_through: bool = False,
    check: Sequence[str | os.PathLike[str]] = (),
    opset: int = DEFAULT_OPSET,
    step: Step | None = None,
) -> ExportResult:
    """Export a classifier as an explaining graph, checked against the network itself.

    Args:
        model: an ONNX file; or ``torchvision/NAME``, ``timm/NAME``, ``package.module:factory``,
            ``file.py:factory``, a folder made by ``whycam train``, a module, or what ``resolve``
            made of one of these, which takes [N, 3, H, W] and returns logits [N, C].
        path: the ONNX file to write.
        weights: ``default``, ``none``, or a .pth or .safetensors file; not for ONNX files.
        weights_key: which of several sets of weights in that file.
        labels: ``imagenet``, a file with one name a line or a JSON list, or the names.
        num_classes: for torchvision and timm models with another number of classes than usual.
        overrides: preprocessing, where the model does not bring its own or it differs.
        task: what the outputs mean; by default what the graph's last operator says.
        output: which of several outputs to explain, by name or number.
        target_layer: a module's path, a node or a tensor; by default the layer is found from the
            graph.
        methods: what the file must support; by default everything but ``ablation``, which
            adds an output and its work, and ``cam`` where the head allows it.
        score: what gradients and Ablation-CAM are taken of. By default as each was published:
            gradients of the logit, Ablation-CAM of the probability.
        outputs: what the graph returns besides probabilities: ``raw`` (activations and gradients),
            ``map`` (finished maps), ``tft`` (the first method's map thresholded by a sweep inside
            the graph); or several.
        map_methods: whose finished maps; by default all methods of the file but Score-CAM, and with
            ``tft`` alone Grad-CAM.
        fused_layers: earlier layers, whose Layer-CAM maps are fused with the target layer's in the
            graph's own map: finer detail, for a backward pass through what lies between.
        tft: the reading of TFT that the file recommends; that of the sweep inside the graph. With
            ``forwards`` that is a search, which needs ``priors`` and the output ``tft``; with
            ``again`` it shows the network its best thresholds once more.
        priors: what was learnt of thresholds, see ``runtime.priors``; kept in the file.
        embed_preprocess: let the graph take uint8 images [N, h, w, 3] and resize, crop and
            normalise them itself.
        source_size: (h, w) of these images, for which less work remains in each call; None: any.
        top: explain the K most probable classes, so that the graph needs no input ``target``.
        straight_through: pass gradients through quantisation (Q/DQ) after the target layer as if it
            were not there.
        check: images of the user's own, on which the file's own outputs are compared as well.
        opset: of the ONNX file made of a PyTorch model; an ONNX file keeps its own from 18 on.
        step: told the name of each step as it begins, see ``STEPS``.

    Returns:
        What was made.

    Raises:
        ExportError: the model cannot be loaded or exported.
        TargetLayerError: there is no usable target layer.
        VerificationError: the file does not compute what the network does; none is left behind.
        OutputError: the file cannot be written.
    """
    begin = time.perf_counter()
    step = step or (lambda _: None)
    target = Path(path)
    options = ExportOptions(
        outputs=outputs,
        methods=methods,
        map_methods=map_methods,
        fused_layers=fused_layers,
        score=score,
        tft=tft,
        priors=priors,
        embed_preprocess=embed_preprocess,
        source_size=source_size,
        top=top,
    )
    options.check()
    with replacing(target) as temporary:  # first of all: an unwritable place should cost no wait
        step(STEPS[0])
        origin = load_model(model, weights, weights_key, labels, num_classes, overrides, opset)
        step(STEPS[1])
        plain = origin.plain
        meaning = interpret_outputs(plain.graph.outputs, plain.shapes, task, output)
        network = Network(plain, meaning.logits)
        layer = network.find(target_layer)
        earlier = network.earlier(layer, fused_layers)
        _check_quantised(network, [*earlier, layer], straight_through)
        head = split_head(network, layer)
        request, priors_kept, tft = plan_export(options, head, meaning, origin)
        manifest = _manifest(origin, network, meaning, layer, earlier, head, request, tft)
        original = OriginalModel(plain, origin.file)
        manifest = msgspec.structs.replace(
            manifest,
            priors=priors_kept,
            own_outputs=original.names,
        )
        reference = _reference(origin, network, meaning, layer)
        references_earlier = tuple(_reference(origin, network, meaning, each) for each in earlier)
        if task is None and may_be_probabilities(meaning.output):
            _check_is_no_probability(meaning, original, manifest)
        if origin.module is not None and isinstance(reference, OnnxReference):
            from .references_torch import check_translation

            image = draw_natural_images(np.random.default_rng(0), 2, _prepared_alone(manifest))
            check_translation(origin.module, original.outputs(image)[0], image)
        step(STEPS[2])
        made = assemble(
            network,
            meaning,
            [*earlier, layer],
            head if "ablation" in request.methods else None,
            request,
            plain.size,
        )
        manifest = msgspec.structs.replace(
            manifest,
            names={name: own for name, own in made.names.items() if _declared(name, manifest)},
        )
        _tidy(plain.model)
        step(STEPS[3])
        runner = GraphRunner(plain.model, made, manifest)
        subject = Subject(
            runner,
            manifest,
            {name: _inner(tensor.shape) for name, tensor in runner.tensors.items()},
            reference,
            plain.size,
            original,
            references_earlier,
            plain.shapes.dtypes[meaning.logits] in (ir.DataType.FLOAT16, ir.DataType.BFLOAT16),
        )
        verification = verify(subject, [_prepared(image, manifest) for image in check])
        answers = compute_reference_answers(runner, reference, manifest, bool(earlier))
        step(STEPS[4])
        _declare_only(plain.model, made, manifest)
        ir.save(plain.model, str(temporary))
        manifest = msgspec.structs.replace(manifest, references=answers, digest=digest(temporary))
        append_manifest(temporary, manifest)
        _check_file(temporary)
        size = temporary.stat().st_size
    notes = (*origin.notes, *([] if meaning.note is None else [meaning.note]), *plain.changes)
    return ExportResult(
        target,
        manifest,
        verification,
        size,
        time.perf_counter() - begin,
        notes,
        made.nodes,
        made.rules,
    )


def list_layers(
    model: str | os.PathLike[str] | torch.nn.Module | Source,
    *,
    weights: str = "none",
    num_classes: int | None = None,
    overrides: Overrides | None = None,
    task: Task | None = None,
    output: str | None = None,
) -> tuple[list[Layer], Layer | None]:
    """Where a model can be cut, and where ``to_onnx`` would cut it.

    Args:
        model, weights, num_classes, overrides, task, output: as ``to_onnx`` takes them; weights and
            preprocessing do not matter here.

    Returns:
        The places from image to logits, and the one that would be chosen, or None.

    Raises:
        ExportError: the model cannot be loaded or translated.
    """
    origin = load_model(
        model, weights, None, None, num_classes, overrides, DEFAULT_OPSET, needs_preprocess=False
    )
    meaning = interpret_outputs(origin.plain.graph.outputs, origin.plain.shapes, task, output)
    network = Network(origin.plain, meaning.logits)
    try:
        chosen = network.find()
    except ExportError:
        chosen = None
    return network.layers, chosen


def _check_quantised(network: Network, layers: Sequence[Layer], allowed: bool) -> None:
    """Refuse quantisation between the target layer and the scores, unless it was allowed."""
    if allowed:
        return
    first = layers[0].value.producer()
    place = network.path.index(first) if first in network.path else 0
    for node in network.path[place + 1 :]:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            raise ExportError(
                f"the node '{node.name}' ({node.op_type}) quantises between the target layer and "
                "the class scores, where a gradient has no meaning in the strict sense. Explain "
                "the float file and quantise that, or pass --straight-through to take it for the "
                "identity"
            )


def _reference(
    origin: LoadedModel, network: Network, meaning: OutputMeaning, layer: Layer
) -> Reference:
    if origin.module is not None:
        from .references_torch import TorchReference

        plain = network.plain
        try:
            return TorchReference(
                origin.module,
                layer,
                (plain.channels, *plain.size),
                ends_in_activation=meaning.logits is not meaning.output,
            )
        except LookupError:
            pass
    said = "the original file" if origin.module is None else "the graph that PyTorch wrote"
    return OnnxReference(network, meaning, layer, said)


def _prepared_alone(manifest: Manifest) -> Manifest:
    """Of the network by itself, which takes prepared images."""
    return msgspec.structs.replace(manifest, embedded_preprocess=False, source_size=None)


def _check_is_no_probability(
    meaning: OutputMeaning, original: OriginalModel, manifest: Manifest
) -> None:
    """Refuse outputs that are probabilities already, though no operator at the end says so.

    A softmax written as exp, sum and quotient is one; softmax of it would be wrong without a sign.
    """
    rng = np.random.default_rng(0)
    feeds = draw_natural_images(rng, 2, _prepared_alone(manifest))
    outputs = dict(zip(original.names, original.outputs(feeds), strict=True))
    values = np.asarray(outputs[str(meaning.output.name)], np.float64).reshape(2, -1)
    within = bool(values.min() >= 0 and values.max() <= 1)
    if within and (values.shape[1] == 1 or np.abs(values.sum(-1) - 1).max() < 1e-3):
        raise ExportError(
            f"the output '{meaning.output.name}' holds probabilities already, but the graph does "
            "not end in Softmax or Sigmoid: its activation is written in other operators. Name "
            "the logits with --output-name if the file gives them out, or pass --task none to "
            "explain the values as they are"
        )


def _inner(shape: Sequence[Any]) -> tuple[int | None, ...]:
    return tuple(side if isinstance(side, int) else None for side in shape[1:])


def _declared(name: str, manifest: Manifest) -> bool:
    return name in ("image", "target") or name in manifest.output_shapes


def _prepared(path: str | os.PathLike[str], manifest: Manifest) -> NDArray[Any]:
    """A user's image as the graph takes it, [1, ...]."""
    from ..runtime.images import read_picture
    from ..runtime.preprocess import arrange, crop_resized

    picture = read_picture(path)
    if manifest.embedded_preprocess:
        return picture[None]
    return np.ascontiguousarray(
        arrange(crop_resized(picture, manifest.preprocess)[0][None], manifest)
    ).astype(manifest.image_dtype)


def _tidy(model: ir.Model) -> None:
    """Nodes in an order in which they can run; nothing that nobody reads."""
    import onnx_ir.passes.common as passes

    model.graph.sort()
    passes.RemoveUnusedNodesPass()(model)


def _declare_only(model: ir.Model, made: Assembly, manifest: Manifest) -> None:
    """Take back the outputs that only verification asked for."""
    kept = {*made.own_outputs, *(manifest.names.get(n, n) for n in manifest.output_shapes)}
    outputs = model.graph.outputs
    for value in [value for value in outputs if value.name not in kept]:
        outputs.remove(value)
    _tidy(model)


def _check_file(path: Path) -> None:
    """Read the finished file as a user's runtime will, and try it."""
    manifest = read_manifest(path)
    engine = open_engine(path, manifest, "onnxruntime")
    for compared in selftest.check(engine, manifest, ENGINE):
        if compared.complaint:
            raise VerificationError(
                f"the finished file answers wrongly: {compared.complaint}. No file was written"
            )


def _manifest(
    origin: LoadedModel,
    network: Network,
    meaning: OutputMeaning,
    layer: Layer,
    earlier: Sequence[Layer],
    head: Head,
    request: Request,
    tft: Tft,
) -> Manifest:
    plain = network.plain
    dtype = plain.shapes.dtypes[plain.image]
    try:
        return Manifest(
            model=origin.name,
            weights=origin.weights,
            target_layer=layer.name,
            activations=layer.shape,
            pooled_linear=head.is_pooled_linear,
            task=meaning.task,
            num_classes=meaning.num_classes,
            labels=_labels(origin.labels, meaning),
            preprocess=origin.preprocess,
            layout="NHWC" if plain.layout == "NHWC" else "NCHW",
            image_dtype={ir.DataType.FLOAT: "float32", ir.DataType.FLOAT16: "float16"}.get(  # type: ignore[arg-type]
                dtype, "uint8"
            ),
            top=request.top,
            outputs=request.outputs,
            methods=request.methods,
            map_methods=request.map_methods,
            fused_layers=tuple(FusedLayer(each.name, each.shape) for each in earlier),
            embedded_preprocess=request.preprocess is not None,
            source_size=request.source_size,
            gradient_score=request.gradient_score,
            ablation_score=request.ablation_score,
            tft=tft,
            opset=plain.graph.opset_imports[""],
            image_bytes=network.image_bytes(),
            tools=_tools(origin.module is not None),
        )
    except ValueError as error:
        raise ExportError(f"such a file cannot be described: {error}") from error


def _tools(reads_torch: bool) -> dict[str, str]:
    """Versions of the packages that made a file; one that is not installed took no part."""
    from importlib.metadata import distributions

    names = ("torch", "onnx", "onnx-ir", "onnxscript") if reads_torch else ("onnx", "onnx-ir")
    found = {name: dist.version for name in names for dist in distributions(name=name)}
    return {"whycam": package_version(), **found}


def _labels(labels: Sequence[str], meaning: OutputMeaning) -> tuple[str, ...]:
    """Class names; one name for one logit becomes two."""
    if meaning.task == "binary" and len(labels) == 1:
        return f"not {labels[0]}", labels[0]
    if labels and len(labels) != meaning.num_classes:
        raise ExportError(
            f"there are {len(labels)} labels, but the model has {meaning.num_classes} classes"
        )
    return tuple(labels)
