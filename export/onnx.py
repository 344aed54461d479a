"""Export: a PyTorch classifier becomes one ONNX file that explains itself."""

from __future__ import annotations

import contextlib
import logging
import os
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import ascii_lowercase
from typing import Any, cast

import msgspec
import torch

from ..runtime.cam import METHODS, Method, Score
from ..runtime.engines.engine import open_engine
from ..runtime.engines.selftest import check
from ..runtime.errors import ExportError, MissingExtraError, RequestError, VerificationError
from ..runtime.files import replacing
from ..runtime.manifest import OUTPUTS, FusedLayer, Manifest, Outputs
from ..runtime.onnxfile import append_manifest, digest, read_manifest
from ..runtime.search import Prior, prior_for
from ..runtime.tft import Tft
from .ablation import Head, take_apart
from .graph import ExplainingGraph, ablation_score, gradient_score
from .layer import (
    Layer,
    Split,
    capture,
    check_is_head,
    earlier_layers,
    find_layer,
    list_layers,
    split,
)
from .resample import Resample
from .source import Overrides, Source, resolve
from .verify import Float64, Verification, references, verify

DEFAULT_OPSET = 18
_LIMIT = 2**31 - 2**20  # protobuf's bound on one message, less room for the metadata

Step = Callable[[str], None]


@dataclass(frozen=True)
class Export:
    """What an export made.

    Attributes:
        path: the file.
        manifest: what it says of itself.
        verification: how it compares with PyTorch.
        size: of the file, in bytes.
        seconds: the whole export took.
        notes: what had to be assumed, for the user to check.
    """

    path: Path
    manifest: Manifest
    verification: Verification
    size: int
    seconds: float
    notes: tuple[str, ...]


