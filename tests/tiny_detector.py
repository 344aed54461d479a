"""A detector of two levels, written node by node as whycam would export it, so that the runtime is
tested without the export.

Images of 64 x 64 pixels; 8 x 8 candidates of 16 x 16 pixels and 4 x 4 of 32 x 32, each box centred
in its cell. A candidate's score of class c is sigmoid(10 (mean of channel c in its cell - 0.5)), so
whoever paints a cell red, green or blue knows what is found there. Its map is 1 in its cell, and
fades to the cells around it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
from onnx import TensorProto, helper
from tiny_file import Writer

from whycam.runtime.input_format import Letterbox
from whycam.runtime.manifest import Manifest, Preprocess
from whycam.runtime.manifest_parts import Detector, FusedLayer
from whycam.runtime.onnxfile import append_manifest, digest

SIZE, FINE, COARSE = 64, 8, 4
CANDIDATES = FINE**2 + COARSE**2
LABELS = ("red", "green", "blue")
IOU = 0.5
PADDING = 114  # of the letterbox; its cells score sigmoid(10 (114 / 255 - 0.5)) for each class

DETECTOR = Manifest(
    model="tiny-detector.onnx",
    weights="none",
    target_layer="fine",
    activations=(3, FINE, FINE),
    pooled_linear=False,
    task="detect",
    num_classes=3,
    labels=LABELS,
    detector=Detector(
        format="yolov8",
        candidates=CANDIDATES,
        map_size=(FINE, FINE),
        levels=(FusedLayer("fine", (3, FINE, FINE)), FusedLayer("coarse", (3, COARSE, COARSE))),
        iou=IOU,
    ),
    preprocess=Preprocess(
        (SIZE, SIZE), (), mean=(0.0,) * 3, std=(1.0,) * 3, antialias=False, letterbox=Letterbox()
    ),
    own_outputs=("output0",),
    outputs=("map",),
    methods=("gradcam", "layercam"),
    map_methods=("gradcam", "layercam"),
    gradient_score="prob",
    ablation_score="prob",
    opset=18,
    image_bytes=10_000,
    tools={},
)


def cell_boxes() -> np.ndarray:
    """The candidates' boxes, float32 [A, 4]: fine ones first, row by row."""
    boxes = []
    for cells in (FINE, COARSE):
        step = SIZE / cells
        rows, columns = np.mgrid[:cells, :cells].reshape(2, -1)
        x, y = (columns + 0.5) * step, (rows + 0.5) * step
        boxes.append(np.stack([x - step, y - step, x + step, y + step], 1))
    return np.concatenate(boxes).astype(np.float32)


def write_tiny_detector(path: Path, manifest: Manifest = DETECTOR) -> Manifest:
    """Write the file with its manifest, which may differ from ``DETECTOR`` in ranks and iou."""
    assert manifest.detector is not None
    w = Writer()
    boxes = cell_boxes()
    scores = w.add("Sigmoid", _logits(w))
    candidate_boxes = w.add("Expand", boxes[None], _first(w, scores, np.array([1, 1])))
    best, best_class = w.add("TopK", scores, np.array([1]), outputs=2, axis=2)
    chosen, order = _ranked(w, w.add("Squeeze", best, np.array([2])), best_class, boxes, manifest)
    given = w.add("Gather", "target", np.int64(0), axis=2)
    given_class = w.add("Gather", "target", np.int64(1), axis=2)
    by_rank = w.add("Less", given, np.int64(0))
    candidate = w.add("Where", by_rank, order, given)
    classes = w.add(
        "GatherElements", w.add("Squeeze", best_class, np.array([2])), candidate, axis=1
    )
    classes = w.add("Where", by_rank, classes, given_class)
    wide = _first(w, scores, np.array([1, 3]), candidate)
    rows = w.add("GatherElements", scores, w.add("Expand", _last(w, candidate), wide), axis=1)
    own = w.add("GatherElements", rows, _last(w, classes), axis=2)
    own = w.add("Squeeze", own, np.array([2]))
    absent = w.add("And", by_rank, w.add("LessOrEqual", chosen, np.float32(0)))
    four = w.add("Expand", _last(w, candidate), _first(w, scores, np.array([1, 4]), candidate))
    own_boxes = w.add("GatherElements", candidate_boxes, four, axis=1)
    pair = w.add("Concat", _last(w, candidate), _last(w, classes), axis=2)
    maps = _cells(w, candidate)
    outputs = {
        "output0": w.add(
            "Transpose", w.add("Concat", candidate_boxes, scores, axis=2), perm=[0, 2, 1]
        ),
        "detections": w.add("Where", _last(w, absent), np.int64(-1), pair),
        "scores": w.add("Where", absent, np.float32(0), own),
        "boxes": w.add("Where", _last(w, absent), np.float32(0), own_boxes),
        "candidate_scores": scores,
        "candidate_boxes": candidate_boxes,
        "maps": maps,
        "maps_layercam": w.add("Mul", maps, maps),
    }
    for name, tensor in outputs.items():
        w.nodes.append(helper.make_node("Identity", [tensor], [name]))
    kinds = {"detections": TensorProto.INT64}
    image, target = ["N", 3, SIZE, SIZE], ["N", "k", 2]
    graph = helper.make_graph(
        w.nodes,
        "tiny detector",
        [
            helper.make_tensor_value_info("image", TensorProto.FLOAT, image),
            helper.make_tensor_value_info("target", TensorProto.INT64, target),
        ],
        [
            helper.make_tensor_value_info(name, kinds.get(name, TensorProto.FLOAT), None)
            for name in outputs
        ],
        w.constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, str(path))
    manifest = msgspec.structs.replace(manifest, digest=digest(path))
    append_manifest(path, manifest)
    return manifest


