"""Compare a graph in half precision with its float file, by emulating the precision.

On CPUs ONNX Runtime has no arithmetic in fp16 or bf16: it computes fp16 graphs in float32, leaves
out most roundings in between, and refuses bf16 graphs. So the graph is run with explicit rounding:
each operation computes in float32 from rounded inputs, and its result is rounded to half precision.
That is the worst that tensor cores do, and it shows what overflows.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..runtime import cam
from ..runtime.comparison import ENGINE_REDUCED, HALF, Comparison, summarise
from ..runtime.engines import detection_selftest, selftest
from ..runtime.engines.base import Engine
from ..runtime.engines.chunks import Arrays
from ..runtime.engines.cpu_session import SessionEngine, open_session
from ..runtime.engines.opening import open_engine
from ..runtime.engines.prompted import with_examples
from ..runtime.errors import VerificationError
from ..runtime.manifest import Manifest
from ..runtime.similarity import norm_difference, pearson

if TYPE_CHECKING:
    import onnx


def with_explicit_rounding(model: onnx.ModelProto) -> onnx.ModelProto:
    """Rewrite a graph in half precision for an engine that has only float32, see above."""
    import onnx

    halves = (onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)
    inferred = onnx.shape_inference.infer_shapes(model)
    types = {v.name: v.type.tensor_type.elem_type for v in inferred.graph.value_info}
    types |= {tensor.name: tensor.data_type for tensor in inferred.graph.initializer}
    graph = onnx.GraphProto()
    graph.CopyFrom(inferred.graph)
    del graph.node[:]
    del graph.value_info[:]
    widened: set[str] = set()

    def cast(name: str, to: str, kind: int) -> None:
        graph.node.append(onnx.helper.make_node("Cast", [name], [to], f"{to}_cast", to=kind))

    for node in inferred.graph.node:
        if node.op_type != "Cast":
            for position, name in enumerate(node.input):
                if types.get(name) in halves:
                    if name not in widened:
                        widened.add(name)
                        cast(name, f"{name}_wide", onnx.TensorProto.FLOAT)
                    node.input[position] = f"{name}_wide"
        results = [name for name in node.output if types.get(name) in halves]
        if node.op_type != "Cast":
            for position, name in enumerate(node.output):
                if name in results:
                    node.output[position] = f"{name}_unrounded"
        graph.node.append(node)
        if node.op_type != "Cast":
            for name in results:
                cast(f"{name}_unrounded", name, types[name])
    explicit = onnx.ModelProto()
    explicit.CopyFrom(model)
    explicit.graph.CopyFrom(graph)
    return explicit


def emulate_half(model: onnx.ModelProto, manifest: Manifest) -> SessionEngine:
    """Open an engine that emulates half precision: explicit rounding, in ONNX Runtime on the CPU.

    Raises:
        EngineError: ONNX Runtime cannot run it.
        MissingExtraError: it is not installed.
    """
    session = open_session(with_explicit_rounding(model).SerializeToString())
    description = "ONNX Runtime, CPU, emulating half precision"
    return SessionEngine(
        session, manifest, "emulated", description, "the CPU has no half precision"
    )


def check_half(
    reference: str | os.PathLike[str],
    path: str | os.PathLike[str],
    model: onnx.ModelProto,
    manifest: Manifest,
) -> Comparison:
    """Compare a converted graph with the float file, and with the manifest's references.

    Args:
        reference: the float file.
        path: the converted file.
        model: its graph.
        manifest: of the converted file.

    Returns:
        The differences: ``probabilities``, absolute, in a graph with a threshold sweep also the
        median over its masked images; ``activations``, norm of the difference over their norm,
        where the file has them; ``correlation``, 1 - Pearson's correlation of the finished maps.
        Of a detector ``probabilities`` are the scores of all candidates, and ``boxes`` how far
        an edge of theirs moves, as a share of the input's size.

    Raises:
        VerificationError: a difference exceeds its tolerance, or an output is not finite.
    """
    float_engine = with_examples(open_engine(reference, manifest, "onnxruntime"), manifest)
    emulator: Engine = with_examples(emulate_half(model, manifest), manifest)
    if manifest.detector is not None:
        return _check_detector(float_engine, emulator, manifest, path)
    samples = [
        _measure_differences(float_engine, emulator, images, classes, manifest)
        for images, classes in _test_inputs(manifest)
    ]
    comparison = summarise("the float file", samples, HALF[manifest.precision])
    _raise_on_failure(comparison, manifest)
    engines = [emulator]
    if manifest.precision == "fp16":  # which ONNX Runtime takes as it is
        engines.append(open_engine(path, manifest, "onnxruntime"))
    for engine in engines:
        for reference_check in selftest.check(engine, manifest):
            _raise_on_failure(reference_check, manifest)
    return comparison


def _check_detector(
    float_engine: Engine, emulator: Engine, manifest: Manifest, path: str | os.PathLike[str]
) -> Comparison:
    """Compare a detector's candidates, and the maps of its reference answers."""
    names = ("candidate_scores", "candidate_boxes", "maps")
    samples = []
    for pattern in range(selftest.PATTERNS):
        feeds = {
            "image": selftest.make_input(manifest, pattern),
            "target": detection_selftest.targets_of(manifest, pattern),
        }
        exact, half = (engine.run(feeds, names) for engine in (float_engine, emulator))
        if any(not np.isfinite(values).all() for values in half.values()):
            raise VerificationError(_overflow(manifest))
        scores, boxes = (np.abs(exact[name] - half[name]) for name in names[:2])
        likely = exact["candidate_scores"].max(-1) > manifest.detector.min_score  # type: ignore[union-attr]
        moved = float(boxes[likely].max()) if likely.any() else 0.0
        samples.append(
            {
                "probabilities": float(scores.max()),
                "boxes": moved / max(manifest.preprocess.size),
                "correlation": max(
                    1 - pearson(a, b)
                    for a, b in zip(exact["maps"][0], half["maps"][0], strict=True)
                ),
            }
        )
    comparison = summarise("the float file", samples, HALF[manifest.precision])
    _raise_on_failure(comparison, manifest)
    engines = [emulator]
    if manifest.precision == "fp16":
        engines.append(open_engine(path, manifest, "onnxruntime"))
    for engine in engines:
        problem = detection_selftest.find_problem(engine.run, manifest, ENGINE_REDUCED)
        if problem is not None:
            raise VerificationError(f"in {manifest.precision}, {problem}. No file was written")
    return comparison