def to_onnx(
    model: str | torch.nn.Module | Source,
    path: str | os.PathLike[str],
    *,
    weights: str = "default",
    labels: str | Sequence[str] | None = None,
    num_classes: int | None = None,
    overrides: Overrides | None = None,
    target_layer: str | None = None,
    methods: Sequence[str] | None = None,
    score: Score | None = None,
    outputs: Sequence[str] = ("raw",),
    map_method: str | None = None,
    fused_layers: Sequence[str] = (),
    tft: Tft | None = None,
    priors: Sequence[Prior] = (),
    embed_preprocess: bool = False,
    picture_size: tuple[int, int] | None = None,
    opset: int = DEFAULT_OPSET,
    step: Step | None = None,
) -> Export:
    """Export a classifier as an explaining graph, checked against PyTorch in float64.

    Args:
        model: ``torchvision/NAME``, ``timm/NAME``, ``package.module:factory``,
            ``file.py:factory``, a folder made by ``whycam train``, a module, or what ``resolve``
            made of one of these. It takes [N, 3, H, W] and returns logits [N, C].
        path: the ONNX file to write.
        weights: ``default``, ``none``, or a .pth or .safetensors file.
        labels: ``imagenet``, a file with one name a line or a JSON list, or the names.
        num_classes: for torchvision and timm models with another number of classes than usual.
        overrides: preprocessing that differs from the model's own.
        target_layer: a module's path; by default the layer is found from the graph.
        methods: what the file must support; by default everything but ``ablation``, which
            adds an output and its work to every call, and ``cam`` where the head allows it.
        score: what gradients and Ablation-CAM are taken of. By default as each was published:
            gradients of the logit, Ablation-CAM of the probability.
        outputs: what the graph returns besides probabilities: ``raw`` (activations and
            gradients, from which the runtime makes any map), ``map`` (the finished map of one
            method), ``tft`` (that map thresholded by a sweep inside the graph); or several.
        map_method: whose map ``map`` and ``tft`` are; by default the first of ``methods``, or
            Grad-CAM.
        fused_layers: earlier layers, by their modules' names, whose Layer-CAM maps are fused with
            the target layer's in the graph's own map: finer detail, for a backward pass through
            what lies between.
        tft: the reading of TFT that the file recommends; that of the sweep inside the graph. With
            ``forwards`` that is a search, which needs ``priors`` and the output ``tft``; with
            ``again`` it shows the network its best thresholds once more.
        priors: what was learnt of thresholds, see ``runtime.priors``; kept in the file.
        embed_preprocess: let the graph take uint8 pictures [N, h, w, 3] and resize, crop and
            normalise them itself.
        picture_size: (h, w) of these pictures, for which less work remains in each call; None: any.
        opset: of the ONNX file.
        step: told the name of each step as it begins.

    Returns:
        What was made.

    Raises:
        ExportError: the model cannot be loaded or exported.
        TargetLayerError: there is no usable target layer.
        VerificationError: the file does not compute what PyTorch does; none is left behind.
        OutputError: the file cannot be written.
    """
    begin = time.perf_counter()
    step = step or (lambda _: None)
    target = Path(path)
    groups = _groups(outputs)
    _check_picture_size(picture_size, embed_preprocess)
    _check_search(tft, groups)
    _check_packages()
    with replacing(target) as temporary:  # first of all: an unwritable place should cost no wait
        step("loading the model")
        source = (
            model
            if isinstance(model, Source)
            else resolve(model, weights, labels, num_classes, overrides)
        )
        step("finding the target layer")
        captured = capture(source.model, source.preprocess.size)
        layer = find_layer(captured, target_layer)
        parts = split(captured, layer, earlier_layers(captured, layer, fused_layers))
        if target_layer is None:
            check_is_head(parts)
        head = take_apart(parts.head)
        own = _map_method(map_method or ("layercam" if fused_layers else None), methods, groups)
        _check_fused(fused_layers, own)
        chosen = _methods(methods, own, groups, head, score)
        _check_labels(source.labels, parts)
        prior = _prior(priors, own, tft)
        if tft is not None and prior is not None:
            tft = msgspec.structs.replace(tft, taus=prior.taus)
        manifest = msgspec.structs.replace(
            _manifest(source, parts, head, chosen, score, tft, opset),
            outputs=groups,
            map_method=own,
            fused_layers=tuple(FusedLayer(each.name, each.shape) for each in parts.earlier),
            priors=tuple(each for each in priors if each.method in chosen),
            embedded_preprocess=embed_preprocess,
            picture_size=picture_size,
        )
        step("tracing the gradient")
        with _reduced_noise():
            graph = ExplainingGraph(
                parts,
                head,
                chosen,
                score,
                source.preprocess.size,
                own,
                manifest.tft if "tft" in groups else None,
                Resample(source.preprocess, picture_size) if embed_preprocess else None,
                prior,
            ).eval()
            step("writing ONNX")
            program = _translate(graph, manifest, opset)
        program.save(str(temporary))
        step("computing the reference in float64")
        exact = Float64(source.model, graph, source.preprocess.size)
        with torch.no_grad():
            expected = references(exact, manifest, head)
        step("checking against PyTorch")
        verification = verify(
            open_engine(temporary, manifest, "onnxruntime"), graph, exact, manifest
        )
        _declare_only(program, tuple(manifest.output_shapes))
        program.save(str(temporary))
        manifest = msgspec.structs.replace(manifest, references=expected, digest=digest(temporary))
        append_manifest(temporary, manifest)
        _check_file(temporary)
        size = temporary.stat().st_size
    return Export(target, manifest, verification, size, time.perf_counter() - begin, source.notes)


def layers(
    model: str | torch.nn.Module,
    *,
    weights: str = "none",
    num_classes: int | None = None,
    overrides: Overrides | None = None,
) -> tuple[list[Layer], Layer | None]:
    """Where a model can be cut, and where ``to_onnx`` would cut it.

    Args:
        model: as ``to_onnx`` takes it.
        weights, num_classes, overrides: as ``to_onnx`` takes them; weights do not matter here.

    Returns:
        The places from image to logits, and the one that would be chosen, or None.

    Raises:
        ExportError: the model cannot be loaded, or its graph not be recorded.
    """
    source = resolve(model, weights, None, num_classes, overrides)
    captured = capture(source.model, source.preprocess.size)
    try:
        chosen = find_layer(captured)
    except ExportError:
        chosen = None
    return list_layers(captured), chosen


def _check_packages() -> None:
    try:
        import onnx
        import onnxscript
    except ImportError as error:
        raise MissingExtraError(error.name or "onnxscript", "export", "export") from error
    del onnx, onnxscript


def _groups(wanted: Sequence[str]) -> tuple[Outputs, ...]:
    unknown = [name for name in wanted if name not in OUTPUTS]
    if unknown or not wanted:
        raise RequestError(
            f"there are no outputs {', '.join(map(repr, unknown)) or 'wanted'}; choose from: "
            f"{', '.join(OUTPUTS)}"
        )
    return tuple(name for name in OUTPUTS if name in wanted)


