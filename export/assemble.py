"""Add the explaining outputs of the graph contract to a classifier's graph, part by part.

Each new node is named after its part (``whycam/gradient/...``, ``whycam/map/...``), so that
quantisation, cutting and half precision can tell the parts apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import onnx_ir as ir

from ..runtime.cam import (
    Method,
    Score,
    ablation_weights,
    attention_relevance,
    finish,
    fuse,
    raw_map,
)
from ..runtime.errors import ExportError
from ..runtime.manifest import Outputs, Preprocess
from ..runtime.place_weights import REGION
from ..runtime.search import Prior
from ..runtime.tft import Tft
from .ablation import logit_drops
from .ablation_head import Head
from .attention import AttentionMaps
from .contract_names import free_contract_names
from .data_flow import Layer
from .dims import BATCH, dim_text
from .gradient.reverse import reverse
from .graph_inputs import add_inputs, tensor_of
from .heads import OutputMeaning
from .layers import Network
from .place_sums import sum_over_places
from .recorder import Recorder
from .scores import Scores
from .seeds import record_seed
from .subgraph import copy_between
from .sweep import record_search, record_sweep
from .tensors import Tensor


@dataclass(frozen=True)
class Request:
    """What to add to a graph.

    Attributes:
        outputs: groups of outputs.
        methods: the methods that the file supports.
        map_methods: methods whose finished maps are outputs; those of the first are ``maps``.
        gradient_score, ablation_score: the class scores that gradients and Ablation-CAM explain.
        tft: how the graph thresholds its maps; None if it does not.
        prior: where a search of thresholds starts.
        top: how many of the most probable classes are explained; None: those of the input
            ``target``.
        preprocess: what the graph does to images; None if it takes prepared ones.
        source_size: (h, w) of these images; None: any.
    """

    outputs: tuple[Outputs, ...]
    methods: tuple[Method, ...]
    map_methods: tuple[Method, ...] = ()
    gradient_score: Score = "logit"
    ablation_score: Score = "prob"
    tft: Tft | None = None
    prior: Prior | None = None
    top: int | None = None
    preprocess: Preprocess | None = None
    source_size: tuple[int, int] | None = None


@dataclass
class Assembly:
    """What was added to a graph.

    Attributes:
        outputs: contract name to tensor, of all outputs, in the contract's order; besides those
            that a file declares, what verification asks for.
        names: contract name to the graph's own name, where they differ.
        own_outputs: the outputs that the graph had before.
        image: the name of the image input.
        network_input: the network's input after preprocessing, [N, C, H, W] or [N, H, W, C].
        rules: the operators whose gradients were needed.
        nodes: how many nodes were added.
    """

    outputs: dict[str, Tensor] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    own_outputs: tuple[str, ...] = ()
    image: str = "image"
    network_input: Tensor | None = None
    rules: tuple[str, ...] = ()
    nodes: int = 0


def assemble(
    network: Network,
    meaning: OutputMeaning,
    layers: Sequence[Layer],
    head: Head | None,
    request: Request,
    attention: AttentionMaps | None = None,
) -> Assembly:
    """Record all parts of an explaining graph.

    Args:
        network: its graph is extended in place.
        meaning: of its outputs.
        layers: to explain, in the network's order; the target layer is the last one.
        head: in parts, for Ablation-CAM; None without it.
        request: what to add.
        attention: whose maps ``legrad`` reads; None without it.

    Raises:
        ExportError: a part cannot be added to this network.
    """
    graph = network.plain.graph
    recorder = Recorder(graph)
    assembly = Assembly(own_outputs=tuple(str(value.name) for value in graph.outputs))
    before = len(graph)
    free_contract_names(graph)
    with recorder.part("preprocess"):
        inputs = add_inputs(
            network, meaning, recorder, request.top, request.preprocess, request.source_size
        )
    assembly.image, assembly.network_input = inputs.name, inputs.image
    found = assembly.outputs
    with recorder.part("head"):
        scores = Scores(network, meaning, recorder, inputs, request.top)
        found["probabilities"], found["targets"] = scores.probabilities, scores.targets
        found |= scores.split_probabilities()
    region = None
    if meaning.place_scores is not None:
        places, shapes = meaning.place_scores, network.plain.shapes
        region = tensor_of(places.region, shapes, recorder)
        with recorder.part("head"):
            own = tensor_of(places.value, shapes, recorder).cast(ir.DataType.FLOAT)
            found["place_scores"] = own.transpose(places.order)
    builder = _Builder(request, scores)
    with recorder.part("gradient"):
        every = [*layers, attention.layer] if attention is not None else layers
        pairs, assembly.rules = builder.gradients(every)
    of_attention = None if attention is None else pairs.pop()
    (found["activations"], found["gradients"]) = pairs[-1]
    weights = None
    if head is not None:
        with recorder.part("ablation"):
            weights = builder.ablation(head)
        found["ablation_weights"] = weights
    for index, (activations, gradients) in enumerate(pairs[:-1]):
        found[f"activations_{index}"], found[f"gradients_{index}"] = activations, gradients
    if of_attention is not None:
        found["attention_maps"], found["attention_gradients"] = of_attention
    for method in request.map_methods:
        first = method == request.map_methods[0]
        with recorder.part(f"map/{method}"):
            if method == "legrad":
                assert attention is not None
                assert of_attention is not None
                maps = builder.map_of_attention(attention, of_attention[1])
            else:
                maps = builder.map(method, pairs if first else pairs[-1:], weights)
        name = "original_maps" if request.tft is not None else "maps"
        found[name if first else f"maps_{method}"] = maps
    if request.tft is not None:
        names = ("maps", "thresholds", "rpi", "masked_probabilities")
        with recorder.part("sweep"):
            swept = builder.sweep(found["original_maps"], request.tft)
        found.update(zip(names, swept, strict=True))
    declare(graph, assembly, inputs.target, inputs.embeddings, recorder, region)
    assembly.nodes = len(graph) - before
    return assembly


def declare(
    graph: ir.Graph,
    assembly: Assembly,
    target: Tensor | None,
    embeddings: Tensor | None,
    recorder: Recorder,
    region: Tensor | None = None,
) -> None:
    """Make the new tensors graph outputs, under the contract's names where these are free."""
    taken = {str(value.name) for value in (*graph.inputs, *graph.outputs)} - {"target"}
    for name, own in (
        ("target", target),
        ("class_embeddings", embeddings),
        (REGION, region),
    ):
        if own is not None and own.value.name != name:
            assembly.names[name] = str(own.value.name)
    if assembly.image != "image":
        assembly.names["image"] = assembly.image
    for name, tensor in assembly.outputs.items():
        output_name = f"whycam_{name}" if name in taken else name
        value = tensor.value
        if value.is_graph_output() or value.is_graph_input() or value.is_initializer():
            with recorder.part("outputs"):
                value = recorder.op("Identity", [tensor], tensor.shape).value
        value.name = output_name
        value.shape = ir.Shape([dim_text(side) for side in tensor.shape])
        value.type = ir.TensorType(tensor.dtype)
        graph.outputs.append(value)
        if output_name != name:
            assembly.names[name] = output_name


