"""Record the gradient of the explained class scores, from which the walk back begins."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ..runtime.cam import Score
from ..runtime.cosine import embedding_gradient
from .dims import BATCH, Size
from .graph_inputs import tensor_of
from .scores import Scores
from .tensors import Tensor


def record_seed(scores: Scores, score: Score) -> tuple[ir.Value, Tensor]:
    """Record the gradient of the explained classes' scores, with N k for N.

    Args:
        scores: of the network.
        score: which one is explained, the logit or the probability.

    Returns:
        A tensor of the network, and the gradient there.
    """
    if score == "prob":
        return scores.meaning.logits, _flat_seed(scores, _seed_of_probability(scores), score)
    rows = _rows_of_last_layer(scores)
    if rows is not None:
        return rows
    return scores.meaning.logits, _flat_seed(scores, scores.one_hot, score)


def _seed_of_probability(scores: Scores) -> Tensor:
    """Record d p_c / d logits, [N, k, C]."""
    parts = []
    for head, own, p, logits in zip(
        scores.meaning.heads,
        scores.by_head(scores.one_hot),
        scores.by_head(scores.probabilities[:, None]),
        scores.by_head(scores.logits[:, None]),
        strict=True,
    ):
        if head.task == "sigmoid":
            # 1 - p as the sigmoid of -z: the difference loses its digits where p is near 1.
            parts.append(own * (p * scores.sigmoid(-logits)))
        else:
            parts.append((own * p).sum(-1, keepdims=True) * (own - p))
    return parts[0] if len(parts) == 1 else scores.xp.concat(parts, axis=2)


def _flat_seed(scores: Scores, seed: Tensor, score: Score) -> Tensor:
    """Reshape [N, k, C] to the gradient of the network's logits, with N k for N."""
    if scores.similarity is not None:
        flat = _embedding_seed(scores, seed, score)
    else:
        flat = seed.reshape((BATCH * scores.classes, scores.inputs.count))
    parts = []
    for head, of_head in zip(scores.meaning.heads, scores.by_head(flat), strict=True):
        if head.task == "binary":
            halves = scores.recorder.constant(np.array([[-0.5], [0.5]], np.float32))
            parts.append(of_head @ halves)
        else:
            parts.append(of_head)
    flat = parts[0] if len(parts) == 1 else scores.xp.concat(parts, axis=1)
    raw = scores.shapes.dims[scores.meaning.logits]
    return flat.reshape(
        [
            side * scores.classes if isinstance(side, Size) and side.counts_images else side
            for side in raw
        ]
    )


def _embedding_seed(scores: Scores, seed: Tensor, score: Score) -> Tensor:
    """Record the gradient of the image embedding, [N, k, D], from that of class scores."""
    classes, similarity = scores.inputs.class_embeddings, scores.similarity
    assert classes is not None
    assert similarity is not None
    length = classes.shape[1]
    if score == "logit":
        shape = (BATCH, scores.classes, length)
        directions = scores.recorder.op("Gather", [classes, scores.targets], shape, axis=0)
    else:
        directions = seed @ classes
    embeddings = tensor_of(scores.meaning.logits, scores.shapes, scores.recorder).cast(
        ir.DataType.FLOAT
    )
    each = embeddings.reshape((BATCH, 1, length))
    return embedding_gradient(each, directions, similarity.scale)  # type: ignore[no-any-return]


def _rows_of_last_layer(scores: Scores) -> tuple[ir.Value, Tensor] | None:
    """Find the last linear layer's input and its gradient, the class's row of weights.

    A one-hot seed times all weights is one row of them, so the others need not be read.
    """
    if scores.similarity is not None:
        return None
    node = scores.meaning.logits.producer()
    if node is not None and node.op_type == "Add":
        inputs = [value for value in node.inputs if value is not None]
        products = [value for value in inputs if value.const_value is None]
        node = products[0].producer() if len(products) == 1 else None
    head = scores.meaning.single
    if head is None or head.task == "binary":
        return None
    if node is None or node.op_type not in ("Gemm", "MatMul"):
        return None
    source, weight = node.inputs[:2]
    if source is None or weight is None or weight.const_value is None:
        return None
    flags = {name: attribute.value for name, attribute in node.attributes.items()}
    dims, classes = scores.shapes.dims[weight], scores.meaning.num_classes
    axis = 0 if flags.get("transB", 0) else 1
    plain = flags.get("alpha", 1.0) == 1.0 and not flags.get("transA", 0)
    if not plain or len(dims) != 2 or dims[axis] != classes:
        return None
    if len(scores.shapes.dims[source]) != 2 or scores.shapes.dtypes[weight] != ir.DataType.FLOAT:
        return None
    rows = BATCH * scores.classes
    weights = tensor_of(weight, scores.shapes, scores.recorder)
    # By image and class: whoever needs them so again takes them as they are.
    by_class = (BATCH, scores.classes)
    shape = (*by_class, dims[1]) if axis == 0 else (dims[0], *by_class)
    row = scores.recorder.op("Gather", [weights, scores.targets], shape, axis=axis)
    if axis == 0:
        return source, row.reshape((rows, dims[1]))
    return source, row.reshape((dims[0], rows)).transpose((1, 0))
