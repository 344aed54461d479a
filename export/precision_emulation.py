"""Hold a graph in half precision against the float file it was made of.

ONNX Runtime's CPU has no arithmetic in fp16 or bf16: it computes fp16 graphs in float32 and leaves
out most roundings on the way, and refuses bf16 graphs. So the finished graph is run with its
roundings made explicit: each operation in half precision computes in float32 from rounded inputs,
and its result is rounded. That is what tensor cores do at worst, and shows what overflows.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..runtime import cam
from ..runtime.comparison import HALF, Comparison, summarise
from ..runtime.engines import selftest
from ..runtime.engines.base import Engine
from ..runtime.engines.chunks import Arrays
from ..runtime.engines.interface import renamed, run_graph
from ..runtime.engines.opening import open_engine
from ..runtime.errors import EngineError, MissingExtraError, VerificationError, reason_of
from ..runtime.manifest import Manifest
from ..runtime.similarity import norm_difference, pearson

if TYPE_CHECKING:
    import onnx


def with_explicit_rounding(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph for an engine without half precision, see above."""
    import onnx

    halves = (onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)
    inferred = onnx.shape_inference.infer_shapes(model)
    types = {v.name: v.type.tensor_type.elem_type for v in inferred.graph.value_info}
    types |= {each.name: each.data_type for each in inferred.graph.initializer}
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
        made = [name for name in node.output if types.get(name) in halves]
        if node.op_type != "Cast":
            for position, name in enumerate(node.output):
                if name in made:
                    node.output[position] = f"{name}_unrounded"
        graph.node.append(node)
        if node.op_type != "Cast":
            for name in made:
                cast(f"{name}_unrounded", name, types[name])
    explicit = onnx.ModelProto()
    explicit.CopyFrom(model)
    explicit.graph.CopyFrom(graph)
    return explicit


class PrecisionEmulator:
    """Runs a graph in half precision with explicit roundings, in ONNX Runtime on the CPU.

    Raises:
        EngineError: ONNX Runtime cannot run it.
        MissingExtraError: it is not installed.
    """

    name = "rounded"
    description = "ONNX Runtime, CPU, every half-precision result rounded"
    reason = "the CPU has no half precision"

    def __init__(
        self, model: onnx.ModelProto, manifest: Manifest, threads: int | None = None
    ) -> None:
        self._manifest = manifest
        try:
            import onnxruntime
        except ImportError as error:
            raise MissingExtraError("onnxruntime", "cpu", "checking half precision") from error
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        if threads is not None:
            options.intra_op_num_threads = threads
        try:
            self._session = onnxruntime.InferenceSession(
                with_explicit_rounding(model).SerializeToString(),
                options,
                providers=["CPUExecutionProvider"],
            )
        except Exception as error:
            raise EngineError(
                f"ONNX Runtime cannot run the converted graph: {reason_of(error)}"
            ) from error

    def run(self, feeds: Arrays, outputs: Sequence[str]) -> dict[str, NDArray[Any]]:
        """As ``Engine.run``."""
        return run_graph(renamed(self._run, self._manifest), feeds, outputs, self._manifest)

    def _run(self, feeds: Arrays, outputs: Sequence[str]) -> dict[str, NDArray[Any]]:
        try:
            found = self._session.run(list(outputs), dict(feeds))
        except Exception as error:
            raise EngineError(
                f"ONNX Runtime failed on the converted graph: {reason_of(error)}"
            ) from error
        return dict(zip(outputs, found, strict=True))


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
        ``probabilities``, absolute, in a graph with a sweep the median over its masked images too;
        ``activations``, the norm of the difference relative to theirs, where the file has them;
        ``correlation``: 1 - Pearson's correlation of the finished maps.

    Raises:
        VerificationError: it differs by more than is allowed, or is not finite.
    """
    before = open_engine(reference, manifest, "onnxruntime")
    after: Engine = PrecisionEmulator(model, manifest)
    samples = [
        _differences(before, after, image, classes, manifest)
        for image, classes in _inputs(manifest)
    ]
    compared = summarise("the float file", samples, HALF[manifest.precision])
    _refuse(compared, manifest)
    engines = [after]
    if manifest.precision == "fp16":  # which ONNX Runtime takes as it is
        engines.append(open_engine(path, manifest, "onnxruntime"))
    for engine in engines:
        for each in selftest.check(engine, manifest):
            _refuse(each, manifest)
    return compared


def _refuse(compared: Comparison, manifest: Manifest) -> None:
    if compared.complaint:
        raise VerificationError(
            f"in {manifest.precision}, {compared.complaint}. No file was written"
            + ("; bf16 has a wider range" if manifest.precision == "fp16" else "")
        )


def _inputs(manifest: Manifest) -> list[tuple[NDArray[Any], int]]:
    """Pictures and how many classes each: two test patterns, then both at once with two classes."""
    fed = [selftest.feed(manifest, index) for index in range(selftest.PATTERNS)]
    several = min(2, manifest.num_classes)
    return [*((image, 1) for image in fed), (np.concatenate(fed), several)]


def _differences(
    before: Engine, after: Engine, image: NDArray[Any], classes: int, manifest: Manifest
) -> dict[str, float]:
    names = list(manifest.output_shapes)
    ranks = np.broadcast_to(-1 - np.arange(classes), (len(image), classes))
    float_answers = before.run({"image": image, "target": ranks.astype(np.int64)}, names)
    # The same classes: two that are all but equally probable may change places.
    targets = float_answers["targets"]
    answers = after.run({"image": image, "target": targets}, names)
    for name, values in answers.items():
        bad = ~np.isfinite(values) & np.isfinite(float_answers[name])
        if bad.any():
            raise VerificationError(
                f"in {manifest.precision} the output '{name}' holds NaN or infinity: activations "
                "leave the range. No file was written"
                + ("; bf16 has a wider one" if manifest.precision == "fp16" else "")
            )
    p, q = float_answers["probabilities"], answers["probabilities"]
    found = {"probabilities": float(np.abs(p - q).max())}
    if "activations" in names:
        found["activations"] = norm_difference(answers["activations"], float_answers["activations"])
    if "masked_probabilities" in names:
        a, b = float_answers["masked_probabilities"], answers["masked_probabilities"]
        # Half precision moves pixels across thresholds, so single masks may differ: the median.
        found["probabilities"] = max(found["probabilities"], float(np.nanmedian(np.abs(a - b))))
    found["correlation"] = max(
        1 - pearson(a, b)
        for a, b in zip(_maps(float_answers, manifest), _maps(answers, manifest), strict=True)
    )
    return found


def _maps(answers: Arrays, manifest: Manifest) -> NDArray[np.float32]:
    """Finished maps, one after the other: [M, H, W]."""
    if manifest.map_method is not None:
        maps = answers["original_maps" if "tft" in manifest.outputs else "maps"]
    else:
        raw = cam.raw_map("gradcam", answers["activations"], answers["gradients"])
        maps = np.asarray(cam.finish(raw, manifest.preprocess.size))
    return maps.reshape(-1, *maps.shape[-2:])