def _overflow(manifest: Manifest) -> str:
    return (
        f"in {manifest.precision} an output holds NaN or infinity: activations overflow. No file "
        "was written" + ("; bf16 has a wider range" if manifest.precision == "fp16" else "")
    )


def _raise_on_failure(comparison: Comparison, manifest: Manifest) -> None:
    if comparison.complaint:
        raise VerificationError(
            f"in {manifest.precision}, {comparison.complaint}. No file was written"
            + ("; bf16 has a wider range" if manifest.precision == "fp16" else "")
        )


def _test_inputs(manifest: Manifest) -> list[tuple[NDArray[Any], int]]:
    """List images and classes to explain of each: test patterns alone, then both with two."""
    patterns = [selftest.make_input(manifest, index) for index in range(selftest.PATTERNS)]
    several = min(2, manifest.num_classes)
    return [*((image, 1) for image in patterns), (np.concatenate(patterns), several)]


def _measure_differences(
    float_engine: Engine,
    emulator: Engine,
    images: NDArray[Any],
    classes: int,
    manifest: Manifest,
) -> dict[str, float]:
    names = list(manifest.output_shapes)
    ranks = np.broadcast_to(-1 - np.arange(classes), (len(images), classes))
    float_answers = float_engine.run({"image": images, "target": ranks.astype(np.int64)}, names)
    # Both explain the same classes, for two of nearly equal probability may swap ranks.
    targets = float_answers["targets"]
    answers = emulator.run({"image": images, "target": targets}, names)
    for name, values in answers.items():
        overflowed = ~np.isfinite(values) & np.isfinite(float_answers[name])
        if overflowed.any():
            raise VerificationError(_overflow(manifest))
    p, q = float_answers["probabilities"], answers["probabilities"]
    differences = {"probabilities": float(np.abs(p - q).max())}
    if "activations" in names:
        differences["activations"] = norm_difference(
            answers["activations"], float_answers["activations"]
        )
    if "masked_probabilities" in names:
        a, b = float_answers["masked_probabilities"], answers["masked_probabilities"]
        # Half precision moves pixels across thresholds, so single masks may differ.
        differences["probabilities"] = max(
            differences["probabilities"], float(np.nanmedian(np.abs(a - b)))
        )
    differences["correlation"] = max(
        1 - pearson(a, b)
        for a, b in zip(_maps(float_answers, manifest), _maps(answers, manifest), strict=True)
    )
    return differences


def _maps(answers: Arrays, manifest: Manifest) -> NDArray[np.float32]:
    """Compute the finished maps of all images and classes: [M, H, W]."""
    if manifest.map_method is not None:
        maps = answers["original_maps" if "tft" in manifest.outputs else "maps"]
    else:
        raw = cam.raw_map("gradcam", answers["activations"], answers["gradients"])
        maps = np.asarray(cam.finish(raw, manifest.preprocess.size))
    return maps.reshape(-1, *maps.shape[-2:])
