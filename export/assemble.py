"""Add the explaining outputs of the graph contract to a classifier's graph, part by part.

Each new node is named after its part (``whycam/gradient/...``, ``whycam/map/...``), so that
quantisation, cutting and half precision can tell the parts apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
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
from ..runtime.cosine import cosine_logits, embedding_gradient, normalise
from ..runtime.errors import ExportError
from ..runtime.manifest import Outputs, Preprocess, Task
from ..runtime.search import Prior
from ..runtime.targets import RANKS, count_ranks
from ..runtime.tft import Tft
from .ablation import logit_drops
from .ablation_head import Head
from .attention import AttentionMaps
from .data_flow import Layer
from .dims import BATCH, CLASSES, PROMPTS, Dim, Size, dim_text, product
from .gradient.reverse import reverse
from .heads import OutputMeaning
from .layers import Network
from .output_meaning import HeadMeaning
from .recorder import FLOAT32_MAX, Recorder, Tensor
from .resample import record_preprocess
from .subgraph import copy_between
from .sweep import record_search, record_sweep
from .zero_shot import Similarity


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
    builder = _Builder(network, meaning, request, recorder)
    with recorder.part("preprocess"):
        assembly.image = builder.add_inputs()
    assembly.network_input = builder.image
    found = assembly.outputs
    with recorder.part("head"):
        builder.record_scores()
        found["probabilities"], found["targets"] = builder.probabilities, builder.targets
        found |= builder.split_probabilities()
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
    _declare(graph, assembly, builder)
    assembly.nodes = len(graph) - before
    return assembly


CONTRACT = (
    "target",
    "class_embeddings",
    "probabilities",
    "targets",
    "activations",
    "gradients",
    "ablation_weights",
    "attention_maps",
    "attention_gradients",
    "maps",
    "original_maps",
    "thresholds",
    "rpi",
    "masked_probabilities",
)


# Each followed by the name of a method or a head.
_CONTRACT_PREFIXES = ("maps_", "probabilities_")


def free_contract_names(graph: ir.Graph) -> None:
    """Rename tensors inside the graph whose names the contract reserves."""
    reserved = {value.name for value in (*graph.inputs, *graph.outputs)}
    for node in graph:
        for value in node.outputs:
            if _is_of_contract(value.name) and value.name not in reserved:
                value.name = f"n/{value.name}"
    for value in list(graph.initializers.values()):
        if _is_of_contract(value.name):
            value.name = f"n/{value.name}"


def _is_of_contract(name: str | None) -> bool:
    return name is not None and (name in CONTRACT or name.startswith(_CONTRACT_PREFIXES))


def _declare(graph: ir.Graph, assembly: Assembly, builder: _Builder) -> None:
    """Make the new tensors graph outputs, under the contract's names where these are free."""
    taken = {str(value.name) for value in (*graph.inputs, *graph.outputs)} - {"target"}
    for name, own in (
        ("target", builder.target_input),
        ("class_embeddings", builder.embeddings_input),
    ):
        if own is not None and own.name != name:
            assembly.names[name] = str(own.name)
    if assembly.image != "image":
        assembly.names["image"] = assembly.image
    for name, tensor in assembly.outputs.items():
        output_name = f"whycam_{name}" if name in taken else name
        value = tensor.value
        if value.is_graph_output() or value.is_graph_input() or value.is_initializer():
            with builder.recorder.part("outputs"):
                value = builder.recorder.op("Identity", [tensor], tensor.shape).value
        value.name = output_name
        value.shape = ir.Shape([dim_text(side) for side in tensor.shape])
        value.type = ir.TensorType(tensor.dtype)
        graph.outputs.append(value)
        if output_name != name:
            assembly.names[name] = output_name