def _check_picture_size(size: tuple[int, int] | None, embedded: bool) -> None:
    if size is not None and not embedded:
        raise RequestError("picture_size is for graphs with embed_preprocess")
    if size is not None and not (min(size) >= 1 and max(size) <= _LARGEST_SIDE):
        raise RequestError(
            f"picture_size must be (height, width) from 1 to {_LARGEST_SIDE} pixels, not {size}"
        )


_LARGEST_SIDE = 2**15


def _check_fused(layers: Sequence[str], own: Method | None) -> None:
    if layers and own != "layercam":
        raise RequestError(
            "layers are fused in maps of layercam that the graph finishes: choose the outputs map "
            f"or tft, and no other map_method{'' if own is None else f' ({own})'}"
        )


def _check_search(tft: Tft | None, groups: Sequence[Outputs]) -> None:
    if tft is not None and tft.again is not None and "tft" not in groups:
        raise RequestError(
            f"again={tft.again} is part of a sweep inside the graph: add the output tft"
        )
    if tft is not None and tft.forwards is not None and "tft" not in groups:
        raise RequestError(
            f"forwards={tft.forwards} is a search inside the graph: add the output tft. Files "
            "without it are searched by: whycam explain --tft --forwards"
        )


def _prior(priors: Sequence[Prior], method: Method | None, tft: Tft | None) -> Prior | None:
    """What the search inside the graph starts from."""
    if method is None or tft is None or tft.forwards is None:
        return None
    return prior_for(priors, method, tft)


def _map_method(
    wanted: str | None, methods: Sequence[str] | None, groups: Sequence[Outputs]
) -> Method | None:
    """Whose map the graph finishes."""
    if tuple(groups) == ("raw",):
        if wanted is not None:
            raise RequestError(f"map_method '{wanted}' needs the outputs map or tft")
        return None
    chosen = wanted or (methods[0] if methods else "gradcam")
    if chosen not in METHODS:
        raise RequestError(f"there is no method '{chosen}'; choose from: {', '.join(METHODS)}")
    if chosen == "scorecam":
        raise RequestError(
            "Score-CAM takes one forward pass for each channel, which no graph should hold; name "
            "another method for the outputs map and tft"
        )
    return cast(Method, chosen)


def _methods(
    wanted: Sequence[str] | None,
    own: Method | None,
    groups: Sequence[Outputs],
    head: Head,
    score: Score | None,
) -> tuple[Method, ...]:
    """What the file supports: without raw outputs, the one method whose map it finishes."""
    has_cam = head.is_pooled_linear and gradient_score(score) == "logit"
    unknown = [m for m in wanted or () if m not in METHODS]
    if unknown or (wanted is not None and not wanted):
        raise RequestError(
            f"there is no method {', '.join(map(repr, unknown))}; choose from: {', '.join(METHODS)}"
        )
    if "raw" not in groups:
        surplus = [m for m in wanted or () if m != own]
        if surplus:
            raise RequestError(
                f"a file without raw outputs holds one method, {own}; for {', '.join(surplus)} as "
                "well add the output raw"
            )
        supported: set[str | None] = {own}
    elif wanted is None:
        supported = {m for m in METHODS if m not in ("ablation", "cam")} | {own}
        supported |= {"cam"} if has_cam else set()
    else:
        supported = {*wanted, own}
    if "cam" in supported and not has_cam:
        raise ExportError(
            "'cam' needs a head of global average pooling and one linear layer, and the logit as "
            "score; this model's head or score is another. Use 'gradcam'"
        )
    return tuple(m for m in METHODS if m in supported)


def _check_labels(labels: Sequence[str], parts: Split) -> None:
    if labels and len(labels) != parts.num_classes:
        raise ExportError(
            f"there are {len(labels)} labels, but the model has {parts.num_classes} classes"
        )


@contextlib.contextmanager
def _reduced_noise() -> Iterator[None]:
    """Exporters talk about their own internals; what matters is checked after them."""
    noisy = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    before = [logger.level for logger in noisy]
    for logger in noisy:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(noisy, before, strict=True):
            logger.setLevel(level)


