"""Record class scores, probabilities and the classes to explain."""

from __future__ import annotations

from functools import cached_property

import numpy as np
import onnx_ir as ir

from ..runtime.cosine import cosine_logits
from ..runtime.manifest_parts import Task
from ..runtime.targets import RANKS, count_ranks
from .dims import BATCH, CLASSES, PROMPTS, Dim
from .graph_inputs import GraphInputs, tensor_of
from .heads import OutputMeaning
from .layers import Network
from .output_meaning import HeadMeaning
from .recorder import FLOAT32_MAX, Recorder
from .tensors import Tensor


class Scores:
    """What the network says of its classes, in a graph.

    Attributes:
        network: whose scores they are.
        meaning: of its outputs.
        recorder: of the graph.
        inputs: of the graph.
        classes: how many classes of each image are explained, k.
        logits: class scores, float32 [N, C].
        probabilities: float32 [N, C].
        targets: the classes to explain, int64 [N, k].
    """

    def __init__(
        self,
        network: Network,
        meaning: OutputMeaning,
        recorder: Recorder,
        inputs: GraphInputs,
        top: int | None,
    ) -> None:
        self.network = network
        self.shapes = network.plain.shapes
        self.meaning = meaning
        self.similarity = meaning.similarity
        self.recorder = recorder
        self.xp = recorder.xp
        self.inputs = inputs
        self.top = top
        self.classes: Dim = CLASSES if top is None else top
        self.logits = self.scores_of(self._tensor(meaning.logits))
        self.probabilities = self.probabilities_of(self.logits, reuses_outputs=True)
        self.targets = self._resolve_targets()

    def _tensor(self, value: ir.Value) -> Tensor:
        return tensor_of(value, self.shapes, self.recorder)

    @property
    def network_logits(self) -> Tensor:
        """The network's own logits, [N, C], or [N, 1] for one."""
        return self._tensor(self.meaning.logits).cast(ir.DataType.FLOAT).reshape((BATCH, -1))

    def scores_of(self, raw: Tensor) -> Tensor:
        """Record class scores float32 [rows, C] from the network's scores or embeddings."""
        flat = raw.cast(ir.DataType.FLOAT).reshape((raw.shape[0], -1))
        if self.similarity is not None:
            scale, bias = self.similarity.scale, self.similarity.bias
            return cosine_logits(flat, self.inputs.class_embeddings, scale, bias)  # type: ignore[no-any-return]
        if self.meaning.single is not None:
            return self._of_head(flat, self.meaning.single.task)
        parts = [
            self._of_head(flat[:, place], head.task)
            for head, place in zip(self.meaning.heads, self.meaning.raw_places, strict=True)
        ]
        return self.xp.concat(parts, axis=1)

    def _of_head(self, raw: Tensor, task: Task) -> Tensor:
        return self.xp.concat([raw * -0.5, raw * 0.5], axis=1) if task == "binary" else raw

    def probabilities_of(self, logits: Tensor, reuses_outputs: bool = False) -> Tensor:
        """Record the probabilities of all classes, [rows, C]."""
        parts = []
        for head, of_head in zip(self.meaning.heads, self.by_head(logits), strict=True):
            if reuses_outputs and self._is_probability(head):
                parts.append(self._tensor(head.output))
            elif head.task == "none":
                parts.append(of_head)
            elif head.task == "sigmoid":
                parts.append(self.sigmoid(of_head))
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

    def by_head(self, classes: Tensor) -> list[Tensor]:
        """Split what holds a number for each class along its last axis."""
        if self.meaning.single is not None:
            return [classes]
        return [classes[..., place] for place in self.meaning.places]

    def by_raw_head(self, scores: Tensor) -> list[Tensor]:
        """Split what holds the network's own numbers along its last axis."""
        if self.meaning.single is not None:
            return [scores]
        return [scores[..., place] for place in self.meaning.raw_places]

    def split_probabilities(self) -> dict[str, Tensor]:
        """Record each head's probabilities as an output, where there are several heads."""
        if self.meaning.single is not None:
            return {}
        parts = self.by_head(self.probabilities)
        return {
            f"probabilities_{head.name}": part
            for head, part in zip(self.meaning.heads, parts, strict=True)
        }

    def _resolve_targets(self) -> Tensor:
        """Record the classes to explain, int64 [N, k]: ranks are replaced by classes.

        Of several heads, the ranks of one follow those of the heads before it.
        """
        ranked = []
        for place, of_head in zip(self.meaning.places, self.by_head(self.logits), strict=True):
            length = of_head.shape[1]
            count = self.top or (count_ranks(length) if isinstance(length, int) else RANKS)
            best = self._top(of_head, count)
            ranked.append(best if place.start == 0 else best + place.start)
        best = ranked[0] if len(ranked) == 1 else self.xp.concat(ranked, axis=1)
        if self.inputs.target is None:
            return best
        target, ranks = self.inputs.target, best.shape[1]
        assert isinstance(ranks, int)
        rank = self.xp.minimum(self.xp.maximum(-1 - target, 0), ranks - 1)
        if not isinstance(self.inputs.count, int):
            rank = self.xp.minimum(rank, self.recorder.length(self.inputs.count) - 1)
        chosen = self.recorder.op("GatherElements", [best, rank], target.shape, axis=1)
        return self.xp.where(target < 0, chosen, target)

    def _top(self, logits: Tensor, count: int) -> Tensor:
        length = self.recorder.constant(np.array([count], np.int64))
        values, indices = (self.recorder.name_for(f"TopK_{kind}") for kind in ("values", "indices"))
        outputs = [
            ir.Value(name=values, type=ir.TensorType(ir.DataType.FLOAT)),
            ir.Value(name=indices, type=ir.TensorType(ir.DataType.INT64)),
        ]
        if not isinstance(self.inputs.count, int):  # there may be fewer classes than ranks
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

    @cached_property
    def one_hot(self) -> Tensor:
        """The explained classes, float32 [N, k, C]; recorded where first used."""
        count = self.inputs.count
        every = self.xp.arange(count) if isinstance(count, int) else self.recorder.range(PROMPTS)
        return (every == self.targets[:, :, None]).cast(ir.DataType.FLOAT)

    def sigmoid(self, logits: Tensor) -> Tensor:
        """Record a sigmoid; of similarities with all digits of small results.

        SigLIP's are often 1e-5 and less, where the operator Sigmoid of ONNX Runtime is off by parts
        of them. A network's own Sigmoid, and so its copies on masked images, stay that operator.
        """
        if self.similarity is None:
            return self.recorder.op("Sigmoid", [logits], logits.shape)
        return 1.0 / (self.xp.exp(-logits) + 1.0)