class _Builder:
    """Records the parts of one graph."""

    def __init__(
        self,
        network: Network,
        meaning: OutputMeaning,
        request: Request,
        recorder: Recorder,
    ) -> None:
        self.network = network
        self.shapes = network.plain.shapes
        self.meaning = meaning
        self.request = request
        self.recorder = recorder
        self.xp = recorder.xp
        self.size = network.plain.input_dims  # of maps as well
        self.classes: Dim = CLASSES if request.top is None else request.top
        self.similarity = meaning.similarity
        self.count: Dim = meaning.num_classes  # C
        self.class_embeddings: Tensor | None = None
        self.target_input: ir.Value | None = None
        self.embeddings_input: ir.Value | None = None
        self._copies = 0

    def add_inputs(self) -> str:
        """Add the inputs ``image`` and ``target``; returns the name of the first."""
        graph, request = self.recorder.graph, self.request
        own = self.network.plain.image
        fed = self._existing(own)
        if request.preprocess is not None:
            sides: tuple[Dim, ...] = request.source_size or (Size(1, ("h",)), Size(1, ("w",)))
            fed = self._input(
                "image" if own.name == "image" else str(own.name),
                (BATCH, *sides, 3),
                ir.DataType.UINT8,
            )
        names = {value.name for value in (*graph.inputs, *graph.outputs)}
        if request.top is None:
            name = "whycam_target" if "target" in names else "target"
            target = self._input(name, (BATCH, CLASSES), ir.DataType.INT64)
            self.target_input = target.value
            self.target: Tensor | None = target
            graph.inputs.append(target.value)
            of_target = self.recorder.op("Shape", [target], (2,), ir.DataType.INT64)
            self.recorder.symbols["k"] = of_target[1:2]
        else:
            self.target = None
        if self.similarity is not None:
            self.class_embeddings = self._add_class_embeddings(self.similarity, names)
        of_image = self.recorder.op("Shape", [fed], (4,), ir.DataType.INT64)
        self.recorder.symbols["N"] = of_image[0:1]
        sizes = self.network.plain.sizes
        if sizes is not None:
            first = 2 if self.network.plain.layout == "NCHW" else 1
            for axis, symbol in ((first, "H"), (first + 1, "W")):
                side = of_image[axis : axis + 1]
                self.recorder.symbols[symbol] = side if sizes.step == 1 else side // sizes.step
        if request.preprocess is None:
            self.image = self._existing(own)
            return str(own.name)
        if request.source_size is None:
            self.recorder.symbols["h"], self.recorder.symbols["w"] = of_image[1:2], of_image[2:3]
        layout = self.network.plain.layout
        prepared = record_preprocess(
            self.recorder,
            fed,
            request.preprocess,
            layout,
            request.source_size,
        )
        self._replace_input(own, fed.value, prepared)
        self.image = prepared
        return str(fed.value.name)

    def _add_class_embeddings(self, similarity: Similarity, taken: set[str | None]) -> Tensor:
        """Add the input ``class_embeddings``, or the constant; returns them normalised, [C, D]."""
        if similarity.embeddings is not None:
            return self.recorder.constant(similarity.embeddings)
        raw = self.shapes.dims[self.meaning.logits]
        length = product([side for side in raw if isinstance(side, int)])
        name = "whycam_class_embeddings" if "class_embeddings" in taken else "class_embeddings"
        self.count = PROMPTS
        fed = self._input(name, (PROMPTS, length), ir.DataType.FLOAT)
        self.embeddings_input = fed.value
        self.recorder.graph.inputs.append(fed.value)
        shape = self.recorder.op("Shape", [fed], (2,), ir.DataType.INT64)
        self.recorder.symbols["C"] = shape[0:1]
        return normalise(fed)  # type: ignore[no-any-return]

    def _replace_input(self, own: ir.Value, fed: ir.Value, prepared: Tensor) -> None:
        """Let the network read the preprocessed image, and the graph take the image itself."""
        graph = self.recorder.graph
        place = list(graph.inputs).index(own)
        mine = set(self.network.nodes)
        for use in list(own.uses()):
            if use.node in mine:
                use.node.replace_input_with(use.idx, prepared.value)
        graph.inputs[place] = fed
        own.name = f"n/{own.name}"
        # From here on the network begins at the preprocessed image.
        self.shapes.dims[prepared.value] = self.shapes.dims[own]
        self.shapes.dtypes[prepared.value] = self.shapes.dtypes[own]

    def _input(self, name: str, dims: Sequence[Dim], dtype: ir.DataType) -> Tensor:
        shape = ir.Shape([dim_text(side) for side in dims])
        value = ir.Value(name=name, shape=shape, type=ir.TensorType(dtype))
        return Tensor(self.recorder, value, tuple(dims), dtype)

    def _existing(self, value: ir.Value) -> Tensor:
        return Tensor(self.recorder, value, self.shapes.dims[value], self.shapes.dtypes[value])

    def record_scores(self) -> None:
        """Record logits, probabilities and the classes to explain."""
        self.logits = self._scores(self._existing(self.meaning.logits))
        self.probabilities = self._probabilities(self.logits, reuses_outputs=True)
        self.targets = self._resolve_targets()

    def _scores(self, raw: Tensor) -> Tensor:
        """Record class scores float32 [rows, C] from the network's scores or embeddings."""
        flat = raw.cast(ir.DataType.FLOAT).reshape((raw.shape[0], -1))
        if self.similarity is not None:
            scale, bias = self.similarity.scale, self.similarity.bias
            return cosine_logits(flat, self.class_embeddings, scale, bias)  # type: ignore[no-any-return]
        if self.meaning.single is not None:
            return self._head_scores(flat, self.meaning.single.task)
        parts = [
            self._head_scores(flat[:, place], head.task)
            for head, place in zip(self.meaning.heads, self.meaning.raw_places, strict=True)
        ]
        return self.xp.concat(parts, axis=1)

    def _head_scores(self, raw: Tensor, task: Task) -> Tensor:
        return self.xp.concat([raw * -0.5, raw * 0.5], axis=1) if task == "binary" else raw

    def _probabilities(self, logits: Tensor, reuses_outputs: bool = False) -> Tensor:
        """Record the probabilities of all classes, [rows, C]."""
        parts = []
        for head, of_head in zip(self.meaning.heads, self._by_head(logits), strict=True):
            if reuses_outputs and self._is_probability(head):
                parts.append(self._existing(head.output))
            elif head.task == "none":
                parts.append(of_head)
            elif head.task == "sigmoid":
                parts.append(self._sigmoid(of_head))
            else:
                parts.append(self.recorder.op("Softmax", [of_head], of_head.shape, axis=-1))
        return parts[0] if len(parts) == 1 else self.xp.concat(parts, axis=1)

    def _is_probability(self, head: HeadMeaning) -> bool:
        """Tell whether a head's own output is its probabilities, float32 [N, C]."""
        own = {"softmax": "Softmax", "sigmoid": "Sigmoid"}
        return (
            head.activation is not None
            and own.get(head.task) == head.activation
            and self.shapes.dims[head.output] == (BATCH, head.num_classes)
            and self.shapes.dtypes[head.output] == ir.DataType.FLOAT
        )

    def _by_head(self, classes: Tensor) -> list[Tensor]:
        """Split what holds a number for each class along its last axis."""
        if self.meaning.single is not None:
            return [classes]
        return [classes[..., place] for place in self.meaning.places]

    def _by_raw_head(self, scores: Tensor) -> list[Tensor]:
        """Split what holds the network's own numbers along its last axis."""
        if self.meaning.single is not None:
            return [scores]
        return [scores[..., place] for place in self.meaning.raw_places]

    def split_probabilities(self) -> dict[str, Tensor]:
        """Record each head's probabilities as an output, where there are several heads."""
        if self.meaning.single is not None:
            return {}
        parts = self._by_head(self.probabilities)
        return {
            f"probabilities_{head.name}": part
            for head, part in zip(self.meaning.heads, parts, strict=True)
        }

    def _resolve_targets(self) -> Tensor:
        """Record the classes to explain, int64 [N, k]: ranks are replaced by classes.

        Of several heads, the ranks of one follow those of the heads before it.
        """
        ranked = []
        for place, of_head in zip(self.meaning.places, self._by_head(self.logits), strict=True):
            length = of_head.shape[1]
            count = self.request.top or (count_ranks(length) if isinstance(length, int) else RANKS)
            best = self._top(of_head, count)
            ranked.append(best if place.start == 0 else best + place.start)
        best = ranked[0] if len(ranked) == 1 else self.xp.concat(ranked, axis=1)
        if self.target is None:
            return best
        target, ranks = self.target, best.shape[1]
        assert isinstance(ranks, int)
        rank = self.xp.minimum(self.xp.maximum(-1 - target, 0), ranks - 1)
        if not isinstance(self.count, int):
            rank = self.xp.minimum(rank, self.recorder.length(self.count) - 1)
        chosen = self.recorder.op("GatherElements", [best, rank], target.shape, axis=1)
        return self.xp.where(target < 0, chosen, target)

    def _top(self, logits: Tensor, count: int) -> Tensor:
        length = self.recorder.constant(np.array([count], np.int64))
        values, indices = (self.recorder.name_for(f"TopK_{kind}") for kind in ("values", "indices"))
        outputs = [
            ir.Value(name=values, type=ir.TensorType(ir.DataType.FLOAT)),
            ir.Value(name=indices, type=ir.TensorType(ir.DataType.INT64)),
        ]
        if not isinstance(self.count, int):  # there may be fewer classes than ranks
            edges = self.recorder.constant(np.array([0, 0, 0, count - 1], np.int64))
            least = self.recorder.constant(-FLOAT32_MAX, ir.DataType.FLOAT)
            dims = (BATCH, PROMPTS + (count - 1))
            logits = self.recorder.op("Pad", [logits, edges, least], dims)
        node = ir.Node(
            "", "TopK", [logits.value, length.value], {"axis": ir.AttrInt64("axis", -1)},
            outputs=outputs, name=self.recorder.name_for("TopK"),
        )  # fmt: skip
        self.recorder.graph.append(node)
        return Tensor(self.recorder, outputs[1], (BATCH, count), ir.DataType.INT64)

    @property
    def selected(self) -> Tensor:
        """One-hot of the explained classes, float32 [N, k, C]."""
        if isinstance(self.count, int):
            every = self.xp.arange(self.count)
        else:
            every = self.recorder.range(PROMPTS)
        return (every == self.targets[:, :, None]).cast(ir.DataType.FLOAT)

    def gradients(
        self, layers: Sequence[Layer]
    ) -> tuple[list[tuple[Tensor, Tensor]], tuple[str, ...]]:
        """Record activations [N, K, h, w] and gradients [N, k, K, h, w] of each layer."""
        seed = self.selected
        self.one_hot = seed
        if self.request.gradient_score == "prob":
            if not self.meaning.has_probabilities:
                raise ExportError("score prob needs probabilities, and task none has none")
            seed = self._seed_of_probability(seed)
        end, flat = self.meaning.logits, self._flat_seed(seed)
        rows = self._rows_of_last_layer() if self.request.gradient_score == "logit" else None
        if rows is not None:
            end, flat = rows
        gradients, rules = reverse(
            self.network.nodes,
            self.recorder,
            self.shapes,
            end,
            flat,
            [layer.value for layer in layers],
            self.classes,
        )
        pairs = []
        for layer, gradient in zip(layers, gradients, strict=True):
            tensor = self._existing(layer.value).cast(ir.DataType.FLOAT)
            activations = layer.arrangement.record(tensor, BATCH)
            by_row = layer.arrangement.record(gradient, BATCH * self.classes)
            pairs.append(
                (activations, by_row.reshape((BATCH, self.classes, *activations.shape[1:])))
            )
        return pairs, tuple(rules)

    def _seed_of_probability(self, one_hot: Tensor) -> Tensor:
        """Record d p_c / d logits, [N, k, C]."""
        parts = []
        for head, own, p, logits in zip(
            self.meaning.heads,
            self._by_head(one_hot),
            self._by_head(self.probabilities[:, None]),
            self._by_head(self.logits[:, None]),
            strict=True,
        ):
            if head.task == "sigmoid":
                # 1 - p as the sigmoid of -z: the difference loses its digits where p is near 1.
                parts.append(own * (p * self._sigmoid(-logits)))
            else:
                parts.append((own * p).sum(-1, keepdims=True) * (own - p))
        return parts[0] if len(parts) == 1 else self.xp.concat(parts, axis=2)

    def _sigmoid(self, logits: Tensor) -> Tensor:
        """Record a sigmoid; of similarities with all digits of small results.

        SigLIP's are often 1e-5 and less, where the operator Sigmoid of ONNX Runtime is off by parts
        of them. A network's own Sigmoid, and so its copies on masked images, stay that operator.
        """
        if self.similarity is None:
            return self.recorder.op("Sigmoid", [logits], logits.shape)
        return 1.0 / (self.xp.exp(-logits) + 1.0)

    def _flat_seed(self, seed: Tensor) -> Tensor:
        """Reshape [N, k, C] to the gradient of the network's logits, with N k for N."""
        if self.similarity is not None:
            flat = self._embedding_seed(seed, self.similarity)
        else:
            flat = seed.reshape((BATCH * self.classes, self.count))
        parts = []
        for head, of_head in zip(self.meaning.heads, self._by_head(flat), strict=True):
            if head.task == "binary":
                halves = self.recorder.constant(np.array([[-0.5], [0.5]], np.float32))
                parts.append(of_head @ halves)
            else:
                parts.append(of_head)
        flat = parts[0] if len(parts) == 1 else self.xp.concat(parts, axis=1)
        raw = self.shapes.dims[self.meaning.logits]
        return flat.reshape(
            [
                side * self.classes if isinstance(side, Size) and side.counts_images else side
                for side in raw
            ]
        )

    def _embedding_seed(self, seed: Tensor, similarity: Similarity) -> Tensor:
        """Record the gradient of the image embedding, [N, k, D], from that of class scores."""
        classes = self.class_embeddings
        assert classes is not None
        length = classes.shape[1]
        if self.request.gradient_score == "logit":
            shape = (BATCH, self.classes, length)
            directions = self.recorder.op("Gather", [classes, self.targets], shape, axis=0)
        else:
            directions = seed @ classes
        embeddings = self._existing(self.meaning.logits).cast(ir.DataType.FLOAT)
        each = embeddings.reshape((BATCH, 1, length))
        return embedding_gradient(each, directions, similarity.scale)  # type: ignore[no-any-return]

    def _rows_of_last_layer(self) -> tuple[ir.Value, Tensor] | None:
        """Find the last linear layer's input and its gradient, the class's row of weights.

        A one-hot seed times all weights is one row of them, so the others need not be read.
        """
        if self.similarity is not None:
            return None
        node = self.meaning.logits.producer()
        if node is not None and node.op_type == "Add":
            inputs = [value for value in node.inputs if value is not None]
            products = [value for value in inputs if value.const_value is None]
            node = products[0].producer() if len(products) == 1 else None
        head = self.meaning.single
        if head is None or head.task == "binary":
            return None
        if node is None or node.op_type not in ("Gemm", "MatMul"):
            return None
        source, weight = node.inputs[:2]
        if source is None or weight is None or weight.const_value is None:
            return None
        flags = {name: attribute.value for name, attribute in node.attributes.items()}
        dims, classes = self.shapes.dims[weight], self.meaning.num_classes
        axis = 0 if flags.get("transB", 0) else 1
        plain = flags.get("alpha", 1.0) == 1.0 and not flags.get("transA", 0)
        if not plain or len(dims) != 2 or dims[axis] != classes:
            return None
        if len(self.shapes.dims[source]) != 2 or self.shapes.dtypes[weight] != ir.DataType.FLOAT:
            return None
        rows = BATCH * self.classes
        chosen = self.targets.reshape((rows,))
        shape = (rows, dims[1]) if axis == 0 else (dims[0], rows)
        row = self.recorder.op("Gather", [self._existing(weight), chosen], shape, axis=axis)
        return source, row if axis == 0 else row.transpose((1, 0))

    def _head_drops(self, drops: Tensor, task: Task) -> Tensor:
        return self.xp.concat([drops * -0.5, drops * 0.5], axis=2) if task == "binary" else drops

    def ablation(self, head: Head) -> Tensor:
        """Record Ablation-CAM's channel weights, [N, k, K]."""
        drops = logit_drops(self.network, head, self.recorder, self._network_logits())
        if self.similarity is not None:  # class scores are not linear in embeddings
            without = self._network_logits()[:, None] - drops
            rows = self._scores(without.reshape((BATCH * without.shape[1], without.shape[2])))
            drops = self.logits[:, None] - rows.reshape((BATCH, without.shape[1], self.count))
        parts = [
            self._head_drops(part, head.task)
            for head, part in zip(self.meaning.heads, self._by_raw_head(drops), strict=True)
        ]
        weights = [
            ablation_weights(logits, part, own, self.request.ablation_score, head.task == "sigmoid")
            for head, logits, part, own in zip(
                self.meaning.heads,
                self._by_head(self.logits),
                parts,
                self._by_head(self.one_hot),
                strict=True,
            )
        ]
        if len(weights) == 1:
            return weights[0]  # type: ignore[no-any-return]
        # Each class has a weight from its own head alone.
        total = None
        for of_head, own in zip(weights, self._by_head(self.one_hot), strict=True):
            part = of_head * own.sum(-1, keepdims=True)
            total = part if total is None else total + part
        assert total is not None
        return total  # type: ignore[no-any-return]

    def _network_logits(self) -> Tensor:
        """Return the network's logits, [N, C], or [N, 1] for one."""
        return self._existing(self.meaning.logits).cast(ir.DataType.FLOAT).reshape((BATCH, -1))

    def map(
        self, method: Method, pairs: Sequence[tuple[Tensor, Tensor]], weights: Tensor | None
    ) -> Tensor:
        """Record the finished map of one method, [N, k, H, W]."""
        own = weights if method == "ablation" else None
        raws = [raw_map(method, a, g, own) for a, g in pairs]
        return finish(fuse(raws) if len(raws) > 1 else raws[0], self.size)  # type: ignore[no-any-return]

    def map_of_attention(self, attention: AttentionMaps, gradients: Tensor) -> Tensor:
        """Record LeGrad's finished map, [N, k, H, W], of gradients [N, k, keys, heads, queries]."""
        raw = attention.record(attention_relevance(gradients))
        return finish(raw, self.size)  # type: ignore[no-any-return]

    def sweep(self, maps: Tensor, tft: Tft) -> list[Tensor]:
        """Record thresholded maps, thresholds, rpi and masked probabilities."""
        indices = [self.probabilities, self.targets]
        own = self.recorder.op("GatherElements", indices, self.targets.shape, axis=1)
        if self.request.prior is None:
            return record_sweep(maps, own, tft, self._masked)
        return record_search(maps, own, tft, self.request.prior, self._masked)

    def _masked(self, masks: Tensor) -> Tensor:
        """Record p_c of masked images: masks [N, k, T, H, W] to [N, k, T]."""
        image = self.image
        if image.dtype == ir.DataType.UINT8:
            raise ExportError(
                "TFT masks the normalised image, but this network normalises uint8 pixels itself: "
                "export without the output tft"
            )
        mask = masks[..., None] if self.network.plain.layout == "NHWC" else masks[:, :, :, None]
        shown = (mask.cast(image.dtype) * image[:, None, None]).reshape(
            (BATCH * self.classes * masks.shape[2], *image.shape[1:])
        )
        prefix = f"whycam/sweep/{self._copies}"
        self._copies += 1
        start = image.value
        raw = copy_between(
            self.network.nodes, start, self.meaning.logits, shown, self.shapes, prefix
        )
        every = self._probabilities(self._scores(raw))
        n, k, steps = masks.shape[:3]
        every = every.reshape((n, k, steps, self.count))
        return (every * self.one_hot[:, :, None]).sum(-1)
