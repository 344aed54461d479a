"""Add the explaining outputs of a detector to its graph."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ...runtime.cam import Method, add_levels, finish, raw_map
from ...runtime.manifest_parts import Activation, Detector, ExplainedScore
from ..assemble import Assembly, declare
from ..contract_names import OF_DETECTORS, free_contract_names
from ..data_flow import Layer
from ..dims import BATCH, CLASSES
from ..gradient.reverse import reverse
from ..graph_inputs import learn_shapes, lengths_of, new_input, tensor_of
from ..layers import Network
from ..place_sums import sum_over_places
from ..plain_model import PlainModel
from ..recorder import Recorder
from ..tensors import Tensor, unsqueeze
from .dense_head import find_dense_head
from .format import Candidates, Format
from .patches import record_patch_gradients
from .reading import Reading
from .targets import Targets, record_targets

# Of each edge, its place in a box, and in which direction the box grows.
_EDGES = {"left": (0, -1.0), "top": (1, -1.0), "right": (2, 1.0), "bottom": (3, 1.0)}


@dataclass(frozen=True)
class Opened:
    """A detector whose candidates are recorded in its graph.

    Attributes:
        plain: the model.
        recorder: of its graph.
        assembly: what was added so far.
        before: how many nodes the graph had.
        candidates: scores and boxes.
    """

    plain: PlainModel
    recorder: Recorder
    assembly: Assembly
    before: int
    candidates: Candidates

    def end_of(self, score: ExplainedScore) -> Tensor:
        """Return the tensor that gradients begin at."""
        return self.candidates.explained if score == "class" else self.candidates.boxes


def read_candidates(
    plain: PlainModel,
    form: Format,
    activation: Activation | None,
    labels: tuple[str, ...],
    is_stated: bool,
) -> Opened:
    """Record scores and boxes of all candidates, as nodes of the network.

    Args:
        plain: the model.
        form: the format of its outputs.
        activation: of class logits, as the user states it.
        labels: class names as far as they are known.
        is_stated: whether the user names the format.

    Raises:
        ExportError: the outputs cannot be read as the format says.
    """
    recorder = Recorder(plain.graph)
    assembly = Assembly(
        own_outputs=tuple(str(value.name) for value in plain.graph.outputs),
        image=str(plain.image.name),
    )
    before = len(plain.graph)
    free_contract_names(plain.graph, OF_DETECTORS)
    with recorder.part("head"):
        image = tensor_of(plain.image, plain.shapes, recorder)
        recorder.symbols["N"] = lengths_of(image)[0:1]
        candidates = form.read(Reading(plain, recorder, activation, labels, is_stated))
    learn_shapes(plain, recorder)
    return Opened(plain, recorder, assembly, before, candidates)


def assemble_detector(
    opened: Opened,
    network: Network,
    layers: Sequence[Layer],
    methods: Sequence[Method],
    detector: Detector,
) -> Assembly:
    """Record the detections to explain, the gradients at each level, and the maps.

    Gradients are those of the scores as functions of all levels: at each one the others are held
    fixed. For verification ``activations_I`` and ``gradients_I`` of each level are outputs as well.

    Raises:
        ExportError: an operator between a level and the scores has no gradient rule.
    """
    plain, recorder, candidates = opened.plain, opened.recorder, opened.candidates
    taken = {value.name for value in (*plain.graph.inputs, *plain.graph.outputs)}
    name = "whycam_target" if "target" in taken else "target"
    target = new_input(recorder, name, (BATCH, CLASSES, 2), ir.DataType.INT64)
    plain.graph.inputs.append(target.value)
    recorder.symbols["k"] = lengths_of(target)[1:2]
    assembly = opened.assembly
    found = assembly.outputs
    with recorder.part("head"):
        targets = record_targets(
            recorder,
            target,
            candidates,
            plain.size,
            detector.iou,
            detector.min_score,
            detector.ranks,
        )
        found |= targets.outputs(candidates)
        found["candidate_scores"] = candidates.scores
        found["candidate_boxes"] = candidates.boxes
    with recorder.part("gradient"):
        pairs, assembly.rules = _gradients(opened, network, layers, targets, detector.score)
    for index, (activations, gradients) in enumerate(pairs):
        found[f"activations_{index}"], found[f"gradients_{index}"] = activations, gradients
    for index, method in enumerate(methods):
        with recorder.part(f"map/{method}"):
            raws = [raw_map(method, a, g, _weights(method, g)) for a, g in pairs]
            maps = finish(add_levels(raws), detector.map_size)
        found["maps" if index == 0 else f"maps_{method}"] = maps
    declare(plain.graph, assembly, target, None, recorder)
    assembly.nodes = len(plain.graph) - opened.before
    return assembly


def _weights(method: Method, gradients: Tensor) -> Tensor | None:
    return sum_over_places(gradients, mean=True) if method == "gradcam" else None


def nodes_after(network: Network, layers: Sequence[Layer], end: ir.Value) -> list[ir.Node]:
    """List the nodes that compute the end, not going on before the layers."""
    given, needed = {layer.value for layer in layers}, {end}
    nodes = []
    for node in reversed(network.nodes):
        if any(value in needed and value not in given for value in node.outputs):
            needed.update(value for value in node.inputs if value is not None)
            nodes.append(node)
    return nodes[::-1]


def _gradients(
    opened: Opened,
    network: Network,
    layers: Sequence[Layer],
    targets: Targets,
    score: ExplainedScore,
) -> tuple[list[tuple[Tensor, Tensor]], tuple[str, ...]]:
    """Record activations [N, K, h, w] and gradients [N, k, K, h, w] of each level."""
    end = opened.end_of(score)
    seed = _seed(end, targets, score)
    nodes = nodes_after(network, layers, end.value)
    head = find_dense_head(network, layers, end.value, nodes)
    if head is not None:
        of_levels, used = record_patch_gradients(
            opened.recorder, network, head, end.value, seed, targets.candidate
        )
        maps = [tensor_of(layer.value, opened.plain.shapes, opened.recorder) for layer in layers]
        return list(zip(maps, of_levels, strict=True)), used
    gradients, rules = reverse(
        nodes,
        opened.recorder,
        opened.plain.shapes,
        end.value,
        seed,
        [layer.value for layer in layers],
        CLASSES,
    )
    pairs = []
    for layer, gradient in zip(layers, gradients, strict=True):
        tensor = tensor_of(layer.value, opened.plain.shapes, opened.recorder)
        activations = layer.arrangement.record(tensor.cast(ir.DataType.FLOAT), BATCH)
        by_row = layer.arrangement.record(gradient, BATCH * CLASSES)
        pairs.append((activations, by_row.reshape((BATCH, CLASSES, *activations.shape[1:]))))
    return pairs, tuple(rules)


def _seed(end: Tensor, targets: Targets, score: ExplainedScore) -> Tensor:
    """Record d score / d end, [N k, A, C] or [N k, A, 4]; zero where there is no detection."""
    xp = end.recorder.xp
    rows, columns = end.shape[1:]
    at = xp.arange(rows) == targets.candidate[:, :, None]
    if targets.present is not None:
        at = at & unsqueeze(targets.present, [2])
    of_row = at.cast(ir.DataType.FLOAT)[:, :, :, None]
    if score == "class":
        of_column = (xp.arange(columns) == targets.index[:, :, None]).cast(ir.DataType.FLOAT)
        seed = of_row * of_column[:, :, None, :]
    else:
        place, outward = _EDGES[score]
        seed = of_row * end.recorder.constant(outward * np.eye(4, dtype=np.float32)[place])
    flat: Tensor = seed.reshape((BATCH * CLASSES, rows, columns))
    return flat