class _Builder:
    """Records the parts of one graph."""

    def __init__(self, request: Request, scores: Scores) -> None:
        self.request = request
        self.scores = scores
        self.network = scores.network
        self.shapes = scores.shapes
        self.meaning = scores.meaning
        self.recorder = scores.recorder
        self.size = self.network.plain.input_dims  # of maps as well
        self._copies = 0

    def gradients(
        self, layers: Sequence[Layer]
    ) -> tuple[list[tuple[Tensor, Tensor]], tuple[str, ...]]:
        """Record activations [N, K, h, w] and gradients [N, k, K, h, w] of each layer."""
        end, seed = record_seed(self.scores, self.request.gradient_score)
        classes = self.scores.classes
        gradients, rules = reverse(
            self.network.nodes,
            self.recorder,
            self.shapes,
            end,
            seed,
            [layer.value for layer in layers],
            classes,
        )
        pairs = []
        for layer, gradient in zip(layers, gradients, strict=True):
            tensor = tensor_of(layer.value, self.shapes, self.recorder).cast(ir.DataType.FLOAT)
            activations = layer.arrangement.record(tensor, BATCH)
            by_row = layer.arrangement.record(gradient, BATCH * classes)
            pairs.append((activations, by_row.reshape((BATCH, classes, *activations.shape[1:]))))
        return pairs, tuple(rules)

    def ablation(self, head: Head) -> Tensor:
        """Record Ablation-CAM's channel weights, [N, k, K]."""
        scores = self.scores
        own_logits = scores.network_logits
        drops = logit_drops(self.network, head, self.recorder, own_logits)
        if scores.similarity is not None:  # class scores are not linear in embeddings
            without = own_logits[:, None] - drops
            rows = scores.scores_of(without.reshape((BATCH * without.shape[1], without.shape[2])))
            drops = scores.logits[:, None] - rows.reshape(
                (BATCH, without.shape[1], scores.inputs.count)
            )
        parts = [
            self.recorder.xp.concat([part * -0.5, part * 0.5], axis=2)
            if head.task == "binary"
            else part
            for head, part in zip(self.meaning.heads, scores.by_raw_head(drops), strict=True)
        ]
        weights = [
            ablation_weights(logits, part, own, self.request.ablation_score, head.task == "sigmoid")
            for head, logits, part, own in zip(
                self.meaning.heads,
                scores.by_head(scores.logits),
                parts,
                scores.by_head(scores.one_hot),
                strict=True,
            )
        ]
        if len(weights) == 1:
            return weights[0]  # type: ignore[no-any-return]
        # Each class has a weight from its own head alone.
        total = None
        for of_head, own in zip(weights, scores.by_head(scores.one_hot), strict=True):
            part = of_head * own.sum(-1, keepdims=True)
            total = part if total is None else total + part
        assert total is not None
        return total  # type: ignore[no-any-return]

    def map(
        self, method: Method, pairs: Sequence[tuple[Tensor, Tensor]], weights: Tensor | None
    ) -> Tensor:
        """Record the finished map of one method, [N, k, H, W]."""
        raws = [raw_map(method, a, g, self._weights(method, g, weights)) for a, g in pairs]
        return finish(fuse(raws) if len(raws) > 1 else raws[0], self.size)  # type: ignore[no-any-return]

    def _weights(self, method: Method, gradients: Tensor, ablation: Tensor | None) -> Tensor | None:
        """The weights of a method, where they need not be taken from all of the gradients."""
        if method == "ablation":
            return ablation
        if method not in ("gradcam", "cam"):
            return None
        return sum_over_places(gradients, mean=method == "gradcam")

    def map_of_attention(self, attention: AttentionMaps, gradients: Tensor) -> Tensor:
        """Record LeGrad's finished map, [N, k, H, W], of gradients [N, k, keys, heads, queries]."""
        raw = attention.record(attention_relevance(gradients))
        return finish(raw, self.size)  # type: ignore[no-any-return]

    def sweep(self, maps: Tensor, tft: Tft) -> list[Tensor]:
        """Record thresholded maps, thresholds, rpi and masked probabilities."""
        indices = [self.scores.probabilities, self.scores.targets]
        own = self.recorder.op("GatherElements", indices, self.scores.targets.shape, axis=1)
        if self.request.prior is None:
            return record_sweep(maps, own, tft, self._masked)
        return record_search(maps, own, tft, self.request.prior, self._masked)

    def _masked(self, masks: Tensor) -> Tensor:
        """Record p_c of masked images: masks [N, k, T, H, W] to [N, k, T]."""
        scores, image = self.scores, self.scores.inputs.image
        if image.dtype == ir.DataType.UINT8:
            raise ExportError(
                "TFT masks the normalised image, but this network normalises uint8 pixels itself: "
                "export without the output tft"
            )
        mask = masks[..., None] if self.network.plain.layout == "NHWC" else masks[:, :, :, None]
        shown = (mask.cast(image.dtype) * image[:, None, None]).reshape(
            (BATCH * scores.classes * masks.shape[2], *image.shape[1:])
        )
        prefix = f"whycam/sweep/{self._copies}"
        self._copies += 1
        start = image.value
        raw = copy_between(
            self.network.nodes, start, self.meaning.logits, shown, self.shapes, prefix
        )
        every = scores.probabilities_of(scores.scores_of(raw))
        n, k, steps = masks.shape[:3]
        every = every.reshape((n, k, steps, scores.inputs.count))
        return (every * scores.one_hot[:, :, None]).sum(-1)
