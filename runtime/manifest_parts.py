"""Define the parts of a manifest."""

from __future__ import annotations

from typing import Literal, get_args

import msgspec

_FLOAT32 = 3.4e38


_PATTERNS = 100  # that may ever be used; each is made by a formula with its number in it


Task = Literal["softmax", "sigmoid", "binary", "none"]
ExportTask = Literal["softmax", "sigmoid", "binary", "none", "detect"]


class OutputHead(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One of several classification heads, whose classes follow those of the heads before it.

    Attributes:
        name: of the network's output that holds its scores.
        task: what its probabilities are, see ``Manifest.task``.
        num_classes: of this head; 2 for ``binary``.
    """

    name: str
    task: Task
    num_classes: int

    def __post_init__(self) -> None:
        if self.num_classes < 1 or (self.task == "binary" and self.num_classes != 2):
            raise ValueError(f"head '{self.name}' has {self.num_classes} classes: {self.task}")


class FusedLayer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A layer before the target layer, whose Layer-CAM map is fused with the target layer's.

    Attributes:
        name: of the layer.
        activations: (K, h, w) there.
    """

    name: str
    activations: tuple[int, int, int]

    def __post_init__(self) -> None:
        if min(self.activations) < 1:
            raise ValueError(f"fused layer '{self.name}' has no activations: {self.activations}")


class Attention(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The attention whose maps the method ``legrad`` reads.

    Attributes:
        name: of the layer.
        shape: (heads, h, w); the keys are h x w places, besides class tokens and the like.
    """

    name: str
    shape: tuple[int, int, int]

    def __post_init__(self) -> None:
        if min(self.shape) < 1:
            raise ValueError(f"attention '{self.name}' has no maps: {self.shape}")


Edge = Literal["left", "top", "right", "bottom"]
EDGES: tuple[Edge, ...] = get_args(Edge)
DetectorFormat = Literal["yolov8", "yolov5", "yolov10", "yolox", "picodet", "detr", "ssd"]
DETECTOR_FORMATS: tuple[DetectorFormat, ...] = get_args(DetectorFormat)
ExplainedScore = Literal["class", "left", "top", "right", "bottom"]
ExportScore = Literal["logit", "prob", "class", "left", "top", "right", "bottom"]
Activation = Literal["sigmoid", "softmax"]


class DetectionReference(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The right answer for one candidate of a built-in test pattern, kept to check engines by.

    From ONNX Runtime, of the graph that the export compared with float64.

    Attributes:
        pattern: which pattern of ``selftest.wave_pattern``.
        candidate, index: the candidate and the class explained.
        score: of both.
        box: left, top, right, bottom in pixels of the input.
        map: of the file's first method, reduced to the means of at most 20 x 20 blocks, row by row.
    """

    pattern: int
    candidate: int
    index: int
    score: float
    box: tuple[float, float, float, float]
    map: tuple[float, ...]


class Detector(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How a graph detects objects, and what its maps explain.

    The graph has an input ``target``, int64 [N, k, 2]: candidate and class of each detection to
    explain. Its outputs, beside the file's own, each computed only where it is asked for:

    - ``detections`` int64 [N, k, 2]: candidate and class explained, -1 where there is none left;
    - ``scores`` float32 [N, k] in [0, 1], and ``boxes`` float32 [N, k, 4], left, top, right and
      bottom in pixels of the input, of these; 0 where there is none left;
    - ``maps`` float32 [N, k, h, w] in [0, 1], and ``maps_METHOD`` of each further method;
    - ``candidate_scores`` float32 [N, A, C] and ``candidate_boxes`` float32 [N, A, 4] of all
      candidates, which suppression outside the graph and TFT read.

    Attributes:
        format: of the detector's own outputs.
        candidates: A, how many boxes the network predicts for each image.
        map_size: (h, w) of the maps: of the finest level.
        levels: the layers that are explained, one for each level of the pyramid.
        score: what the maps explain: the class's score, or how far out an edge of the box lies.
        ranks: whether the graph chooses detections itself: in place of a candidate, -1 then means
            in column j of ``target`` the detection of the j-th best score, whatever the class.
        iou: the overlap from which on a candidate of the same class is suppressed, in the graph and
            outside; None: nothing is, as the network returns each object once.
        min_score: a detection scores more than that, unless a caller says otherwise.
        references: see ``DetectionReference``.
    """

    format: DetectorFormat
    candidates: int
    map_size: tuple[int, int]
    levels: tuple[FusedLayer, ...]
    score: ExplainedScore = "class"
    ranks: bool = True
    iou: float | None = None
    min_score: float = 0.25
    references: tuple[DetectionReference, ...] = ()

    def __post_init__(self) -> None:
        if self.candidates < 1 or min(self.map_size) < 1 or not self.levels:
            raise ValueError("a detector without candidates, maps or levels")
        if not 0 <= self.min_score < 1 or not (self.iou is None or 0 <= self.iou <= 1):
            raise ValueError(f"iou {self.iou} or min_score {self.min_score} is out of range")


class Reference(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The right answer for one built-in test pattern, kept to check engines by.

    From PyTorch in float64 or, for ONNX sources, from the original file; for an INT8 file with raw
    outputs, its own in ONNX Runtime.

    Attributes:
        pattern: which pattern of ``selftest.wave_pattern``.
        target: the class explained, the most probable one.
        probability: its probability, or its value where the task is ``none``.
        raw_map: its map before resizing, row by row, the numbers of ``Manifest.map_shape``; by the
            method that the graph finishes itself, else Grad-CAM.
        size: (H, W) of the pattern, where the graph takes several sizes.
    """

    pattern: int
    target: int
    probability: float
    raw_map: tuple[float, ...]
    size: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.pattern < _PATTERNS:
            raise ValueError(f"there is no test pattern {self.pattern}")
        if not all(-_FLOAT32 <= value <= _FLOAT32 for value in self.raw_map):
            raise ValueError("a reference map with numbers that are too large")
