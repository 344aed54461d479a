"""Define the parts of a manifest."""

from __future__ import annotations

from typing import Literal

import msgspec

_FLOAT32 = 3.4e38


_PATTERNS = 100  # that may ever be used; each is made by a formula with its number in it


Task = Literal["softmax", "sigmoid", "binary", "none"]


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