def _translate(graph: ExplainingGraph, manifest: Manifest, opset: int) -> torch.onnx.ONNXProgram:
    """The graph as ONNX, with every output it has."""
    batch, classes = torch.export.Dim("batch"), torch.export.Dim("classes")
    sides: dict[int, Any] = {0: batch}
    if manifest.embedded_preprocess:
        shape = manifest.picture_size or _EXAMPLE_PICTURE
        if manifest.picture_size is None:
            sides |= {1: torch.export.Dim("height"), 2: torch.export.Dim("width")}
        image = torch.zeros(2, *shape, 3, dtype=torch.uint8)
    else:
        image = torch.zeros(2, 3, *manifest.preprocess.size)
    # Example sizes differ from each other and from 1, lest the exporter take one for another.
    target = torch.zeros(2, 3, dtype=torch.int64)
    weights = sum(tensor.numel() * tensor.element_size() for tensor in graph.trunk.parameters())
    if weights > _LIMIT:
        raise ExportError(
            f"the model has {weights / 2**30:.1f} GiB of weights; an ONNX file holds 2 GiB"
        )
    try:
        program = torch.onnx.export(
            graph,
            (image, target),
            dynamo=True,
            dynamic_shapes=(sides, {0: batch, 1: classes}),
            input_names=["image", "target"],
            output_names=graph.output_names,
            opset_version=opset,
            verbose=False,
        )
    except Exception as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise ExportError(f"the ONNX exporter cannot translate this model: {lines[0]}") from error
    assert program is not None
    written = program.model.opset_imports.get("")
    if written != opset:
        raise ExportError(
            f"the exporter can only write this model for opset {written}, not {opset}"
        )
    _one_copy_of_each_weight(program)
    _small_letters(program)
    # Notes of the exporter, such as paths on this machine, are nobody's business.
    program.model.metadata_props.clear()
    for node in program.model.graph.all_nodes():
        node.metadata_props.clear()
        node.doc_string = None
    for value in [*program.model.graph.inputs, *program.model.graph.outputs]:
        value.metadata_props.clear()
    return program


_EXAMPLE_PICTURE = (301, 402)


def _one_copy_of_each_weight(program: torch.onnx.ONNXProgram) -> None:
    """Recording the head and its gradient apart gives their weights two names."""
    from onnx_ir.passes.common import DeduplicateInitializersPass

    DeduplicateInitializersPass(size_limit=_LIMIT)(program.model)


def _small_letters(program: torch.onnx.ONNXProgram) -> None:
    """Einsum's indices may be any letters; TensorRT reads small ones alone."""
    from onnx_ir import AttrString

    for node in program.model.graph.all_nodes():
        if node.domain == "" and node.op_type == "Einsum":
            equation = node.attributes["equation"].as_string()
            node.attributes["equation"] = AttrString("equation", small_letters(equation))


def small_letters(equation: str) -> str:
    """An equation of Einsum with its indices named a, b, c .. as they come.

    More than 26 indices have no such names: the equation stays as it is.
    """
    met = dict.fromkeys(letter for letter in equation if letter.isalpha())
    if len(met) > len(ascii_lowercase):
        return equation
    small = dict(zip(met, ascii_lowercase, strict=False))
    return "".join(small.get(letter, letter) for letter in equation)


def _declare_only(program: torch.onnx.ONNXProgram, names: Sequence[str]) -> None:
    """Take back outputs that only verification asked for. No operation is there for them alone."""
    outputs = program.model.graph.outputs
    for value in [value for value in outputs if value.name not in names]:
        outputs.remove(value)


def _check_file(path: Path) -> None:
    """Read the finished file as a user's runtime will, and try it."""
    manifest = read_manifest(path)
    engine = open_engine(path, manifest, "onnxruntime")
    for agreement in check(engine, manifest):
        problem = agreement.problem()
        if problem:
            raise VerificationError(f"{problem}. No file was written")


def _manifest(
    source: Source,
    parts: Split,
    head: Head,
    methods: tuple[Method, ...],
    score: Score | None,
    tft: Tft | None,
    opset: int,
) -> Manifest:
    from importlib.metadata import version

    from .. import __version__

    return Manifest(
        model=source.name,
        weights=source.weights,
        target_layer=parts.layer.name,
        activations=parts.layer.shape,
        pooled_linear=head.is_pooled_linear,
        num_classes=parts.num_classes,
        labels=source.labels,
        preprocess=source.preprocess,
        methods=methods,
        gradient_score=gradient_score(score),
        ablation_score=ablation_score(score),
        tft=tft or Tft(),
        opset=opset,
        image_bytes=parts.live_bytes,
        tools={
            "whycam": __version__,
            **{name: version(name) for name in ("torch", "onnx", "onnxscript")},
        },
    )