def _logits(w: Writer) -> Any:
    levels = []
    for cells in (FINE, COARSE):
        side = SIZE // cells
        mean = w.add("AveragePool", "image", kernel_shape=[side, side], strides=[side, side])
        flat = w.add("Reshape", mean, np.array([0, 3, cells * cells]))
        levels.append(w.add("Transpose", flat, perm=[0, 2, 1]))
    return w.add("Mul", w.add("Sub", w.add("Concat", *levels, axis=1), np.float32(0.5)),
                 np.float32(10))  # fmt: skip


def _ranked(w: Writer, values: Any, classes: Any, boxes: np.ndarray, manifest: Manifest) -> Any:
    """Score and candidate of each rank [N, k]; the score is 0 where there is none left."""
    shifted = w.add("Add", boxes[None], w.add("Mul", w.add("Cast", classes, to=TensorProto.FLOAT),
                    np.float32(1000)))  # fmt: skip
    kept = w.add(
        "NonMaxSuppression",
        shifted,
        w.add("Unsqueeze", values, np.array([1])),
        np.array([CANDIDATES]),
        np.array([1.0 if manifest.detector.iou is None else manifest.detector.iou], np.float32),
        np.array([manifest.detector.min_score], np.float32),
    )
    places = w.add("Gather", kept, np.array([0, 2]), axis=1)
    shape = w.add("Shape", values)
    ones = w.add(
        "Expand", np.float32(1), w.add("Shape", w.add("Gather", kept, np.int64(0), axis=1))
    )
    mask = w.add("ScatterND", w.add("Expand", np.float32(0), shape), places, ones)
    count = w.add("Gather", w.add("Shape", "target"), np.array([1]), axis=0)
    return w.add("TopK", w.add("Mul", values, mask), count, outputs=2, axis=1)


def _cells(w: Writer, candidate: Any) -> Any:
    """Maps [N, k, 8, 8]: 1 in the candidate's cell, 0.5 in those beside it."""
    table = np.zeros((CANDIDATES, FINE, FINE), np.float32)
    for index in range(FINE**2):
        row, column = divmod(index, FINE)
        table[index, max(0, row - 1) : row + 2, max(0, column - 1) : column + 2] = 0.5
        table[index, row, column] = 1
    for index in range(COARSE**2):
        row, column = divmod(index, COARSE)
        table[FINE**2 + index, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2] = 1
    return w.add("Gather", table, candidate, axis=0)


def _last(w: Writer, tensor: Any) -> Any:
    return w.add("Unsqueeze", tensor, np.array([2]))


def _first(w: Writer, tensor: Any, rest: np.ndarray, second: Any = None) -> Any:
    """A shape: the batch of ``tensor`` and the rest; with ``second`` its number of columns."""
    batch = w.add("Gather", w.add("Shape", tensor), np.array([0]), axis=0)
    if second is None:
        return w.add("Concat", batch, rest, axis=0)
    columns = w.add("Gather", w.add("Shape", second), np.array([1]), axis=0)
    return w.add("Concat", batch, columns, rest[1:], axis=0)
