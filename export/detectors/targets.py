"""Record which candidates are explained: those of the input, or the best after suppression."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ..dims import BATCH, CLASSES, Size
from ..recorder import Recorder
from ..tensors import Tensor, unsqueeze
from .format import Candidates

_FURTHER = 4.0  # sides of the input between the boxes of two classes: none reaches the other's


@dataclass(frozen=True)
class Targets:
    """The detections that are explained.

    Attributes:
        candidate, index: each one's candidate and class, int64 [N, k]; of one that there is not,
            some candidate's.
        present: whether there is one, bool [N, k]; None: all are given.
        broken: NaN for an image of which any candidate's score is, else 0, [N, 1].
    """

    candidate: Tensor
    index: Tensor
    present: Tensor | None
    broken: Tensor | None = None

    def outputs(self, candidates: Candidates) -> dict[str, Tensor]:
        """Record ``detections``, ``scores`` and ``boxes`` of the explained candidates."""
        xp = self.candidate.recorder.xp
        own = _pick(_pick_rows(candidates.scores, self.candidate), self.index)
        boxes = _pick_rows(candidates.boxes, self.candidate)
        pair = xp.stack([self.candidate, self.index], axis=2)
        if self.present is None:
            return {"detections": pair, "scores": own, "boxes": boxes}
        assert self.broken is not None
        last = unsqueeze(self.present, [2])
        return {
            "detections": xp.where(last, pair, -1),
            # A network that returns NaN must not look as if it found nothing.
            "scores": xp.where(self.present, own, 0.0) + self.broken,
            "boxes": xp.where(last, boxes, 0.0),
        }


def record_targets(
    recorder: Recorder,
    target: Tensor,
    candidates: Candidates,
    size: tuple[int, int],
    iou: float | None,
    min_score: float,
    has_ranks: bool,
) -> Targets:
    """Record the candidate and class of each detection to explain.

    Args:
        recorder: of the graph.
        target: the input, int64 [N, k, 2].
        candidates: of the detector.
        size: (H, W) of its input.
        iou, min_score: of suppression, see ``Detector``.
        has_ranks: whether -1 stands for the j-th best detection in column j.
    """
    xp = recorder.xp
    candidate, index = target[:, :, 0], target[:, :, 1]
    if not has_ranks:
        return Targets(candidate, index, None)
    best = xp.max(candidates.scores, axis=2)
    best_class = recorder.op(
        "ArgMax", [candidates.scores], best.shape, ir.DataType.INT64, axis=2, keepdims=0
    )
    kept = best * (best > min_score).cast(ir.DataType.FLOAT)
    if iou is not None:
        kept = best * _suppress(recorder, best, best_class, candidates, size, iou, min_score)
    values, order = _top(kept)
    by_rank = candidate < 0
    chosen = xp.where(by_rank, order, candidate)
    of_class = recorder.op("GatherElements", [best_class, chosen], chosen.shape, axis=1)
    present = by_rank == False  # noqa: E712  # recorded, not computed
    present = present | (values > 0.0)
    broken = (best * 0.0).sum(1, keepdims=True)
    return Targets(chosen, xp.where(by_rank, of_class, index), present, broken)


def _suppress(
    recorder: Recorder,
    best: Tensor,
    best_class: Tensor,
    candidates: Candidates,
    size: tuple[int, int],
    iou: float,
    min_score: float,
) -> Tensor:
    """Record which candidates are left after suppression by class, float32 [N, A] of 0 and 1.

    Boxes of each class are moved to a place of their own, so that one suppression serves them all.
    """
    classes = candidates.scores.shape[2]
    assert isinstance(classes, int)
    columns = int(np.ceil(np.sqrt(classes)))
    rows, places = np.divmod(np.arange(classes), columns)
    moves = np.stack([places, rows, places, rows], 1) * (_FURTHER * max(size))
    table = recorder.constant(moves.astype(np.float32))
    count = best.shape[1]
    moved = candidates.boxes + recorder.op(
        "Gather", [table, best_class], candidates.boxes.shape, axis=0
    )
    selected = recorder.op(
        "NonMaxSuppression",
        [
            moved,
            unsqueeze(best, [1]),
            recorder.constant(np.array([count], np.int64)),
            recorder.constant(np.array([iou], np.float32)),
            recorder.constant(np.array([min_score], np.float32)),
        ],
        (Size(1, ("selected",)), 3),
        ir.DataType.INT64,
    )
    pairs = recorder.op(
        "Gather",
        [selected, recorder.constant(np.array([0, 2], np.int64))],
        (Size(1, ("selected",)), 2),
        axis=1,
    )
    ones = (selected[:, 0] >= 0).cast(ir.DataType.FLOAT)
    return recorder.op("ScatterND", [best * 0.0, pairs, ones], best.shape)


def _top(values: Tensor) -> tuple[Tensor, Tensor]:
    """Record the k largest of each image's candidates and where they are, [N, k] each."""
    recorder = values.recorder
    kinds = (ir.DataType.FLOAT, ir.DataType.INT64)
    outputs = [
        ir.Value(name=recorder.name_for(f"TopK_{index}"), type=ir.TensorType(kind))
        for index, kind in enumerate(kinds)
    ]
    node = ir.Node(
        "",
        "TopK",
        [values.value, recorder.length(CLASSES).value],
        {"axis": ir.AttrInt64("axis", 1)},
        outputs=outputs,
        name=recorder.name_for("TopK"),
    )
    recorder.graph.append(node)
    shape = (BATCH, CLASSES)
    largest, order = (
        Tensor(recorder, value, shape, kind) for value, kind in zip(outputs, kinds, strict=True)
    )
    return largest, order


def _pick_rows(values: Tensor, candidate: Tensor) -> Tensor:
    """Record the rows of candidates: [N, A, D], int64 [N, k] to [N, k, D]."""
    # GatherND over one batch axis takes whole rows.
    shape = (BATCH, CLASSES, values.shape[2])
    return values.recorder.op("GatherND", [values, unsqueeze(candidate, [2])], shape, batch_dims=1)


def _pick(rows: Tensor, index: Tensor) -> Tensor:
    """Record one number of each row: [N, k, D], int64 [N, k] to [N, k]."""
    found = rows.recorder.op(
        "GatherElements", [rows, unsqueeze(index, [2])], (BATCH, CLASSES, 1), axis=2
    )
    return found[:, :, 0]
